"""Build notebooks that need no other file of this collection.

    python -m tools.standalone                        into dist/
    python -m tools.standalone --kaggle-user NAME     and fill in the Kaggle user's name

Each copy carries utils.py (and what else it reads from here) in a collapsed cell under its
title, which writes it into the working folder. Solutions to exercises, in dist/solutions, also
carry what their notebook defines. All other cells are those of the source, with their outputs.
For Kaggle, dist/kaggle/NN_name/ holds the notebook with the metadata that `kaggle kernels push`
asks for. Needs nbformat, and nothing of what the notebooks need.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urljoin

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NO_USER = "YOUR-KAGGLE-NAME"  # as long as nobody has filled in a name
NAME = re.compile(r"\d\d_\w+\.ipynb", re.ASCII)  # Untitled.ipynb and private notes are not ours
LINK = re.compile(r"\]\(((?:\.\./|solutions/)?\d\d_\w+\.ipynb)\)")  # from one to another
# Variables that git sets for its hooks and that would lead to another repository.
LEADS_ELSEWHERE = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"}
BRANCH, RELEASE = "standalone", "notebooks"  # the copies' branch, the tag of the release

# Hidden in JupyterLab, Colab, Kaggle and web sites made by Jupyter Book, in this order.
COLLAPSED = {
    "jupyter": {"source_hidden": True},
    "cellView": "form",
    "_kg_hide-input": True,
    "tags": ["hide-input"],
}
CARRIER = """\
# @title Run this cell first: it writes files that this notebook needs
# It writes {names} into the working folder.
# They come from {origin}.
{announced}#
{licence}

import os
from pathlib import Path


def write(files):
    for name, text in files.items():
        path = Path(name)
        if path.exists() and path.read_bytes() != text.encode():
            raise FileExistsError(
                f"{{path.resolve()}}: expected no such file, or the one that this notebook brings "
                f"along, found another one. Run the notebook in a folder of its own, or move the "
                f"file away; if it is an older version from this collection, delete it."
            )
    for name, text in files.items():
        if not Path(name).exists():
            Path(name).parent.mkdir(exist_ok=True)
            unfinished = Path(name).with_name(f".unfinished-{{os.getpid()}}-{{Path(name).name}}")
            unfinished.write_bytes(text.encode())
            unfinished.replace(name)
    print("Wrote", ", ".join(f"{{name}} ({{len(files[name]) / 1000:.0f}} kB)" for name in files))

{network}
files = {{}}
{files}
write(files)
"""
# For published copies of the notebooks that use what notebook 03 trains.
ANNOUNCED = """\
# If you have no modelku.pth here, it also fetches a published one, {size:,} bytes, from
# {url}
"""
NETWORK = """
def fetch(url, size, sha256):
    import hashlib
    import http.client
    import urllib.request

    path, own = Path("published_modelku.pth"), [Path("modelku.pth"), Path("outputs/modelku.pth")]
    if any(map(Path.is_file, [*own, *Path("/kaggle/input").rglob("modelku.pth")])):
        return
    try:
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            with urllib.request.urlopen(url, timeout=10) as answer:
                content = answer.read(size + 1)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError("it is another file than the one that this copy was made with")
            unfinished = Path(f".unfinished-{os.getpid()}-{path}")
            unfinished.write_bytes(content)
            unfinished.replace(path)
        print("Fetched", path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"The published network was not fetched (is the internet off?): {url}: {error}")

"""
FETCH = """
fetch(
    "{url}",
    size={size},
    sha256="{sha256}",
)
"""
# What the first cell of all notebooks says where utils.py is missing.
ADVICE = re.compile(r'(?m)^(assert home, ").*"$')


class NotebookError(ValueError):
    """A notebook is not as expected. The message names it; nothing was written."""


def git(*arguments, index=None, content=None) -> str:
    """Run git in the repository; return what it prints. Raises CalledProcessError."""
    environment = {k: v for k, v in os.environ.items() if k not in LEADS_ELSEWHERE}
    environment["GIT_CEILING_DIRECTORIES"] = str(ROOT.parent)  # ours, and none around it
    if index is not None:
        environment["GIT_INDEX_FILE"] = str(index)
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], env=environment, check=True,
        input=content, capture_output=True,
    )  # fmt: skip
    return done.stdout.decode().strip()


def origin(repo: str | None, files) -> str:
    """Return where files are from: the repository, if it is published, and the commit."""
    place = f"https://github.com/{repo}" if repo else "a collection of notebooks"
    names = [str(file) for file in files]
    try:
        log = git("log", "--no-show-signature", "-1", "--format=commit %h of %cs", "--", *names)
        commit = re.fullmatch(r"commit \w+ of [\d-]+", log)
        changed = git("status", "--porcelain", "--", *names)
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return place
    return ", ".join(filter(None, [place, commit and commit[0], "with changes" if changed else ""]))


def carried_files(notebook) -> dict[str, Path]:
    """What a notebook reads from this repository, by the name it has beside a copy of it."""
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    names = re.findall(r'"(\d\d_\w+\.(?:json|html))"', source)
    places = {name: ROOT / "notebooks" / name for name in names}
    files = {"utils.py": ROOT / "utils.py"} | {n: p for n, p in places.items() if p.is_file()}
    for name in re.findall(r'definitions\("(\d\d_\w+)"\)', source):
        path = ROOT / "notebooks" / f"{name}.ipynb"
        files |= carried_files(only_definitions(path))
        files |= {f: ROOT / f for f in ("tools/notebook_code.py", f"notebooks/{path.name}")}
    return files


def only_definitions(path: Path) -> nbformat.NotebookNode:
    """Return a notebook's cells with the tag "definitions", which is what solutions use of it."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [c for c in notebook.cells if "definitions" in c.metadata.get("tags", [])]
    return notebook


