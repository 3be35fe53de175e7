"""Notebooks that need no other file: what is built, and the first cell that finds utils.py."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

import utils
from tools import standalone

NAMES = [path.stem for path in standalone.sources()]
every_notebook = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    standalone.build(folder, "someone")
    return folder


@every_notebook
def test_standalone_is_the_source_with_one_cell_more(dist, name):
    source = nbformat.read(utils.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for path in (dist / f"{name}.ipynb", dist / "kaggle" / name / f"{name}.ipynb"):
        built = nbformat.read(path, as_version=4)
        nbformat.validate(built)
        assert built.cells[1:] == source.cells and built.metadata == source.metadata
        assert built.cells[0].metadata.jupyter.source_hidden
        assert path.stat().st_size < 1_000_000


def run_carrier(dist, folder, name="03_training"):
    cell = nbformat.read(dist / f"{name}.ipynb", as_version=4).cells[0].source
    return subprocess.run([sys.executable, "-c", cell], cwd=folder, capture_output=True, text=True)


def test_the_carrying_cell_writes_the_very_files(dist, tmp_path):
    for _ in range(2):  # a second time finds them in place
        assert run_carrier(dist, tmp_path).returncode == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["03_study.json", "utils.py"]
        for name, source in (
            ("utils.py", "utils.py"),
            ("03_study.json", "notebooks/03_study.json"),
        ):
            assert (tmp_path / name).read_bytes() == (utils.ROOT / source).read_bytes()


@pytest.mark.parametrize("name", ["utils.py", "03_study.json"])
def test_the_carrying_cell_replaces_nothing(dist, tmp_path, name):
    (tmp_path / name).write_text("mine")
    done = run_carrier(dist, tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"FileExistsError: {tmp_path / name}: expected no such file")
    assert (tmp_path / name).read_text() == "mine"
    assert not list(tmp_path.glob(".unfinished*"))


@every_notebook
def test_kernel_metadata(dist, name):
    """The rules of Kaggle's command line: the slug follows from a title of 5 to 50 letters."""
    folder = dist / "kaggle" / name
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    user, slug = metadata["id"].split("/")
    assert user == "someone"
    assert 5 <= len(metadata["title"]) <= 50
    assert slug == re.sub(r"[^a-z0-9]+", "-", metadata["title"].lower())
    assert (folder / metadata["code_file"]).is_file()
    assert (metadata["language"], metadata["kernel_type"]) == ("python", "notebook")
    assert metadata["enable_gpu"] is True and metadata["enable_internet"] is False
    assert metadata["dataset_sources"] == ["hojjatk/mnist-dataset"]
    other = ["someone/handwritten-digits-03-training"] if name >= "04" else []
    assert metadata["kernel_sources"] == other
    training = json.loads((dist / "kaggle/03_training/kernel-metadata.json").read_text())
    assert set(other) <= {training["id"]}


def test_edited_copies_are_not_replaced(tmp_path):
    standalone.build(tmp_path)
    standalone.build(tmp_path, "another")  # untouched ones are
    path = tmp_path / "kaggle" / NAMES[3] / f"{NAMES[3]}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[5].source += "\n# my exercise"
    nbformat.write(notebook, path)
    listing = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    with pytest.raises(standalone.NotebookError, match="somebody has changed or made"):
        standalone.build(tmp_path, "third")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == listing


def test_the_sources_are_not_replaced(tmp_path, monkeypatch):
    shutil.copytree(utils.ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(utils.ROOT / "utils.py", tmp_path)
    monkeypatch.setattr(standalone, "ROOT", tmp_path)
    with pytest.raises(standalone.NotebookError):
        standalone.build(tmp_path / "notebooks")


def test_other_notebooks_are_left_alone(tmp_path, monkeypatch):
    shutil.copytree(utils.ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(utils.ROOT / "utils.py", tmp_path)
    monkeypatch.setattr(standalone, "ROOT", tmp_path)
    for name in ("Untitled.ipynb", "my_notes.ipynb"):
        (tmp_path / "notebooks" / name).write_text("private")
    standalone.build(tmp_path / "dist")
    assert [path.stem for path in sorted((tmp_path / "dist").glob("*.ipynb"))] == NAMES
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebooks" / "09_empty.ipynb")
    with pytest.raises(standalone.NotebookError, match="09_empty.ipynb: expected a Markdown cell"):
        standalone.build(tmp_path / "dist")


def test_make_standalone_refuses_a_strange_user(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["standalone.py", "--kaggle-user", "a/b"])
    assert standalone.main() == 2
    assert "KAGGLE_USER: expected a user name, found 'a/b'" in capsys.readouterr().out


def test_building_needs_no_pytorch():
    """Nobody installs 6 GB to copy a notebook that shall run elsewhere."""
    code = "import sys, tools.publish; assert not {'torch', 'numpy', 'utils'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, check=True)


# ------------------------------------------------------------- first cell


def first_cell() -> str:
    cells = nbformat.read(utils.ROOT / "notebooks" / f"{NAMES[0]}.ipynb", as_version=4).cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


def run_first_cell(cwd, kaggle, path=()) -> str:
    """Run it in a fresh Python; return where utils came from, or the error's last line."""
    code = first_cell().replace("/kaggle", str(kaggle)) + "\nprint(utils.__file__)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    return (done.stdout or done.stderr).strip().splitlines()[-1]


@pytest.fixture
def somewhere(tmp_path):
    for folder in ("work/deep", "kaggle/input", "kaggle/usr/lib", "path"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def test_first_cell_without_any_utils(somewhere):
    said = run_first_cell(somewhere / "work", somewhere / "kaggle")
    assert said.startswith("AssertionError: utils.py not found: open the copy of this notebook")


@pytest.mark.parametrize(
    "place",
    ["work", "work/deep", "kaggle/usr/lib/utils", "kaggle/usr/lib/notebooks/someone/utils",
     "kaggle/input/digits", "kaggle/input/datasets/someone/digits/deep"],
)  # fmt: skip
def test_first_cell_finds_ours_and_no_foreign_one(somewhere, place):
    """Foreign modules of the name lie on the path, in the working folder and on Kaggle."""
    (somewhere / place).mkdir(parents=True, exist_ok=True)
    (somewhere / place / "utils.py").write_text("class MnistClassifier: 'stands for ours'")
    work = somewhere / "work" / "deep"
    for folder in (work, somewhere / "kaggle" / "usr" / "lib" / "a", somewhere / "path"):
        folder.mkdir(exist_ok=True)
        if not (folder / "utils.py").exists():
            (folder / "utils.py").write_text("raise ImportError('a foreign module')")
    found = run_first_cell(work, somewhere / "kaggle", [somewhere / "path"])
    assert found == str(somewhere / place / "utils.py")
