"""Every notebook runs alone: on Kaggle, on Colab, and where there is nothing at all.

The platforms are simulated without root rights. A standalone notebook is built from the
source; in its text /kaggle becomes a temporary tree, and the mirrors' addresses become a
server on this machine. A sitecustomize.py that every Python started there loads refuses all
connections but those to this machine, and on "Colab" provides the module google.colab.
"""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement

import utils
from tools import publish, standalone, test_versions

NAMES = ["01_idx_files", "02_model", "03_training", "04_evaluation", "05_your_handwriting",
         "06_speed"]  # fmt: skip
every_notebook = pytest.mark.parametrize("name", NAMES)

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

    def __init__(self, top: Path, colab=False, mirror=None):
        self.top, self.mirror = top, mirror
        self.work = top / ("content" if colab else "kaggle/working")
        self.input = top / "kaggle" / "input"
        site, home = top / "site", top / "home"
        for folder in (self.work, site, home):
            folder.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(SITE.replace("COLAB", str(colab)))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MNIST_", "KAGGLE_"))}
        self.environment = kept | {
            "HOME": str(home), "PYTHONPATH": str(site), "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "",
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
        notebook = standalone.standalone(source, name)
        text = nbformat.writes(notebook).replace("/kaggle", str(self.top / "kaggle"))
        if self.mirror:
            text = re.sub(r"https://(ossci|storage)[\w./-]+/mnist/", self.mirror, text)
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
    files = utils.mnist_files(mnist)
    return {f"{name.replace('.', '-')}/{name.replace('.', '-')}": files[name] for name in files}


MOUNTS = {
    "old": ("mnist-dataset", "handwritten-digits-03-training"),
    "new": ("datasets/hojjatk/mnist-dataset", "notebooks/someone/handwritten-digits-03-training"),
}


@pytest.fixture(scope="session")
def trained(mnist, tmp_path_factory):
    """A run of notebook 03 on "Kaggle", old mounts: what it printed and its working folder."""
    platform = Platform(tmp_path_factory.mktemp("kaggle-03"))
    platform.attach(MOUNTS["old"][0], nested(mnist))
    return platform.run("03_training"), platform.work


# ----------------------------------------------------------------- Kaggle


@pytest.mark.slow
@pytest.mark.parametrize("layout", MOUNTS)
@pytest.mark.parametrize("name", ["01_idx_files", "02_model"])
def test_first_notebooks_on_kaggle(mnist, tmp_path, name, layout):
    platform = Platform(tmp_path)
    platform.attach(MOUNTS[layout][0], nested(mnist))
    platform.run(name)
    assert [path.name for path in platform.work.iterdir() if path.is_file()] == ["utils.py"]


@pytest.mark.slow
def test_training_on_kaggle(trained):
    printed, work = trained
    assert "epoch 10" in printed
    names = sorted(path.name for path in work.iterdir() if path.is_file())
    assert names == ["03_study.json", "modelku.pth", "utils.py"]
    utils.load_checkpoint(work / "modelku.pth", utils.MnistClassifier())


@pytest.mark.slow
def test_evaluation_on_kaggle_with_the_attached_training(mnist, tmp_path, trained):
    platform = Platform(tmp_path)
    platform.attach(MOUNTS["new"][0], nested(mnist))
    platform.attach(MOUNTS["new"][1], {"modelku.pth": trained[1] / "modelku.pth"})
    assert "Loaded modelku.pth, trained for 10 epochs." in platform.run("04_evaluation")
    assert [path.name for path in platform.work.glob("*.pth")] == []


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", ["03_training", "04_evaluation"])
def test_the_other_mounts(mnist, tmp_path, trained, name):
    """Notebooks 03 and 04 with the mounts that they do not meet in the tests above."""
    layout = "new" if name == "03_training" else "old"
    platform = Platform(tmp_path)
    platform.attach(MOUNTS[layout][0], nested(mnist))
    if name == "04_evaluation":
        platform.attach(MOUNTS[layout][1], {"modelku.pth": trained[1] / "modelku.pth"})
    platform.run(name)


# ------------------------------------------------------------------ Colab


@pytest.fixture(scope="session")
def mirror(mnist):
    """A web server on this machine with MNIST as the mirrors have it; yields its address."""
    files = utils.mnist_files(mnist)

    def packed(path):
        squeeze = zlib.compressobj(6, zlib.DEFLATED, 31)
        return squeeze.compress(path.read_bytes()) + squeeze.flush()

    bodies = {f"/{name.replace('.', '-')}.gz": packed(path) for name, path in files.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = bodies.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


# 03 and 04 meet Kaggle in the tests above; 05 trains on Colab what 04 and 06 would train.
LONG = {"03_training", "04_evaluation", "06_speed"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.thorough] * (name in LONG)) for name in NAMES],
)
def test_on_colab(mirror, tmp_path, name):
    """Nothing but the notebook: MNIST is downloaded, and 04 to 06 train what they need."""
    platform = Platform(tmp_path, colab=True, mirror=mirror)
    printed = platform.run(name)
    found = {path.name for path in platform.work.iterdir() if path.is_file()}
    assert set(utils.MNIST_FILES) | {"utils.py"} <= found
    results = {
        "03_training": ["modelku.pth"],
        "04_evaluation": ["quick_model.pth"],
        "05_your_handwriting": ["draw.html", "photos", "quick_model.pth"],
        "06_speed": ["quick_model.pth"],
    }
    assert sorted(p.name for p in platform.work.glob("outputs/*")) == results.get(name, [])
    if "quick_model.pth" in results.get(name, []):
        assert "No modelku.pth found: training for 1 epoch" in printed
        again = subprocess.run(
            [sys.executable, "-c", "import utils; utils.trained_model()"],
            cwd=platform.work, env=platform.environment, capture_output=True, text=True,
        )  # fmt: skip
        assert "Loaded quick_model.pth, trained for 1 epoch." in again.stdout