def uses_network(notebook) -> bool:
    """Whether a notebook wants the modelku.pth of notebook 03."""
    return any("trained_model(" in cell.source for cell in notebook.cells)


def sources(folder: str = "") -> list[Path]:
    """Return the notebooks of the collection, or those in its folder "solutions", in order."""
    found = (ROOT / "notebooks" / folder).glob("*.ipynb")
    paths = sorted(path for path in found if NAME.fullmatch(path.name))
    for path in paths:
        cells = nbformat.read(path, as_version=4).cells
        if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith("# "):
            raise NotebookError(f"{path}: expected a Markdown cell with the title at the top.")
    return paths


def place(path: Path) -> str:
    """Return where the copy of a notebook lies in dist/, on the branch and on the web site."""
    return path.relative_to(ROOT / "notebooks").as_posix()


def with_advice(notebook, advice: str) -> nbformat.NotebookNode:
    """Return a copy whose first code cell gives this advice where utils.py is missing."""
    copied = nbformat.from_dict(notebook)
    cell = next(cell for cell in copied.cells if cell.cell_type == "code")
    cell.source, count = ADVICE.subn(rf'\g<1>utils.py is missing: {advice}"', cell.source)
    if count != 1:
        raise NotebookError(f'{copied.cells[0].source[:50]}: expected one line with "assert home"')
    return copied


