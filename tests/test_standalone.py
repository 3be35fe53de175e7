"""Notebooks that need no other file: what is built, and the first cell that finds utils.py."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import nbformat
import pytest

import utils
from tools import standalone

NAMES = [path.stem for path in standalone.sources()]
SOLUTIONS = [f"solutions/{path.stem}" for path in standalone.sources("solutions")]
every_notebook = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    standalone.build(folder, "someone")
    return folder


@pytest.mark.parametrize("name", NAMES + SOLUTIONS)
def test_standalone_is_the_source_with_one_cell_more(dist, name):
    source = nbformat.read(utils.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    on_kaggle = [] if name in SOLUTIONS else [dist / "kaggle" / name / f"{name}.ipynb"]
    for path in (dist / f"{name}.ipynb", *on_kaggle):
        built = nbformat.read(path, as_version=4)
        nbformat.validate(built)
        carrier = built.cells.pop(1)  # under the title
        assert carrier.metadata.jupyter.source_hidden
        expected = standalone.with_advice(source, "run the cell under the title first")
        assert built == expected
        sources = zip(source.cells, expected.cells)
        changed = [(old.source, new.source) for old, new in sources if old != new]
        assert len(changed) == 1 and changed[0][0].startswith("import sys\n")
        assert path.stat().st_size < 1_000_000


def run_code(cell, folder):
    # By standard input: Windows admits no command line of this length.
    return subprocess.run(
        [sys.executable, "-"], input=cell, cwd=folder, capture_output=True, encoding="utf-8"
    )


def run_carrier(dist, folder, name="03_training"):
    cell = nbformat.read(dist / f"{name}.ipynb", as_version=4).cells[1].source
    return run_code(cell, folder)


def test_the_carrying_cell_writes_the_very_files(dist, tmp_path):
    study = (utils.ROOT / "notebooks" / "03_study.json").read_text(encoding="utf-8")
    for _ in range(2):  # a second time finds them in place
        done = run_carrier(dist, tmp_path)
        assert re.fullmatch(r"Wrote utils.py \(\d\d kB\), 03_study.json \(\d kB\)\n", done.stdout)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["03_study.json", "utils.py"]
        assert (tmp_path / "utils.py").read_bytes() == (utils.ROOT / "utils.py").read_bytes()
        carried = (tmp_path / "03_study.json").read_text(encoding="utf-8")
        assert json.loads(carried) == json.loads(study) and len(carried) < len(study)


@every_notebook
def test_a_stranger_sees_what_the_carrying_cell_is(dist, name):
    """It says first what it does, where it is from, and the licence, which copies must keep."""
    source = nbformat.read(dist / f"{name}.ipynb", as_version=4).cells[1].source
    opening, code = source.split("\n\n", 1)
    assert all(line.startswith("#") for line in opening.splitlines())
    assert re.search(r"^# They come from a collection of notebooks", opening, re.MULTILINE)
    licence = (utils.ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.split() == opening.split("#\n# ", 1)[1].replace("#", "").split()
    assert "urlopen" not in code and "fetches" not in opening  # only published copies, see below


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Builds published copies, in a tree where notebook 03 has left a network."""
    (tmp_path / "outputs").mkdir()
    for file in ("utils.py", "LICENSE"):
        shutil.copy(utils.ROOT / file, tmp_path)
    for folder in ("notebooks", "tools"):
        (tmp_path / folder).symlink_to(utils.ROOT / folder)
    monkeypatch.setattr(standalone, "ROOT", tmp_path)
    (tmp_path / "outputs" / "modelku.pth").write_bytes(b"a network")

    def build(name):
        path = utils.ROOT / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        cells = standalone.standalone(notebook, name, "someone/digits").cells
        build.text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        return cells[1].source

    return build


def test_links_of_a_published_copy_lead_to_the_branch(published):
    """Colab and Kaggle show a notebook alone: what lies beside it on GitHub is not there."""
    assert published("01_idx_files").count("](") == 0  # the cell that carries files has none
    branch = "https://github.com/someone/digits/blob/standalone"
    assert f"]({branch}/solutions/01_idx_files.ipynb)" in published.text
    published("solutions/01_idx_files")
    assert f"]({branch}/01_idx_files.ipynb)" in published.text