# ---------------------------------------------------------------- nothing


@pytest.mark.slow
@every_notebook
def test_with_neither_data_nor_network(tmp_path, name):
    platform = Platform(tmp_path)
    platform.attach("something-else", {"train.csv": Path(__file__)})
    with pytest.raises(CellExecutionError) as caught:
        platform.run(name)
    message = str(caught.value)
    for part in ("FileNotFoundError", "MNIST was not found and could not be downloaded",
                 "there is no network in this test", "Add Input > hojjatk/mnist-dataset",
                 "On Colab:", "Elsewhere: put"):  # fmt: skip
        assert part in message, part
    assert re.search(r"pip could not get it: \w", message)  # no colour codes instead of a reason
    brought = {"utils.py", "03_study.json", "05_draw.html", "06_study.json", "data"}
    assert {path.name for path in platform.work.iterdir()} <= brought
    assert not list(platform.work.glob("data/*"))


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


# ------------------------------------------------------------- standalone


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


# ---------------------------------------------------------------- publish


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository with a copy of what publishing reads and writes."""
    if not shutil.which("git"):
        pytest.skip("git is not installed, so publishing was not tried")
    root = tmp_path / "checkout"
    shutil.copytree(utils.ROOT / "notebooks", root / "notebooks")
    for name in ("utils.py", "README.md"):
        shutil.copy(utils.ROOT / name, root)
    for kind in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{kind}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{kind}_EMAIL", "somebody@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # whatever the user's own may say
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another" / ".git"))  # as in a git hook
    monkeypatch.setattr(publish, "ROOT", root)
    monkeypatch.setattr(standalone, "ROOT", root)
    publish.git("init", "--quiet", "--initial-branch=main")
    publish.git("add", ".")
    publish.git("commit", "--quiet", "-m", "start")
    return root


def run_publish(monkeypatch, repo) -> int:
    monkeypatch.setattr(sys, "argv", ["publish.py", repo])
    return publish.main()


def linked_files(text, repo) -> list[str]:
    """The paths on the branch that the badges in a text open."""
    pattern = rf"\]\(https://[^)]*/{re.escape(repo)}/blob/{publish.BRANCH}/([^)]+)\)"
    assert text.count("[![Open in ") == len(re.findall(pattern, text))
    return re.findall(pattern, text)


def test_every_badge_opens_a_file_of_the_branch(checkout, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in checkout.rglob("notebooks/*")}
    for repo in ("someone/digits", "someone/digits", "else/where"):  # again, and moved
        assert run_publish(monkeypatch, repo) == 0
        files = publish.git("ls-tree", "-r", "--name-only", publish.BRANCH).splitlines()
        pages = {"README.md": (checkout / "README.md").read_text()}
        for name in NAMES:
            notebook = nbformat.read(checkout / "notebooks" / f"{name}.ipynb", as_version=4)
            pages[name] = notebook.cells[0].source
            assert linked_files(pages[name], repo) == [f"{name}.ipynb"] * 2
            shown = nbformat.reads(
                publish.git("show", f"{publish.BRANCH}:{name}.ipynb"), as_version=4
            )
            assert shown.cells[1].source == pages[name]  # the copies have the badges too
        linked = {file for page in pages.values() for file in linked_files(page, repo)}
        assert linked == {f"{name}.ipynb" for name in NAMES}
        assert linked_files(pages["README.md"], repo) == [f for f in sorted(linked) for _ in "12"]
        assert sorted(linked) == sorted(files)
    assert "nothing new" in capsys.readouterr().out  # the second of the three
    assert publish.git("rev-list", "--count", publish.BRANCH) == "2"
    assert publish.git("branch", "--show-current") == "main"
    assert publish.git("diff", "--cached", "--name-only") == ""
    study = checkout / "notebooks" / "03_study.json"
    assert study.read_bytes() == before[study]


def test_publish_refuses_what_is_no_repository_name(checkout, monkeypatch, capsys):
    for repo in ("digits", "a/b/c", "https://x/y", ""):
        assert run_publish(monkeypatch, repo) == 2
        assert "REPO: expected owner/name, found" in capsys.readouterr().out
    assert publish.git("status", "--porcelain") == ""


def refused(checkout, monkeypatch, capsys, message, repo="someone/digits"):
    """Publishing says this, and leaves pages and branches as they were."""
    before = publish.git("status", "--porcelain"), publish.git("show-ref")
    assert run_publish(monkeypatch, repo) == 1
    assert message in capsys.readouterr().out
    assert (publish.git("status", "--porcelain"), publish.git("show-ref")) == before


def test_publish_refuses_a_branch_that_is_in_use(checkout, monkeypatch, capsys):
    publish.git("switch", "--quiet", "-c", publish.BRANCH)
    refused(checkout, monkeypatch, capsys, "is checked out: switch to another one")


def test_publish_refuses_somebody_elses_branch(checkout, monkeypatch, capsys):
    publish.git("branch", publish.BRANCH)  # with all of main's files
    refused(checkout, monkeypatch, capsys, "expected a branch with nothing but standalone")


def test_publish_needs_an_identity(checkout, monkeypatch, capsys):
    for kind in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{kind}_NAME")
        monkeypatch.delenv(f"GIT_{kind}_EMAIL")
    publish.git("config", "user.useConfigOnly", "true")
    refused(checkout, monkeypatch, capsys, "commit-tree")


def test_publish_needs_its_row_in_the_table(checkout, monkeypatch, capsys):
    readme = checkout / "README.md"
    readme.write_text(readme.read_text().replace("| [`02_model`]", "| Model: [`02_model`]"))
    refused(checkout, monkeypatch, capsys, "that starts with a link to notebooks/02_model.ipynb")


def test_publish_leaves_other_badges_and_line_ends_alone(checkout, monkeypatch):
    readme = checkout / "README.md"
    mine = "[![Open in Colab](a.svg)](https://colab.research.google.com/github/me/x/blob/main/a)"
    with open(readme, "w", newline="") as file:
        file.write((f"{mine}\n\n" + (utils.ROOT / "README.md").read_text()).replace("\n", "\r\n"))
    assert run_publish(monkeypatch, "someone/digits") == 0
    text = readme.read_bytes().decode()
    assert text.startswith(f"{mine}\r\n\r\n# ") and text.count("\n") == text.count("\r\n")
    assert text.count("/someone/digits/") == 2 * len(NAMES)


def test_publish_ignores_filters(checkout, monkeypatch):
    """Such as nbstripout's, which takes the outputs away."""
    (checkout / ".git" / "info" / "attributes").write_text("*.ipynb filter=strip\n")
    publish.git("config", "filter.strip.clean", "echo stripped")
    assert run_publish(monkeypatch, "someone/digits") == 0
    assert len(publish.git("show", f"{publish.BRANCH}:{NAMES[1]}.ipynb")) > 100_000


