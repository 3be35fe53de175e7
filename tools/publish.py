"""Put the standalone notebooks on a git branch of their own, and badges on every page.

    python -m tools.publish owner/name

The badges open the notebooks of the local branch `standalone`, which holds nothing but these
and a page with the badges. They are also written into README.md and the head of each notebook
in the working tree, whose first cell then names the branch to whoever has the notebook alone.
That comes last of all, and only if the branch could be made; a second run replaces it. Nothing
is pushed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

from tools import standalone
from tools.standalone import BRANCH, ROOT, git

# Only badges that open this branch: somebody's badge for another service stays.
BADGES = re.compile(rf" ?\[!\[Open in \w+\]\([^)]*\)\]\([^)]*/blob/{BRANCH}/[^)]*\)")


PAGES = ("README.md", "LICENSE")  # what the branch holds beside notebooks
FRONT = """# Notebooks that open with one click

Each of these notebooks needs no other file: it brings along what it uses from
[the collection](https://github.com/{repo}). Click a badge, then *Run all*; on Kaggle, first
*Add Input* `hojjatk/mnist-dataset`, or switch the internet on. 04 to 07 and 10 use the network that
03 trains; if you have not brought yours along, they fetch the published one. In Jupyter on your own
machine they need `pip install "torch>=2.6" torchvision matplotlib tqdm`.

{table}

The [solutions](solutions) to the exercises are copies of the same kind. Code is under the
[MIT licence](LICENSE), text and figures are under
[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).

This branch is made anew from the collection; changes made here would be lost.
"""


class PublishError(RuntimeError):
    """Nothing was written. The message says why and what to do."""


def badges(repo: str, path: str) -> str:
    """Return the two badges for one file of the branch, as Markdown."""
    place = f"{repo}/blob/{BRANCH}/{path}"
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{place}) "
        "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src=https://github.com/{place})"
    )


def with_badges_in_table(text: str, repo: str, names) -> str:
    """Return the README with badges after each notebook's link in the table."""
    text = BADGES.sub("", text)
    for name in names:
        link = re.compile(rf"(?m)^(\|\s*\[[^\]\n]*\]\(notebooks/{re.escape(name)}\))")
        text, count = link.subn(rf"\1 {badges(repo, name)}", text)
        if count != 1:
            raise PublishError(
                f"README.md: expected one row of the table that starts with a link to "
                f"notebooks/{name}, found {count}. Mend the table and try again."
            )
    return text


def with_badges_in_head(text: str, repo: str, path: str) -> str:
    """Return a notebook's first cell with the badges under its title."""
    title, _, rest = BADGES.sub("", text).partition("\n")
    return "\n\n".join(filter(None, [title, badges(repo, path), rest.strip("\n")]))


def parent_commit() -> str | None:
    """Return the commit to go on from, None for a new branch; refuse what is not ours."""
    tips = {}
    for reference in (f"refs/heads/{BRANCH}", f"refs/remotes/origin/{BRANCH}"):
        tips[reference] = git("for-each-ref", "--format=%(objectname)", reference)
    here, there = tips.values()
    if f"branch refs/heads/{BRANCH}" in git("worktree", "list", "--porcelain").splitlines():
        raise PublishError(f"The branch {BRANCH} is checked out: switch to another one first.")
    tip = here or there
    if not tip:
        return None
    if here and there and here != there:
        base = merge_base(here, there)
        if base not in (here, there):
            raise PublishError(
                f"{BRANCH} and origin/{BRANCH} have gone different ways. To take the other one: "
                f"git branch -f {BRANCH} origin/{BRANCH}"
            )
        tip = there if base == here else here
    files = git("ls-tree", "-r", "--name-only", tip).splitlines()
    names = [name.removeprefix("solutions/") for name in files]
    if not all(standalone.NAME.fullmatch(name) or name in PAGES for name in names):
        raise PublishError(
            f"{BRANCH}: expected a branch with nothing but standalone notebooks, found another "
            f"one. Rename it: git branch -m {BRANCH} another-name"
        )
    return tip


def merge_base(one: str, other: str) -> str | None:
    try:
        return git("merge-base", one, other)
    except subprocess.CalledProcessError:  # they have no history in common
        return None


def commit_to_branch(files: dict[str, bytes], message: str) -> str | None:
    """Make these files the whole content of the branch; return the commit.

    Works beside the working tree and the index, which stay as they are, and without git's
    filters, so that the branch holds these very bytes. Returns None if it does already.
    """
    parent = parent_commit()
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        for name, content in files.items():
            blob = git("hash-object", "-w", "--no-filters", "--stdin", content=content)
            git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", index=index)
        tree = git("write-tree", index=index)
    if parent and git("rev-parse", f"{parent}^{{tree}}") == tree:
        git("update-ref", f"refs/heads/{BRANCH}", parent)
        return None
    commit = git("commit-tree", tree, *(["-p", parent] if parent else []), "-m", message)
    git("update-ref", f"refs/heads/{BRANCH}", commit)
    return commit


def publish(repo: str) -> str | None:
    """Make the branch, then write the badges; return the new commit, if any."""
    readme, paths = ROOT / "README.md", standalone.sources()
    with open(readme, encoding="utf-8", newline="") as file:
        pages = {readme: with_badges_in_table(file.read(), repo, [path.name for path in paths])}
    rows = re.findall(r"(?m)^\|.*\|", pages[readme])
    front = FRONT.format(repo=repo, table="\n".join(rows).replace("](notebooks/", "]("))
    copies = {"README.md": front.encode(), "LICENSE": (ROOT / "LICENSE").read_bytes()}
    for path in [*paths, *standalone.sources("solutions")]:
        notebook, name = nbformat.read(path, as_version=4), standalone.place(path)
        notebook.cells[0].source = with_badges_in_head(notebook.cells[0].source, repo, name)
        advice = f"open https://github.com/{repo}/tree/{BRANCH}"
        pages[path] = nbformat.writes(standalone.with_advice(notebook, advice)) + "\n"
        copies[name] = standalone.to_bytes(standalone.standalone(notebook, name, repo))
    commit = commit_to_branch(copies, f"Standalone notebooks for {repo}")
    for path, text in pages.items():
        standalone.write(path, text.encode())
    return commit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", type=standalone.repository, help="owner/name on GitHub")
    repo = parser.parse_args().repo
    if not shutil.which("git"):
        print("git was not found; it is needed for publishing.")
        return 1
    try:
        commit = publish(repo)
    except (PublishError, standalone.NotebookError) as error:
        print(error)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)} failed:\n{error.stderr.decode(errors='replace').strip()}")
        return 1
    print(f"Branch {BRANCH}: {commit[:12] if commit else 'nothing new'}")
    if not (ROOT / "outputs" / "modelku.pth").is_file():
        print("Without outputs/modelku.pth (make run), notebooks fetch no network: they train one.")
    print("Badges: written into README.md and notebooks/; commit them.")
    print(f"Then:   git push origin {BRANCH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
