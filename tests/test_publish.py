"""The branch that holds the standalone notebooks, and badges that open it."""

import hashlib
import re
import shutil
import sys
import zipfile

import nbformat
import pytest

import utils
from tools import publish, release, standalone

pytestmark = pytest.mark.long
NAMES = [path.stem for path in standalone.sources()]
SOLUTIONS = [f"solutions/{path.stem}" for path in standalone.sources("solutions")]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository with a copy of what publishing reads and writes."""
    if not shutil.which("git"):
        pytest.skip("git is not installed, so publishing was not tried")
    root = tmp_path / "checkout"
    for folder in ("notebooks", "tools"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(utils.ROOT / folder, root / folder, ignore=ignored)
    for name in ("utils.py", "README.md", "LICENSE"):
        shutil.copy(utils.ROOT / name, root)
    for kind in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{kind}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{kind}_EMAIL", "somebody@example.org")
    (tmp_path / "gitconfig").touch()  # whatever the user's own may say
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
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
    # But for the README's two at its head, which open the branch itself.
    text = re.sub(rf"(?m)^\[!\[Open in .*\]\(\.\./\.\./tree/{publish.BRANCH}\)$", "", text)
    assert text.count("[![Open in ") == len(re.findall(pattern, text))
    return re.findall(pattern, text)


def test_every_badge_opens_a_file_of_the_branch(checkout, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in checkout.rglob("notebooks/*.json")}
    for repo in ("someone/digits", "someone/digits", "else/where"):  # again, and moved
        assert run_publish(monkeypatch, repo) == 0
        files = publish.git("ls-tree", "-r", "--name-only", publish.BRANCH).splitlines()
        pages = {"README.md": (checkout / "README.md").read_text(encoding="utf-8")}
        for name in NAMES + SOLUTIONS:
            notebook = nbformat.read(checkout / "notebooks" / f"{name}.ipynb", as_version=4)
            pages[name] = notebook.cells[0].source
            assert linked_files(pages[name], repo) == [f"{name}.ipynb"] * 2
            shown = nbformat.reads(
                publish.git("show", f"{publish.BRANCH}:{name}.ipynb"), as_version=4
            )
            head = pages[name].split("\n\n")[:2]
            assert shown.cells[0].source.split("\n\n")[:2] == head  # the copies have the badges
            first = next(c.source for c in notebook.cells if c.cell_type == "code")
            assert f"missing: open https://github.com/{repo}/tree/{publish.BRANCH}" in first
            carrier = shown.cells[1].source
            assert re.search(rf"from https://github.com/{repo}, commit \w+ of 20\d\d-", carrier)
        copies = {file for page in pages.values() for file in linked_files(page, repo)}
        assert copies == {f"{name}.ipynb" for name in NAMES + SOLUTIONS}
        linked = {f"{name}.ipynb" for name in NAMES}
        assert linked_files(pages["README.md"], repo) == [f for f in sorted(linked) for _ in "12"]
        front = publish.git("show", f"{publish.BRANCH}:README.md")
        assert linked_files(front, repo) == [f for f in sorted(linked) for _ in "12"]
        assert set(re.findall(r"\]\((\d\d_\w+\.ipynb)\)", front)) == linked
        assert sorted([*copies, "LICENSE", "README.md"]) == sorted(files)
    assert "nothing new" in capsys.readouterr().out  # the second of the three
    assert publish.git("rev-list", "--count", publish.BRANCH) == "2"
    assert publish.git("branch", "--show-current") == "main"
    assert publish.git("diff", "--cached", "--name-only") == ""
    study = checkout / "notebooks" / "03_study.json"
    assert study.read_bytes() == before[study]


def test_publish_refuses_what_is_no_repository_name(checkout, monkeypatch, capsys):
    for repo in ("digits", "a/b/c", "https://x/y", ""):
        with pytest.raises(SystemExit, match="2"):
            run_publish(monkeypatch, repo)
        assert "expected owner/name, found" in capsys.readouterr().err
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
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text.replace("| [`02_model`]", "| Model: [`02_model`]"), encoding="utf-8")
    refused(checkout, monkeypatch, capsys, "that starts with a link to notebooks/02_model.ipynb")


def test_publish_leaves_other_badges_and_line_ends_alone(checkout, monkeypatch):
    readme = checkout / "README.md"
    mine = "[![Open in Colab](a.svg)](https://colab.research.google.com/github/me/x/blob/main/a)"
    with open(readme, "w", newline="", encoding="utf-8") as file:
        file.write(
            (f"{mine}\n\n" + (utils.ROOT / "README.md").read_text(encoding="utf-8")).replace(
                "\n", "\r\n"
            )
        )
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


# ----------------------------------------------------------------- release


def test_release_holds_what_it_promises(checkout, monkeypatch, capsys):
    monkeypatch.setattr(release, "ROOT", checkout)
    monkeypatch.setattr(sys, "argv", ["release.py", "someone/digits"])
    assert release.main() == 1 and "modelku.pth: not found" in capsys.readouterr().out
    model = checkout / "outputs" / "modelku.pth"
    model.parent.mkdir()
    model.write_bytes(b"a network")
    assert release.main() == 0
    folder = checkout / "dist" / "release"
    own = standalone.name_by_content(b"a network")  # older ones stay beside it
    names = ["class.zip", own, "modelku.pth", "modelku.pth.sha256", "standalone.zip"]
    assert sorted(path.name for path in folder.iterdir()) == names
    sum_of_it = hashlib.sha256(b"a network").hexdigest()
    assert (folder / "modelku.pth.sha256").read_text(
        encoding="utf-8"
    ) == f"{sum_of_it}  modelku.pth\n"
    assert (folder / "modelku.pth").read_bytes() == b"a network"
    with zipfile.ZipFile(folder / "standalone.zip") as archive:
        assert {f"{name}.ipynb" for name in NAMES + SOLUTIONS} <= set(archive.namelist())
        fetching = nbformat.reads(archive.read("04_evaluation.ipynb").decode(), as_version=4)
        assert sum_of_it in fetching.cells[1].source
    with zipfile.ZipFile(folder / "class.zip") as archive:
        core = [f"{name}.ipynb" for name in NAMES[:4]]
        both = [f"{kind}/{name}" for kind in ("with_outputs", "without_outputs") for name in core]
        answers = [f"{name}.ipynb" for name in SOLUTIONS if name < "solutions/05"]
        assert sorted(archive.namelist()) == sorted(both + answers)
        for name in both:
            notebook = nbformat.reads(archive.read(name).decode(), as_version=4)
            outputs = [cell for cell in notebook.cells if cell.get("outputs")]
            assert bool(outputs) is name.startswith("with_")
