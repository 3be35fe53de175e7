"""Build notebooks that need no other file of this collection.

    python -m tools.standalone                        into dist/
    python -m tools.standalone --kaggle-user NAME     and fill in the Kaggle user's name

Each copy carries utils.py (and what else it reads from here) in a collapsed cell at its
top, which writes it into the working folder. All other cells are those of the source, with
their outputs. For Kaggle, dist/kaggle/NN_name/ holds the notebook with the metadata that
`kaggle kernels push` asks for. Needs nbformat, and nothing of what the notebooks need.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NO_USER = "YOUR-KAGGLE-NAME"  # as long as nobody has filled in a name
NAME = re.compile(r"\d\d_\w+\.ipynb", re.ASCII)  # Untitled.ipynb and private notes are not ours

# Hidden in JupyterLab, Colab, Kaggle and nbconvert, in this order.
COLLAPSED = {
    "jupyter": {"source_hidden": True},
    "cellView": "form",
    "_kg_hide-input": True,
    "tags": ["hide-input"],
}
CARRIER = """\
# @title Run this cell first: it writes the files that this notebook brings along
import os
from pathlib import Path

files = {{}}
{files}
for name, text in files.items():
    path, unfinished = Path(name), Path(f".unfinished-{{os.getpid()}}-{{name}}")
    if not path.exists():
        unfinished.write_bytes(text.encode())
        unfinished.replace(path)
    elif path.read_bytes() != text.encode():
        raise FileExistsError(
            f"{{path.resolve()}}: expected no such file, or the one that this notebook brings "
            f"along, found another one. Run the notebook in a folder of its own, or move the "
            f"file away; if it is an older version from this collection, delete it."
        )
"""


def carried_files(notebook) -> dict[str, Path]:
    """What a notebook reads from this repository, by the name it has beside a copy of it."""
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    names = re.findall(r'"(\d\d_\w+\.(?:json|html))"', source)
    places = {name: ROOT / "notebooks" / name for name in names}
    return {"utils.py": ROOT / "utils.py"} | {n: p for n, p in places.items() if p.is_file()}


class NotebookError(ValueError):
    """A notebook is not as expected. The message names it; nothing was written."""


def sources() -> list[Path]:
    """Return the notebooks of the collection, in order."""
    paths = sorted(path for path in (ROOT / "notebooks").iterdir() if NAME.fullmatch(path.name))
    for path in paths:
        cells = nbformat.read(path, as_version=4).cells
        if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith("# "):
            raise NotebookError(f"{path}: expected a Markdown cell with the title at the top.")
    return paths


def standalone(notebook, name: str) -> nbformat.NotebookNode:
    """Return a copy of the notebook with a first cell that carries what it needs."""
    parts = []
    for file_name, file in carried_files(notebook).items():
        text = file.read_text(encoding="utf-8")
        if "'''" in text or text.endswith("\\"):
            raise NotebookError(f"{file}: expected text that fits between r''' and '''.")
        parts.append(f"files[\"{file_name}\"] = r'''{text}'''")
    cell = nbformat.v4.new_code_cell(CARRIER.format(files="\n".join(parts)))
    cell.id = f"{name[:2]}-files"
    copied = nbformat.from_dict(notebook)
    copied.cells = [cell, *copied.cells]
    cell.metadata = nbformat.from_dict(COLLAPSED | {"built": fingerprint(copied)})
    return copied


def fingerprint(notebook) -> str:
    """Return a sum over everything a user can change, to tell a built copy from an edited one."""
    content = [[c.cell_type, c.source, c.get("outputs")] for c in notebook.cells]
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


def refuse_to_replace(path: Path) -> None:
    """Raise NotebookError if there is a file that is not, as it was built, a copy of ours."""
    if not path.exists():
        return
    try:
        notebook = nbformat.read(path, as_version=4)
        untouched = notebook.cells[0].metadata.get("built") == fingerprint(notebook)
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

    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    training = f"{user}/{slug(title('03', 'training'))}"
    return {
        "id": f"{user}/{slug(title(number, name))}",
        "title": title(number, name),
        "code_file": path.name,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_internet": False,
        "machine_shape": "NvidiaTeslaT4",
        "dataset_sources": ["hojjatk/mnist-dataset"],
        "kernel_sources": [training] if any("trained_model(" in s for s in sources) else [],
        "competition_sources": [],
        "model_sources": [],
    }


def build(target: Path, user: str = NO_USER) -> list[Path]:
    """Write every standalone notebook below ``target``; return the paths of all files.

    Raises NotebookError, before anything is written, if that would replace somebody's work.
    """
    files = {}
    for path in sources():
        copied = to_bytes(standalone(nbformat.read(path, as_version=4), path.name))
        folder = target / "kaggle" / path.stem
        metadata = json.dumps(kernel_metadata(path, user), indent=2) + "\n"
        files |= {target / path.name: copied, folder / path.name: copied}
        files[folder / "kernel-metadata.json"] = metadata.encode()
    for file in files:
        if file.suffix == ".ipynb":
            refuse_to_replace(file)
    for file, content in files.items():
        write(file, content)
    return list(files)


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
        if file.parent == arguments.out:
            print(f"{file.relative_to(arguments.out.parent)}  {file.stat().st_size / 1000:.0f} kB")
    print(f"Kaggle: kaggle kernels push -p {arguments.out.name}/kaggle/NN_name")
    if arguments.kaggle_user == NO_USER:
        print("        (after: make standalone KAGGLE_USER=your-name)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