def test_publish_goes_on_from_what_is_on_the_server(checkout, monkeypatch, capsys, tmp_path):
    """So that its branch can be pushed without force, from a fresh clone too."""
    server = tmp_path / "server.git"
    publish.git("init", "--quiet", "--bare", str(server))
    publish.git("remote", "add", "origin", str(server))
    for repo in ("someone/digits", "else/where"):  # the second as if from a fresh clone
        assert run_publish(monkeypatch, repo) == 0
        publish.git("push", "--quiet", "origin", publish.BRANCH)
        publish.git("branch", "-D", publish.BRANCH)
        publish.git("fetch", "--quiet")
    publish.git("branch", publish.BRANCH, f"origin/{publish.BRANCH}~1")  # one behind
    assert run_publish(monkeypatch, "third/place") == 0
    publish.git("push", "--quiet", "origin", publish.BRANCH)
    assert publish.git("rev-list", "--count", publish.BRANCH) == "3"
    publish.git("fetch", "--quiet")
    tree = publish.git("rev-parse", f"{publish.BRANCH}^{{tree}}")
    other = publish.git("commit-tree", tree, "-p", f"{publish.BRANCH}~1", "-m", "another")
    publish.git("update-ref", f"refs/heads/{publish.BRANCH}", other)
    publish.git("restore", ".")
    refused(checkout, monkeypatch, capsys, "have gone different ways", "fourth/one")