@pytest.mark.long
def test_a_solution_carries_what_it_uses(dist, tmp_path):
    """Of its notebook only what that defines, without pictures; and it finds it."""
    done = run_carrier(dist, tmp_path, "solutions/01_idx_files")
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert files == {"utils.py", "tools/notebook_code.py", "notebooks/01_idx_files.ipynb"}
    code = "from tools.notebook_code import definitions; definitions('01_idx_files').check_3"
    assert run_code(code, tmp_path).returncode == 0
    carried = nbformat.read(tmp_path / "notebooks" / "01_idx_files.ipynb", as_version=4)
    assert all("definitions" in cell.metadata.tags for cell in carried.cells)


def test_a_published_copy_fetches_the_network_of_the_release(tmp_path, published):
    """From the release, the very file that it was made with, unless the reader has one."""
    assert "urlopen" not in published("02_model")
    source = published("04_evaluation")
    url = re.search(r'"(https://github[^"]*)"', source)[1]
    assert f"# {url}\n" in source.split("\n\n")[0]  # a stranger is told at the top
    name = standalone.name_by_content(b"a network")
    assert url == f"https://github.com/someone/digits/releases/download/notebooks/{name}"

    there, work = tmp_path / "there.pth", tmp_path / "work"
    work.mkdir()
    source = source.replace(url, there.as_uri())
    source = source.replace("/kaggle", (tmp_path / "kaggle").as_posix())

    def run():
        done = run_code(source, work)
        assert done.returncode == 0, done.stderr
        assert (work / "utils.py").is_file() and not list(work.glob(".unfinished*"))
        return done.stdout

    fetched = work / "published_modelku.pth"
    assert "not fetched (is the internet off?)" in run() and not fetched.exists()
    for wrong in (b"<html>another file</html>", b"a network" + b"!" * 1_000_000):
        there.write_bytes(wrong)
        assert "another file than the one" in run() and not fetched.exists()
    there.write_bytes(b"a network")
    assert "Fetched published_modelku.pth" in run() and fetched.read_bytes() == b"a network"
    there.unlink()
    assert "Fetched" in run()  # it is there already
    fetched.write_bytes(b"that of an older copy")
    there.write_bytes(b"a network")
    assert "Fetched" in run() and fetched.read_bytes() == b"a network"

    own = [work / "modelku.pth", work / "outputs" / "modelku.pth"]
    own.append(tmp_path / "kaggle" / "input" / "notebooks" / "me" / "03" / "modelku.pth")
    fetched.unlink()
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"my own")
        assert "etched" not in run() and not fetched.exists()
        path.unlink()


def test_a_download_that_breaks_off_leaves_the_rest_at_work(tmp_path, published):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"9\r\na net")  # nine bytes were announced

        def log_message(self, *arguments):
            pass

    source, work = published("04_evaluation"), tmp_path / "work"
    work.mkdir()
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        done = run_code(re.sub(r'"https://github[^"]*"', f'"{here}"', source), work)
    assert done.returncode == 0 and "was not fetched" in done.stdout, done.stderr
    assert (work / "utils.py").is_file()


def test_what_does_not_fit_into_a_cell_is_refused(tmp_path, published):
    (tmp_path / "utils.py").write_bytes(b"# it ends in a quote '")
    with pytest.raises(standalone.NotebookError, match="fits between"):
        published("01_idx_files")


def test_the_commit_is_one_of_this_repository(tmp_path, monkeypatch):
    """And not of one that happens to lie around an unpacked download; nor do git's signatures
    or other extras become part of the cell."""
    if not shutil.which("git"):
        pytest.skip("git is not installed, so no commit was looked up")
    monkeypatch.setattr(standalone, "ROOT", tmp_path)
    for command in ("init --quiet", "add .", "-c user.name=A -c user.email=a@b commit -qm 1"):
        (tmp_path / "inner").mkdir(exist_ok=True)
        (tmp_path / "inner" / "utils.py").write_bytes(b"pass")
        standalone.git(*command.split())
    file = tmp_path / "inner" / "utils.py"
    assert re.fullmatch(r"https://github.com/o/n, commit \w+ of [\d-]+",
                        standalone.origin("o/n", [file]))  # fmt: skip
    file.write_bytes(b"changed")
    assert standalone.origin("o/n", [file]).endswith(", with changes")
    monkeypatch.setattr(standalone, "ROOT", tmp_path / "inner")
    assert standalone.origin("o/n", [file]) == "https://github.com/o/n"


