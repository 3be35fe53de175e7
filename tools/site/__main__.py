"""Build a web site for reading, from the outputs that are stored in the notebooks.

    python -m tools.site                    into dist/site
    python -m tools.site owner/name         with links to the repository, and to Colab

Nothing is executed, and the pages load nothing from other hosts. The home page is README.md, or
what stands there between the comments `site: begin` and `site: end`. Needs requirements-site.txt,
and nothing of what the notebooks need.
"""

import argparse
import html
import re
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import urljoin

import nbformat
from sphinx.application import Sphinx

from tools import publish, standalone
from tools.standalone import ROOT, NotebookError

HERE = Path(__file__).parent
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[((?:!\[[^\]]*\]\([^)]*\)|[^\[\]])+)\]\(([^)\s]+)\)")
# The page to draw on follows the system's theme; on the site, the one chosen there goes first.
IN_THE_SITE = """\
<body>
<p><a href="index.html" target="_top">All notebooks</a></p>
<script>
{
  const themes = [...document.styleSheets[0].cssRules].filter(
    rule => rule.media?.mediaText.includes("prefers-color-scheme"));
  const obey = () => {
    if (!localStorage.theme) return;
    const media = localStorage.theme === "dark" ? "all" : "not all";
    document.documentElement.style.colorScheme = localStorage.theme;
    for (const rule of themes) rule.media.mediaText = media;
  };
  addEventListener("storage", obey);
  obey();
}
</script>
"""
HOME = """\
# {title}

{text}

[Draw a digit](draw.md) and watch the network answer, here in the browser.

```{{toctree}}
:hidden:
{entries}
Draw a digit <draw>
A class of two hours <teaching>
data/README
```
"""


def link_to_pages(text: str, pages: dict[str, str], repo: str | None) -> str:
    """Return Markdown with its relative links leading to pages of the site, or to the repository.

    ``pages`` has a file's place on the site by its path in the repository. Of a link that would
    lead nowhere, and of a picture from another host, the words stay.
    """

    def image(found):
        words, target = found.groups()
        return f"![{words}]({pages[target]})" if target in pages else words

    def link(found):
        words, target = found.groups()
        if re.match(r"\w+:|#", target):
            return found[0]
        if target in pages:
            return f"[{words}]({pages[target]})"
        if repo is None:
            return words
        return f"[{words}]({urljoin(f'https://github.com/{repo}/blob/HEAD/', target)})"

    return LINK.sub(link, IMAGE.sub(image, text))


def take_drawing_page(notebooks) -> str:
    """Return the page to draw on, which a notebook holds in a frame; let the frame show it."""
    cells = [cell for notebook in notebooks for cell in notebook.cells]
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        shown = output.get("data", {}).get("text/html", "")
        if frame := re.match(r'<iframe srcdoc="([^"]*)" sandbox="[^"]*"', shown):
            output.data["text/html"] = shown.replace(frame[0], '<iframe src="draw.html"')
            return html.unescape(frame[1]).replace("<body>\n", IN_THE_SITE, 1)
    raise NotebookError("notebooks: expected an output with the page to draw on: make refresh.")


def write_source(folder: Path, repo: str | None) -> dict[str, bytes]:
    """Write what Sphinx reads into a folder; return files to put on the site as they are."""
    paths = [*standalone.sources(), *standalone.sources("solutions")]
    notebooks = {standalone.place(path): nbformat.read(path, as_version=4) for path in paths}
    as_they_are = {"draw.html": take_drawing_page(notebooks.values()).encode()}
    pages = {f"notebooks/{name}": name for name in notebooks}
    for name in ("data/README.md", "notebooks/teaching.md", ".github/digits.png"):
        pages[name] = name.removeprefix("notebooks/")
        (folder / pages[name]).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / pages[name])

    entries = []
    (folder / "solutions").mkdir()
    for path, (name, notebook) in zip(paths, notebooks.items()):
        # The button for downloads gives a copy that runs alone.
        copy = standalone.standalone(nbformat.read(path, as_version=4), name, repo)
        as_they_are[f"_sources/{name}"] = standalone.to_bytes(copy)
        head = notebook.cells[0]
        title = head.source.partition("\n")[0].removeprefix("# ")
        if path.parent.name == "solutions":
            notebook.metadata["orphan"] = True  # linked from the exercises, not in the contents
        else:
            entries.append(f"{int(name[:2])}. {title} <{name.removesuffix('.ipynb')}>")
        if repo:
            head.source = publish.with_badges_in_head(head.source, repo, name)
        else:
            head.source = publish.BADGES.sub("", head.source)
        head.source = link_to_pages(head.source, pages, repo)
        for cell in notebook.cells:
            if "alt" in cell.metadata:  # nbconvert's place for it, and MyST-NB's
                cell.metadata["mystnb"] = {"image": {"alt": cell.metadata["alt"]}}
        nbformat.write(notebook, folder / name)

    readme = publish.BADGES.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    title, _, text = readme.removeprefix("# ").partition("\n")
    if marked := re.search(r"<!-- site: begin -->(.*?)<!-- site: end -->", text, re.DOTALL):
        text = marked[1]
    text = link_to_pages(text.strip(), pages, repo)
    home = HOME.format(title=title, text=text, entries="\n".join(entries))
    (folder / "index.md").write_text(home, encoding="utf-8")
    # Gives the page its place in the list of contents, and gives way to it.
    (folder / "draw.md").write_text("# Draw a digit\n", encoding="utf-8")
    return as_they_are


def build(target: Path, repo: str | None = None) -> int:
    """Build the site and put it in place of ``target`` if that went well; return 0 if so."""
    options = {
        "repository_url": f"https://github.com/{repo}",
        "repository_branch": publish.BRANCH,
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }
    settings = {f"html_theme_options.{k}": v for k, v in options.items()} if repo else {}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=target.parent) as folder:
        source, built = Path(folder) / "source", Path(folder) / "built"
        source.mkdir()
        as_they_are = write_source(source, repo)
        sphinx = Sphinx(
            source, HERE, built, Path(folder) / "doctrees", "html", settings,
            status=None, warningiserror=True,
        )  # fmt: skip
        sphinx.build()
        if sphinx.statuscode == 0:
            for name, content in as_they_are.items():
                (built / name).write_bytes(content)
            if target.exists():
                target.rename(Path(folder) / "old")
            built.rename(target)
    return sphinx.statuscode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", nargs="?", type=standalone.repository, help="owner/name on GitHub")
    parser.add_argument("--out", type=Path, default=Path("dist", "site"), help="folder to write")
    arguments = parser.parse_args()
    try:
        failed = build(arguments.out, arguments.repo)
    except NotebookError as error:
        print(error)
        return 1
    if not failed:
        print(f"{arguments.out}: to look at it, python -m http.server -d {arguments.out}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