def test_no_badge_points_anywhere_unless_published():
    """Whoever publishes commits both kinds of page, so they agree on the repository."""
    texts = [(utils.ROOT / "README.md").read_text(encoding="utf-8")]
    for name in NAMES:
        notebook = nbformat.read(utils.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        texts.append(notebook.cells[0].source)
    repos = [set(re.findall(r"([\w.-]+/[\w.-]+)/blob/standalone/", text)) for text in texts]
    assert all(found == repos[0] for found in repos) and len(repos[0]) <= 1


# ----------------------------------------------------------- requirements

PLATFORMS = {  # what Colab had in August 2026, and Kaggle's newest torch known to us
    "colab": {"torch": "2.11.0", "torchvision": "0.26.0", "numpy": "2.1.3"},
    "kaggle": {"torch": "2.10.0"},
}


def requirements() -> list[Requirement]:
    lines = (utils.ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nothing_is_pinned_over_the_platform(platform):
    for requirement in requirements():
        assert all(part.operator == ">=" for part in requirement.specifier), requirement
        version = PLATFORMS[platform].get(requirement.name)
        assert version is None or version in requirement.specifier, requirement


def test_python_versions_of_the_platforms_are_supported():
    """The code is checked against the oldest Python that the Makefile admits."""
    makefile = (utils.ROOT / "Makefile").read_text()
    oldest = re.search(r"sys\.version_info < \((\d+), (\d+)\)", makefile).groups()
    target = re.search(
        r'target-version = "py(\d)(\d+)"', (utils.ROOT / "pyproject.toml").read_text()
    )
    assert oldest == target.groups() == ("3", "10")  # Kaggle has 3.12, Colab 3.13
    assert ".".join(oldest) == test_versions.OLDEST_PYTHON


def test_workflow_runs_the_tests_on_pushes_and_weekly():
    text = (utils.ROOT / ".github" / "workflows" / "tests.yml").read_text()
    workflow = yaml.safe_load(text)
    events = workflow[True]  # YAML 1.1 reads the key "on" as true
    assert "push" in events and publish.BRANCH in events["push"]["branches-ignore"]
    assert re.fullmatch(r"\d+ \d+ \* \* \d", events["schedule"][0]["cron"])
    jobs = workflow["jobs"]
    tests, refresh = (
        [step.get("run", "") for step in jobs[name]["steps"]] for name in ("tests", "standalone")
    )
    assert "make test" in tests and jobs["tests"]["permissions"] == {"contents": "read"}
    assert "make publish REPO=${{ github.repository }}" in refresh[-1]
    assert f"git push origin {publish.BRANCH}" in refresh[-1]
    assert jobs["standalone"]["needs"] == "tests" and "'schedule'" in jobs["standalone"]["if"]
