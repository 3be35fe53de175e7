"""What all tests share: the import path, Hypothesis profiles, the real MNIST."""

import sys
from pathlib import Path

import matplotlib
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
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
    """Folder of the real MNIST, looked for once; it is only ever read."""
    import utils

    return utils.find_mnist()
