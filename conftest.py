"""Settings for pytest that must apply to the notebooks too."""

import os
import tempfile

# Tests write their checkpoints into a folder of their own, so that running them
# never replaces the modelku.pth that somebody has trained. The notebooks' kernels inherit it.
if "MNIST_OUTPUT_DIR" not in os.environ:
    _outputs = tempfile.TemporaryDirectory(prefix="mnist-test-outputs-")
    os.environ["MNIST_OUTPUT_DIR"] = _outputs.name


def pytest_collectstart(collector):
    """Progress bars and warnings go to stderr and differ from run to run: nbval skips it."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
