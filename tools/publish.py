"""Put the standalone notebooks on a git branch of their own, and badges on every page.

    python tools/publish.py owner/name

The badges open the notebooks of the local branch `standalone`, which holds nothing else, so
nothing has to be fetched at run time. They are written into README.md and the head of each
notebook in the working tree; a second run replaces them. Nothing is pushed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import utils  # noqa: E402
from tools import standalone  # noqa: E402

BRANCH = "standalone"
BADGES = re.compile(r" *\[!\[Open in \w+\]\([^)]*\)\]\([^)]*\)")


def badges(repo: str, path: str) -> str:
    """Return the two badges for one file of the branch, as Markdown."""
    place = f"{repo}/blob/{BRANCH}/{path}"
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{place}) "
        "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src=https://github.com/{place})"
    )


def with_badges_in_table(text: str, repo: str) -> str:
    """Return the README with the badges after each notebook's link in the table."""
    text = BADGES.sub("", text)
    return re.sub(
        r"(?m)^\| \[`(\w+)`\]\(notebooks/\w+\.ipynb\)",
        lambda row: f"{row[0]} {badges(repo, row[1] + '.ipynb')}",
        text,
    )


def with_badges_in_head(text: str, repo: str, path: str) -> str:
    """Return a notebook's first cell with the badges under its title."""
    title, _, rest = BADGES.sub("", text).partition("\n")
    return f"{title}\n\n{badges(repo, path)}\n\n{rest.strip()}"


def write_badges(repo: str) -> None:
    def write(path, text):
        utils._replace_atomically(path, lambda file: file.write(text.encode()))

    readme = ROOT / "README.md"
    write(readme, with_badges_in_table(readme.read_text(encoding="utf-8"), repo))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[0].source = with_badges_in_head(notebook.cells[0].source, repo, path.name)
        write(path, nbformat.writes(notebook) + "\n")


def git(*arguments, **environment) -> str:
    """Run git in the repository; return what it prints. Raises CalledProcessError."""
    command = ["git", "-C", str(ROOT), *arguments]
    environment = os.environ | environment
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit_to_branch(folder: Path, message: str) -> str | None:
    """Make the files of ``folder`` the whole content of the branch; return the commit.

    Works beside the working tree and the index, which stay as they are. Returns None if the
    branch has exactly these files already.
    """
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index"), "GIT_WORK_TREE": str(folder)}
        git("add", "--all", "--force", str(folder), **index)
        tree = git("write-tree", **index)
    reference = f"refs/heads/{BRANCH}"
    found = git("for-each-ref", "--format=%(objectname) %(tree)", reference).split()
    if found and found[1] == tree:
        return None
    parent = ["-p", found[0]] if found else []
    commit = git("commit-tree", tree, *parent, "-m", message)
    git("update-ref", reference, commit, *found[:1])
    return commit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="owner/name of the repository on GitHub")
    parser.add_argument("--kaggle-user", default=standalone.NO_USER)
    arguments = parser.parse_args()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", arguments.repo):
        print(f"REPO: expected owner/name, found {arguments.repo!r}")
        return 2
    try:
        if git("branch", "--show-current") == BRANCH:
            print(f"This is the branch {BRANCH}, which is written here: switch to another one.")
            return 2
        write_badges(arguments.repo)
        with tempfile.TemporaryDirectory() as folder:
            standalone.build(Path(folder), arguments.kaggle_user)
            commit = commit_to_branch(Path(folder), f"Standalone notebooks for {arguments.repo}")
    except FileNotFoundError as error:
        print(f"git is needed for this: {error}")
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)} failed:\n{error.stderr.strip()}")
        return 1
    print(f"Branch {BRANCH}: {commit[:12] if commit else 'nothing new'}")
    print("Badges: written into README.md and notebooks/; commit them.")
    print(f"Then:   git push origin {BRANCH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