def standalone(notebook, name: str, repo: str | None = None) -> nbformat.NotebookNode:
    """Return a copy of the notebook with a cell under its title that carries what it needs.

    ``name``: its place in dist/. With the owner/name of the published repository, and if a
    modelku.pth was trained here, the cell of the notebooks that use one fetches it from the
    release, checked by its SHA-256.
    """
    carried, model = carried_files(notebook), ROOT / "outputs" / "modelku.pth"
    code = [file for file in carried.values() if file.suffix != ".ipynb"]  # these get badges
    fields = {"names": ", ".join(carried), "origin": origin(repo, code)}
    parts = []
    for file_name, file in carried.items():
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".ipynb":
            text = nbformat.writes(only_definitions(file))
        if file.suffix in (".json", ".ipynb"):  # no reader misses the white space
            text = json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
        if "'''" in text or text.endswith(("\\", "'")):
            raise NotebookError(f"{file}: expected text that fits between r''' and '''.")
        parts.append(f"files[\"{file_name}\"] = r'''{text}'''")
    fields |= {"files": "\n".join(parts), "network": "", "announced": ""}
    fetch = ""
    if repo and model.is_file() and uses_network(notebook):
        content = model.read_bytes()
        url = f"https://github.com/{repo}/releases/download/{RELEASE}/{name_by_content(content)}"
        about = {"url": url, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        fields |= {"network": NETWORK, "announced": ANNOUNCED.format(**about)}
        fetch = FETCH.format(**about)
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8").strip()
    fields["licence"] = "\n".join(f"# {line}".strip() for line in licence.splitlines())
    source = CARRIER.format(**fields) + fetch
    compile(source, name, "exec")
    copied = with_advice(notebook, "run the cell under the title first")
    if repo:  # in Colab and Kaggle a relative link leads nowhere
        for cell in (cell for cell in copied.cells if cell.cell_type == "markdown"):
            cell.source = LINK.sub(lambda found: f"]({address(repo, name, found[1])})", cell.source)
    cell = nbformat.v4.new_code_cell(source.strip(), id=f"{name[:2]}-files")
    copied.cells.insert(1, cell)
    cell.metadata = nbformat.from_dict(COLLAPSED)
    cell.metadata["built"] = fingerprint(copied)
    return copied


def address(repo: str, name: str, link: str) -> str:
    """Return where on the branch a relative link leads from the copy with this name."""
    return urljoin(f"https://github.com/{repo}/blob/{BRANCH}/{name}", link)


def name_by_content(network: bytes) -> str:
    """Return under which name a release keeps this modelku.pth beside those of older copies."""
    return f"modelku-{hashlib.sha256(network).hexdigest()[:12]}.pth"


def fingerprint(notebook) -> str:
    """Return a sum over everything a user can change, to tell a built copy from an edited one."""
    content = []
    for cell in notebook.cells:
        metadata = {key: value for key, value in cell.metadata.items() if key != "built"}
        content.append([cell.cell_type, cell.source, cell.get("outputs"), metadata])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def to_bytes(notebook) -> bytes:
    return (nbformat.writes(notebook) + "\n").encode()


def write(path: Path, content: bytes) -> None:
    """Like utils.write_whole, which cannot be imported without PyTorch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def refuse_to_replace(path: Path, content: bytes) -> None:
    """Raise NotebookError if there is a file that is not, as it was built, one of ours."""
    if not path.exists():
        return
    try:
        if path.suffix == ".json":  # another user's name is no change
            texts = path.read_bytes().decode(), content.decode()
            old, new = (json.loads(text) | {"id": 0, "kernel_sources": 0} for text in texts)
            untouched = old == new
        else:
            notebook = nbformat.read(path, as_version=4)
            built = [cell.metadata.built for cell in notebook.cells if "built" in cell.metadata]
            untouched = built == [fingerprint(notebook)]
    except Exception:  # whatever it is, it is not ours
        untouched = False
    if not untouched:
        raise NotebookError(
            f"{path}: expected nothing, or a copy as it was built, found a file that somebody "
            f"has changed or made. Move it away or delete it, and try again."
        )


def kernel_metadata(path: Path, user: str) -> dict:
    """Return what Kaggle's command line asks for, with the slug made from the title as it does."""
    number, name = path.stem.split("_", 1)

    def title(number, name):
        return f"Handwritten digits {number} {name.replace('_', ' ')}"

    def slug(title):
        return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")

    gpu = number >= "03"  # on Kaggle it costs a phone number and quota; before 03 for nothing
    training = f"{user}/{slug(title('03', 'training'))}"
    notebook = nbformat.read(path, as_version=4)
    network = uses_network(notebook)
    others = re.findall(r'"kaggle": "(.+?)"', "".join(cell.source for cell in notebook.cells))
    return {
        "id": f"{user}/{slug(title(number, name))}",
        "title": title(number, name),
        "code_file": path.name,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_internet": False,
        **({"machine_shape": "NvidiaTeslaT4"} if gpu else {}),
        "dataset_sources": ["hojjatk/mnist-dataset", *others],
        "kernel_sources": [training] if network else [],
        "competition_sources": [],
        "model_sources": [],
    }


def copies(user: str = NO_USER, repo: str | None = None) -> dict[str, bytes]:
    """Return every standalone notebook, solutions, and Kaggle's folders, by name below dist/."""
    files = {}
    for path in [*sources(), *sources("solutions")]:
        copied = standalone(nbformat.read(path, as_version=4), place(path), repo)
        files[place(path)] = to_bytes(copied)
    for path in sources():
        folder, metadata = f"kaggle/{path.stem}", kernel_metadata(path, user)
        files[f"{folder}/{path.name}"] = files[path.name]
        files[f"{folder}/kernel-metadata.json"] = (json.dumps(metadata, indent=2) + "\n").encode()
    return files


def build(target: Path, user: str = NO_USER) -> list[Path]:
    """Write every standalone notebook below ``target``; return the paths of all files.

    Raises NotebookError, before anything is written, if that would replace somebody's work.
    """
    files = {target / name: content for name, content in copies(user).items()}
    for file, content in files.items():
        refuse_to_replace(file, content)
    for file, content in files.items():
        write(file, content)
    return list(files)


def repository(text: str) -> str:
    """Return owner/name as it is, or raise argparse's error if it is something else."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*/(?!\.\.?$)[\w.-]+(?<!\.git)", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected owner/name, found {text!r}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kaggle-user", default=NO_USER, help="your user name on Kaggle")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder to write to")
    arguments = parser.parse_args()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", arguments.kaggle_user):
        print(f"KAGGLE_USER: expected a user name, found {arguments.kaggle_user!r}")
        return 2
    try:
        written = build(arguments.out, arguments.kaggle_user)
    except NotebookError as error:
        print(error)
        return 1
    for file in written:
        if file.suffix == ".ipynb" and "kaggle" not in file.parts:
            print(f"{file.relative_to(arguments.out.parent)}  {file.stat().st_size / 1000:.0f} kB")
    print(f"Kaggle: kaggle kernels push -p {arguments.out.name}/kaggle/NN_name")
    if arguments.kaggle_user == NO_USER:
        print("        (after: make standalone KAGGLE_USER=your-name)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
