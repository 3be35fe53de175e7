"""Run the unit tests and the notebooks with the oldest and the newest versions.

    python -m tools.try_versions                 both
    python -m tools.try_versions oldest          one of them

"oldest" is Python 3.10 with exactly the lower bounds of requirements.txt, and IPython 7.34,
which Colab has; "newest" is the newest Python found here with the newest of everything. Each
gets an environment of its own, which is removed afterwards: about 6 GB and ten minutes each.
Pythons are looked for on the PATH, among pyenv's, with uv, and with py (on Windows).
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON, PYTHONS = "3.10", ["3.14", "3.13", "3.12", "3.11", "3.10"]
EXTRA = ["ipython==7.34.0"]  # with the oldest only
SHOWN = ["torch", "torchvision", "numpy", "matplotlib", "ipython"]


def find_python(version: str) -> str | None:
    """Return the path of an interpreter of this version that really starts, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
    ask = ["-X", "utf8", "-c", "import sys; print(sys.executable)"]
    for command in (["uv", "python", "find", "--quiet", version], ["py", f"-{version}", *ask]):
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, encoding="utf-8")
            candidates.append(done.stdout.strip())
    for python in filter(None, candidates):
        # What is on the PATH may be a shim for a version that is switched off.
        done = subprocess.run([python, "--version"], capture_output=True, encoding="utf-8")
        if done.returncode == 0 and f" {version}." in done.stdout:
            return str(python)
    return None


def lower_bounds() -> list[str]:
    """The requirements with each bound turned into exactly this version."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.replace(">=", "==") for line in lines if re.match(r"[\w-]+>=", line)]


def last_line(command, log, environment) -> tuple[bool, str]:
    """Run, with everything printed going to the log; return success and pytest's summary."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    log.write(done.stdout)
    log.flush()
    lines = [line.strip("= ") for line in done.stdout.splitlines() if line.strip()]
    return done.returncode == 0, lines[-1] if lines else "nothing printed"


def try_versions(kind: str, log) -> tuple[bool, list[str]]:
    """Return whether all passed, and the rows of the table for one set of versions."""
    wanted = [OLDEST_PYTHON] if kind == "oldest" else PYTHONS
    python = next(filter(None, map(find_python, wanted)), None)
    if python is None:
        return False, [f"no Python {' or '.join(wanted)} found, so nothing was tried"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"versions-{kind}-") as folder:
        ok, said = last_line([python, "-m", "venv", folder], log, None)
        if not ok:
            return False, [f"{python} -m venv failed: {said}"]
        scripts = Path(folder) / ("Scripts" if os.name == "nt" else "bin")
        inside = str(scripts / "python")
        constraints = Path(folder) / "constraints.txt"
        lines = [*lower_bounds(), *EXTRA] if kind == "oldest" else []
        constraints.write_text("\n".join(lines), encoding="utf-8")
        packages = EXTRA if kind == "oldest" else []
        ok, said = last_line(
            [inside, "-m", "pip", "install", "--upgrade", "-r", "requirements-dev.txt",
             "-c", str(constraints), *packages], log, None,
        )  # fmt: skip
        if not ok:
            return False, [f"installation failed: {said}"]
        show = "import sys, importlib.metadata as m; print(f'python {sys.version.split()[0]}', *"
        show += f"(f'{{p}} {{m.version(p)}}' for p in {SHOWN}), sep=', ')"
        versions = subprocess.run(
            [inside, "-c", show], capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()
        # Kernels have to be those of this environment, whatever is installed for the user.
        kernels = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_DATA_DIR": f"{folder}/jupyter"}
        path = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
        environment = {k: v for k, v in os.environ.items() if k != "MNIST_OUTPUT_DIR"}
        environment |= kernels | path | {"OMP_NUM_THREADS": "1"}
        pytest = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2"]
        units, unit_line = last_line([*pytest, "tests", "-m", "not slow"], log, environment)
        books, book_line = last_line([*pytest, "notebooks", "--nbval"], log, environment)
    minutes = (time.monotonic() - started) / 60
    return units and books, [
        versions,
        f"unit tests: {unit_line}",
        f"notebooks:  {book_line}",
        f"{minutes:.0f} minutes with the installation",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="oldest | newest")
    kinds = parser.parse_args().kinds or ["oldest", "newest"]
    if not set(kinds) <= {"oldest", "newest"}:
        parser.error(f"expected oldest or newest, found {' '.join(kinds)}")
    path = ROOT / "outputs" / "versions.log"
    path.parent.mkdir(exist_ok=True)
    everything = True
    with open(path, "w", encoding="utf-8") as log:
        for kind in kinds:
            ok, rows = try_versions(kind, log)
            everything &= ok
            print(f"{kind}: {'passed' if ok else 'FAILED'}")
            print(*(f"  {row}" for row in rows), sep="\n", flush=True)
    print(f"Everything that was printed: {path.relative_to(ROOT)}")
    return 0 if everything else 1


if __name__ == "__main__":
    sys.exit(main())
