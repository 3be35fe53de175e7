"""Every page opens in a real browser: no error, no missing picture, nothing that overflows.

Uses the Chromium of the system; where there is none, these tests are skipped and say so.
"""

import nbformat
import pytest
from nbconvert import HTMLExporter

import utils

pytestmark = pytest.mark.slow
NOTEBOOKS = sorted((utils.ROOT / "notebooks").glob("[!.]*.ipynb"))
WIDTHS = {"desktop": 1280, "phone": 390}


def pictures(notebook) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_page_in_a_browser(chromium, path, theme):
    notebook = nbformat.read(path, as_version=4)
    html, _ = HTMLExporter(theme=theme).from_notebook_node(notebook)
    for width in WIDTHS.values():
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, offline=True
        )
        page, errors, asked_for = context.new_page(), [], []
        page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        page.on("request", lambda request, urls=asked_for: urls.append(request.url))
        page.set_content(html, wait_until="load")
        assert errors == []
        sizes = page.eval_on_selector_all(
            'img[src^="data:"]',
            "all => all.map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().right])",
        )
        assert len(sizes) == pictures(notebook)
        assert all(complete and natural > 0 for complete, natural, _ in sizes)
        assert all(right <= width + 1 for _, _, right in sizes), "a picture is cut off"
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 1, f"the page is {overflow} pixels wider than the window"
        # nbconvert's own template asks for MathJax and require.js, a published page for the
        # two badges; our pages ask for nothing.
        outside = [url for url in asked_for if not url.startswith(("about:", "data:"))]
        expected = ("mathjax", "require", "colab-badge.svg", "open-in-kaggle.svg")
        assert all(any(name in url.lower() for name in expected) for url in outside), outside
        context.close()
