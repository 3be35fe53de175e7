"""What tests share: the import path, Hypothesis profiles, the real MNIST, a browser."""

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
