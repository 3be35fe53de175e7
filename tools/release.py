"""Put together what a release offers for download, into dist/release.

    python -m tools.release owner/name

standalone.zip holds the notebooks that need no other file, also with Kaggle's metadata;
class.zip the core, 01 to 04, with outputs for whoever teaches and without for whoever learns, and
the solutions to its exercises;
modelku.pth is what notebook 03 has left in outputs/, with its SHA-256 beside it, and again under
a name of its own, by which published copies of the notebooks ask for the very one they know.
"""

import argparse
import hashlib
import io
import sys
import zipfile

import nbformat

from tools import standalone
from tools.standalone import ROOT

CORE = ("01", "02", "03", "04")


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip archive of these files, the same bytes each time."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return archive.getvalue()


def files_of_release(repo: str) -> dict[str, bytes]:
    """Return the content of each file; raise NotebookError where modelku.pth is missing."""
    model = ROOT / "outputs" / "modelku.pth"
    if not model.is_file():
        raise standalone.NotebookError(f"{model}: not found. Notebook 03 makes it: make run")
    copies = standalone.copies(repo=repo)
    lessons = {}
    for name in (name for name in copies if name.removeprefix("solutions/").startswith(CORE)):
        if name.startswith("solutions/"):
            lessons[name] = copies[name]
            continue
        notebook = nbformat.reads(copies[name].decode(), as_version=4)
        lessons[f"with_outputs/{name}"] = copies[name]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        lessons[f"without_outputs/{name}"] = standalone.to_bytes(notebook)
    content = model.read_bytes()
    return {
        "standalone.zip": zipped(copies),
        "class.zip": zipped(lessons),
        "modelku.pth": content,
        standalone.name_by_content(content): content,
        "modelku.pth.sha256": f"{hashlib.sha256(content).hexdigest()}  modelku.pth\n".encode(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", type=standalone.repository, help="owner/name on GitHub")
    try:
        files = files_of_release(parser.parse_args().repo)
    except standalone.NotebookError as error:
        print(error)
        return 1
    for name, content in files.items():
        standalone.write(ROOT / "dist" / "release" / name, content)
        print(f"dist/release/{name}  {len(content) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
