"""The web site: built without a warning, every link leads somewhere, nothing is too wide.

The tests with a browser use the Chromium of the system; where there is none, they are skipped.
"""

import functools
import http.server
import subprocess
import sys
import threading
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup
from test_drawing_page import SEVEN, on_screen

import utils
from tools import standalone
from tools.site import __main__ as site

pytestmark = pytest.mark.long
NAMES = [path.stem for path in standalone.sources()]
SOLUTIONS = {f"solutions/{path.stem}.html" for path in standalone.sources("solutions")}
REPO = "someone/digits"
# None of what the notebooks need may be imported: with None in its place, it cannot be.
RUN = """
import runpy, sys
sys.modules |= dict.fromkeys(["torch", "torchvision", "numpy", "matplotlib"])
runpy.run_module("tools.site", run_name="__main__", alter_sys=True)
"""


def build(target, *arguments):
    command = [sys.executable, "-c", RUN, *arguments, "--out", str(target)]
    done = subprocess.run(command, cwd=utils.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr  # a warning is an error
    assert "python -m http.server -d " in done.stdout
    return target


@functools.cache
def read(folder):
    """Every page by its path from the root of the site."""
    return {
        path.relative_to(folder).as_posix(): BeautifulSoup(path.read_bytes(), "html.parser")
        for path in folder.rglob("*.html")
        if "_static" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("site") / "site")


@pytest.fixture(scope="module")
def pages(built):
    return read(built)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return build(tmp_path_factory.mktemp("published") / "site", REPO)


def addresses(page) -> list[str]:
    return [tag[name] for name in ("href", "src") for tag in page.find_all(**{name: True})]


def dead_links(folder) -> list[tuple[str, str]]:
    pages, dead = read(folder), []
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    for name, page in pages.items():
        for address in addresses(page):
            place, anchor = urldefrag(urljoin(f"http://site/{name}", address))
            parts = urlsplit(place)
            if parts.netloc != "site":
                assert parts.scheme in ("http", "https", "data"), (name, address)
                continue
            path = unquote(parts.path).lstrip("/") or "index.html"
            there = (folder / path).is_file()
            if not there or (anchor and unquote(anchor) not in anchors[path]):
                dead.append((name, address))
    return dead


def test_every_page_is_there_and_in_the_contents(pages):
    expected = {f"{name}.html" for name in NAMES}
    expected |= {"draw.html", "teaching.html", "data/README.html"}
    assert set(pages) == expected | SOLUTIONS | {"index.html", "search.html"}
    for name in SOLUTIONS:  # linked from the exercises, and back
        exercises = name.removeprefix("solutions/")
        assert name in addresses(pages[exercises]) and f"../{exercises}" in addresses(pages[name])
    contents = pages["index.html"].select(".bd-sidebar-primary nav a")
    assert {link["href"] for link in contents} == expected
    assert "Draw a digit" in [link.text for link in contents]
    in_the_text = {link["href"] for link in pages["index.html"].select("article a")}
    assert in_the_text >= expected - {"data/README.html"}


def test_every_link_leads_somewhere(built, published):
    assert dead_links(built) == dead_links(published) == []


def test_every_figure_has_words(pages):
    for name, page in pages.items():
        for image in page.select("img"):
            words = image.get("alt", "")
            assert words and not words.startswith("_images/"), f"{name}: {image}"


def test_nothing_comes_from_elsewhere(built, published):
    """Pictures, scripts and styles are all files of the site."""
    for folder in (built, published):
        for name, page in read(folder).items():
            for tag in [*page.find_all(src=True), *page.find_all("link", href=True)]:
                assert not urlsplit(tag.get("src") or tag["href"]).netloc, (name, tag)


def test_launch_buttons_lead_to_the_branch(pages, published):
    branch = f"https://colab.research.google.com/github/{REPO}/blob/standalone"
    for name, page in read(published).items():
        if name.removesuffix(".html") not in NAMES:
            continue
        found = addresses(page)
        path = name.replace(".html", ".ipynb")
        assert found.count(f"{branch}/{path}") == 2  # the button and the words in the head
        assert any("kaggle.com" in a and f"{REPO}/blob/standalone/{path}" in a for a in found)
        assert f"https://github.com/{REPO}" in found
        assert any(a.startswith(f"https://github.com/{REPO}/issues/new?") for a in found)
    for name, page in pages.items():
        assert not any("/blob/standalone/" in a for a in addresses(page)), name


def test_a_downloaded_notebook_runs_alone(built):
    for path in [*standalone.sources(), *standalone.sources("solutions")]:
        copy = standalone.nbformat.read(built / "_sources" / standalone.place(path), as_version=4)
        assert copy.cells[1].metadata["built"] == standalone.fingerprint(copy)


@pytest.mark.parametrize(
    "text, alone, with_a_name",
    [
        ("[a](notebooks/x.ipynb)", "[a](x.ipynb)", "[a](x.ipynb)"),
        ("[a](#b) [c](https://d/e)", "[a](#b) [c](https://d/e)", "[a](#b) [c](https://d/e)"),
        ("[a](utils.py)", "a", "[a](https://github.com/o/n/blob/HEAD/utils.py)"),
        ("[a](../../tree/standalone)", "a", "[a](https://github.com/o/n/tree/standalone)"),
        ("[![t](../../t.svg)](../../t)", "t", "[t](https://github.com/o/n/t)"),
        ("[![t](https://h/t.svg)](https://h)", "[t](https://h)", "[t](https://h)"),
        ("![p](p.png) ![q](q.png)", "![p](p.png) q", "![p](p.png) q"),
        ("[![p](p.png)](notebooks/x.ipynb)", "[![p](p.png)](x.ipynb)", "[![p](p.png)](x.ipynb)"),
    ],
)
def test_links_of_the_readme(text, alone, with_a_name):
    known = {"notebooks/x.ipynb": "x.ipynb", "p.png": "p.png"}
    assert site.link_to_pages(text, known, None) == alone
    assert site.link_to_pages(text, known, "o/n") == with_a_name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what Sphinx's extensions
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # have to do with each other
def test_a_failed_build_leaves_the_old_site(tmp_path, monkeypatch):
    def write_source(folder, repo):
        (folder / "index.md").write_text("# Title\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
        return {}

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("the old one", encoding="utf-8")
    monkeypatch.setattr(site, "write_source", write_source)
    assert site.build(tmp_path / "site") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    assert (tmp_path / "site" / "index.html").read_text(encoding="utf-8") == "the old one"


def test_a_wrong_name_is_refused(tmp_path, monkeypatch, capsys):
    for repo in ("digits", "a/b/c", "https://x/y"):
        monkeypatch.setattr(sys, "argv", ["site", repo, "--out", str(tmp_path / "site")])
        with pytest.raises(SystemExit):
            site.main()
        assert "expected owner/name, found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ in a browser

# Elements of the text that stick out of the window, unless a box around them scrolls. What the
# theme keeps beside the window on purpose, its two drawers, is not in <main>'s article.
STICK_OUT = """() => {
  const outside = e => e.getBoundingClientRect().right > innerWidth + 1;
  const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && !outside(e);
  const inBox = e => e && e !== document.body && (scrolls(e) || inBox(e.parentElement));
  return [...document.querySelectorAll("article *, header *, footer *, body > main *")]
    .filter(e => outside(e) && !inBox(e.parentElement)).map(e => e.outerHTML.slice(0, 200));
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(built):
    handler = functools.partial(Quiet, directory=built)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def open_page(chromium, address):
    """A function that opens a page of the site; none may complain or ask for more."""
    contexts, trouble = [], []

    def open_(path, **settings):
        contexts.append(chromium.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("console", lambda m: m.type == "error" and trouble.append(f"console: {m.text}"))
        ours = (address, "data:", "about:")
        page.on("request", lambda r: r.url.startswith(ours) or trouble.append(r.url))
        page.goto(f"{address}/{path}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_too_wide(open_page, pages, theme):
    for name in pages:
        page = open_page(name, color_scheme=theme)
        for width in (390, 820, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (name, width, wide)
            assert page.evaluate(STICK_OUT) == [], (name, width)
        for image in page.query_selector_all("img"):
            assert image.evaluate("i => i.complete && i.naturalWidth > 0"), name
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (theme == "light"), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["draw.html", "10_your_hand.html"])
def test_the_drawing_page_answers(open_page, name):
    page = open_page(name, viewport={"width": 1000, "height": 900})
    if name != "draw.html":
        page.locator("iframe").scroll_into_view_if_needed()
    inside = page if name == "draw.html" else page.frame_locator("iframe")
    inside.locator("li").nth(9).wait_for()
    first, *others = on_screen(inside, SEVEN[0])
    page.mouse.move(*first)
    page.mouse.down()
    for place in others:
        page.mouse.move(*place, steps=5)
    page.mouse.up()
    inside.get_by_text("It reads 7").first.wait_for()


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen, ground", [("dark", "rgb(22, 24, 28)"), ("light", "rgb(255, 255, 255)")]
)
def test_the_drawing_page_obeys_the_site(open_page, chosen, ground):
    """Alone and in the frame of notebook 10, whatever the system's theme is."""
    ask = "getComputedStyle(document.body).backgroundColor"
    page = open_page("10_your_hand.html", color_scheme="light" if chosen == "dark" else "dark")
    page.locator("iframe").scroll_into_view_if_needed()
    frame = page.locator("iframe").element_handle().content_frame()
    frame.locator("li").nth(9).wait_for()
    assert frame.evaluate(ask) != ground
    frame.evaluate(f"localStorage.theme = '{chosen}'; dispatchEvent(new Event('storage'))")
    assert frame.evaluate(ask) == ground
    page.goto(page.url.replace("10_your_hand", "draw"))
    assert page.evaluate(ask) == ground


@pytest.mark.slow
def test_search_finds(open_page):
    page = open_page("search.html?q=McNemar", viewport={"width": 390, "height": 900})
    page.locator("#search-results li a").first.wait_for()
    found = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any("/04_evaluation.html" in link for link in found)
