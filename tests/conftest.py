"""What tests share: the import path, Hypothesis profiles, the real MNIST, a browser."""

import base64
import html
import re
import shutil

import matplotlib
import pytest
from hypothesis import HealthCheck, settings

# No test needs a screen. Not by the environment: the notebooks' kernels would inherit it
# and draw no figures.
matplotlib.use("Agg")

# The everyday profile tries the same examples in every run, so a red test is red
# for everybody. The other one searches, with 20,000 new examples for each of the five
# properties of the parser: pytest tests/test_idx.py --hypothesis-profile=fuzz
_common = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("everyday", max_examples=200, derandomize=True, **_common)
settings.register_profile("fuzz", max_examples=20_000, print_blob=True, **_common)
settings.load_profile("everyday")


@pytest.fixture(scope="session")
def mnist():
    """Paths of the four files of the real MNIST, by name; they are only ever read."""
    import utils

    return utils.find_mnist()


@pytest.fixture(scope="session")
def train(mnist):
    import utils

    return utils.load_mnist("train")


@pytest.fixture(scope="session")
def test(mnist):
    import utils

    return utils.load_mnist("test")


@pytest.fixture(scope="module")
def handwriting():
    """What notebook 06 imports and defines, by name; none of its other lines is executed."""
    from tools.notebook_code import definitions

    return vars(definitions("06_your_handwriting"))


@pytest.fixture(scope="module")  # while it is open, nbclient could not run its event loop
def chromium():
    """The Chromium or Chrome of the system, or the one that playwright has installed."""
    from playwright.sync_api import Error, sync_playwright

    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as playwright:
        browser = None
        for choice in (
            {"executable_path": next(filter(None, found), None)},  # None: playwright's own
            {"channel": "chrome"},
        ):
            try:
                arguments = ["--no-sandbox", "--disable-quic"]
                browser = playwright.chromium.launch(args=arguments, **choice)
                break
            except Error:
                continue
        if browser is None:
            pytest.skip("no Chromium or Chrome found: no page was opened in a browser")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def stored_page():
    """The page to draw on in the stored output of notebook 10, with the collection's network."""
    import nbformat

    import utils

    notebook = nbformat.read(utils.ROOT / "notebooks" / "10_your_hand.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    (frame,) = (re.match('<iframe srcdoc="([^"]*)" sandbox="allow-scripts', text) for text in shown)
    return html.unescape(frame[1])


@pytest.fixture(scope="session")
def trained(stored_page, tmp_path_factory):
    """That network and its checkpoint: one trained here would differ from machine to machine."""
    import utils

    path = tmp_path_factory.mktemp("trained") / "stored.pth"
    text = re.search(r'network64 = "([\w+/=]+)"', stored_page)[1]
    path.write_bytes(base64.b64decode(text))
    model = utils.new_model(0)
    return model, utils.load_checkpoint(path, model)


@pytest.fixture(scope="session")
def network(trained):
    return trained[0]


@pytest.fixture(scope="module")
def filled(trained, train, tmp_path_factory):
    """The text of the page to draw on with this network, as notebook 10 fills it in."""
    import utils
    from tools.notebook_code import definitions

    notebook, (model, checkpoint) = definitions("10_your_hand"), trained
    file = tmp_path_factory.mktemp("filled") / "draw.pth"
    notebook.save_alone(file, model.state_dict(), checkpoint)
    layers = [(fc.weight.detach(), fc.bias.detach()) for fc in (model.fc1, model.fc2)]
    features = notebook.features_of(train.images[:10_000], model)
    old = notebook.choose_old(features, train.labels[:10_000], layers)
    empty = (utils.ROOT / "notebooks" / "10_draw.html").read_text(encoding="utf-8")
    assert empty.count("@network@") == empty.count('"@replay@"') == 1
    return notebook.fill_page(empty, file, features[old])


@pytest.fixture
def open_page(chromium, filled, tmp_path):
    """A function that opens the page from disk; no page may raise, complain or ask for more."""
    path, contexts, trouble = tmp_path / "draw.html", [], []
    path.write_text(filled, encoding="utf-8")
    allowed = (path.as_uri(), "data:", "blob:")

    def open_(**settings):
        contexts.append(chromium.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("request", lambda r: r.url.startswith(allowed) or trouble.append(r.url))
        page.on("websocket", lambda socket: trouble.append(socket.url))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert trouble == []
