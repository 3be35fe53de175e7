"""The page to draw on, in a real browser: the same numbers as PyTorch and as notebook 05.

Uses the Chromium of the system; where there is none, these tests are skipped and say so.
"""

import ast
import base64
import io
import json
import shutil

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

import utils

pytestmark = pytest.mark.slow
NOTEBOOK = utils.ROOT / "notebooks" / "05_your_handwriting.ipynb"
BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)


@pytest.fixture(scope="module")
def cells(mnist):
    """What the notebook imports and defines, a trained network, and the page filled in."""
    model, _ = utils.trained_model("cpu")
    names = {"utils": utils, "model": model, "Path": type(utils.ROOT)}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
                    if getattr(node, "name", "") != "choose_photo":
                        exec(compile(ast.Module([node], []), "notebook 05", "exec"), names)
    state = {name: tensor.numpy().astype("<f4") for name, tensor in model.state_dict().items()}
    text = (utils.ROOT / "notebooks" / "05_draw.html").read_text(encoding="utf-8")
    assert text.count('"@sizes@"') == text.count("@weights@") == 1
    weights = base64.b64encode(b"".join(array.tobytes() for array in state.values())).decode()
    sizes = json.dumps({name: array.size for name, array in state.items()})
    names["page"] = text.replace('"@sizes@"', sizes).replace("@weights@", weights)
    return names


@pytest.fixture
def page(cells, tmp_path):
    """The page opened from disk; errors and requests are counted, and none may have come up."""
    if BROWSER is None:
        pytest.skip("no Chromium found: the page to draw on was not opened in a browser")
    from playwright.sync_api import sync_playwright

    (tmp_path / "draw.html").write_text(cells["page"], encoding="utf-8")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-quic"]
        )
        page, trouble = chromium.new_page(viewport={"width": 900, "height": 900}), []
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: trouble.append(message.text))
        page.on("request", lambda request: trouble.append(request.url))
        page.goto((tmp_path / "draw.html").as_uri())
        yield page
        asked = [line for line in trouble if not line.startswith(("file:", "data:"))]
        assert asked == []
        chromium.close()


def draw(page, points):
    """Draw one stroke through points, in hundredths of the paper's side, with the mouse."""
    frame = page.locator("#paper").bounding_box()
    places = [
        (frame["x"] + x / 100 * frame["width"], frame["y"] + y / 100 * frame["height"])
        for x, y in points
    ]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_logits_equal_pytorch(page, cells):
    test = utils.load_mnist("test")
    with torch.no_grad():
        expected = cells["model"](test.images[:1000]).numpy()
    found = page.evaluate(
        "all => all.map(pixels => Array.from(network(pixels).logits))",
        test.pixels[:1000].reshape(1000, 784).tolist(),
    )
    assert np.abs(np.array(found) - expected).max() < 1e-3


SEVEN = [(25, 20), (75, 20), (45, 82)]
FIVE = [[(70, 20), (35, 20), (32, 48), (55, 45), (68, 60), (60, 78), (32, 80)]]


@pytest.mark.parametrize("strokes", [[SEVEN], FIVE, [[(50, 15), (50, 85)], [(8, 50)] * 2]])
def test_preparation_equals_the_notebook(page, cells, strokes):
    for stroke in strokes:
        draw(page, stroke)
    found = np.array(page.evaluate("Array.from(readPaper())")).reshape(28, 28)
    address = page.evaluate("paper.toDataURL()")
    drawing = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    expected = cells["prepare"](drawing)
    assert np.abs(found - expected.astype(int)).max() <= 1


def test_answer_undo_and_clear(page):
    draw(page, SEVEN)
    assert page.inner_text("#answer") == "It reads 7"
    page.click("#clear")
    page.wait_for_function("document.getElementById('answer').textContent.startsWith('Draw')")
    page.keyboard.press("Control+z")
    page.wait_for_function("document.getElementById('answer').textContent === 'It reads 7'")