@pytest.mark.parametrize("name", ["utils.py", "03_study.json"])
def test_the_carrying_cell_replaces_nothing(dist, tmp_path, name):
    (tmp_path / name).write_text("mine")
    done = run_carrier(dist, tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"FileExistsError: {tmp_path / name}: expected no such file")
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    assert not list(tmp_path.glob(".unfinished*"))


@every_notebook
def test_kernel_metadata(dist, name):
    """The rules of Kaggle's command line: the slug follows from a title of 5 to 50 letters."""
    folder = dist / "kaggle" / name
    metadata = json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))
    user, slug = metadata["id"].split("/")
    assert user == "someone"
    assert 5 <= len(metadata["title"]) <= 50
    assert slug == re.sub(r"[^a-z0-9]+", "-", metadata["title"].lower())
    assert (folder / metadata["code_file"]).is_file()
    assert (metadata["language"], metadata["kernel_type"]) == ("python", "notebook")
    assert metadata["enable_gpu"] is (name >= "03") and metadata["enable_internet"] is False
    assert ("machine_shape" in metadata) is metadata["enable_gpu"]
    clothes = ["zalando-research/fashionmnist"] if name == "09_scaling_out" else []
    assert metadata["dataset_sources"] == ["hojjatk/mnist-dataset", *clothes]
    other = ["someone/handwritten-digits-03-training"] if "04" <= name < "08" or name > "10" else []
    assert metadata["kernel_sources"] == other
    training = json.loads(
        (dist / "kaggle/03_training/kernel-metadata.json").read_text(encoding="utf-8")
    )
    assert set(other) <= {training["id"]}


@pytest.mark.long
def test_edited_copies_are_not_replaced(tmp_path):
    standalone.build(tmp_path)
    standalone.build(tmp_path, "another")  # untouched ones are
    folder = tmp_path / "kaggle" / NAMES[3]

    def edit_cell():
        path = folder / f"{NAMES[3]}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[5].source += "\n# my exercise"
        nbformat.write(notebook, path)

    def edit_metadata():
        path = folder / "kernel-metadata.json"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"is_private": true', '"is_private": false'), encoding="utf-8")

    for edit in (edit_cell, edit_metadata):
        before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
        edit()
        listing = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
        with pytest.raises(standalone.NotebookError, match="somebody has changed or made"):
            standalone.build(tmp_path, "third")
        assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == listing != before
        for path, content in before.items():
            path.write_bytes(content)


def test_the_sources_are_not_replaced(tmp_path, monkeypatch):
    shutil.copytree(utils.ROOT / "notebooks", tmp_path / "notebooks")
    for name in ("utils.py", "LICENSE"):
        shutil.copy(utils.ROOT / name, tmp_path)
    shutil.copytree(utils.ROOT / "tools", tmp_path / "tools")
    monkeypatch.setattr(standalone, "ROOT", tmp_path)
    with pytest.raises(standalone.NotebookError):
        standalone.build(tmp_path / "notebooks")


def test_other_notebooks_are_left_alone(tmp_path, monkeypatch):
    shutil.copytree(utils.ROOT / "notebooks", tmp_path / "notebooks")
    for name in ("utils.py", "LICENSE"):
        shutil.copy(utils.ROOT / name, tmp_path)
    shutil.copytree(utils.ROOT / "tools", tmp_path / "tools")
    monkeypatch.setattr(standalone, "ROOT", tmp_path)
    for name in ("Untitled.ipynb", "my_notes.ipynb"):
        (tmp_path / "notebooks" / name).write_text("private", encoding="utf-8")
    standalone.build(tmp_path / "dist")
    assert [path.stem for path in sorted((tmp_path / "dist").glob("*.ipynb"))] == NAMES
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebooks" / "09_empty.ipynb")
    with pytest.raises(standalone.NotebookError, match="09_empty.ipynb: expected a Markdown cell"):
        standalone.build(tmp_path / "dist")


def test_make_standalone_refuses_a_strange_user(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["standalone.py", "--kaggle-user", "a/b"])
    assert standalone.main() == 2
    assert "KAGGLE_USER: expected a user name, found 'a/b'" in capsys.readouterr().out


@pytest.mark.long
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
    code = first_cell().replace("/kaggle", kaggle.as_posix()) + "\nprint(utils.__file__)"
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
    assert said.startswith("AssertionError: utils.py is missing: ")
    assert "make" not in said and "terminal" not in said


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
