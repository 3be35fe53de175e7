"""Reading IDX files: right values, or an IDXError that explains itself."""

import gzip
import hashlib
import io
import lzma
import math
import struct
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import Subset
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

import utils
from utils import MEAN, STD, IDXError, MNISTDataset, read_idx

# Type code -> name in NumPy, letter in the struct module. Written out here once more
# on purpose: a slip in the table of utils.py must not be copied into its tests.
TYPES = {
    0x08: ("uint8", "B"), 0x09: ("int8", "b"), 0x0B: ("int16", "h"),
    0x0C: ("int32", "i"), 0x0D: ("float32", "f"), 0x0E: ("float64", "d"),
}  # fmt: skip
MOST_DIMENSIONS = 64 if int(np.__version__.split(".")[0]) >= 2 else 32


def header(code, shape):
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def idx_bytes(code, shape, values):
    return header(code, shape) + struct.pack(f">{len(values)}{TYPES[code][1]}", *values)


def write(path, array):
    """Write an IDX file, compressed if its name ends so."""
    code = next(code for code, (name, _) in TYPES.items() if name == array.dtype.name)
    raw = header(code, array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


class Refused(Exception):
    """The independent decoder found something wrong."""


def decode(raw):
    """Decode a plain IDX file with the struct module alone: (code, shape, body)."""
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in TYPES or raw[3] > MOST_DIMENSIONS:
        raise Refused
    if len(raw) < 4 + 4 * raw[3]:
        raise Refused
    shape, body = struct.unpack_from(f">{raw[3]}I", raw, 4), raw[4 + 4 * raw[3] :]
    itemsize = struct.calcsize(">" + TYPES[raw[2]][1])
    if len(body) != math.prod(shape) * itemsize:
        raise Refused
    if math.prod(size or 1 for size in shape) * itemsize >= 2**63:
        raise Refused  # empty, but NumPy cannot express it: (0, 4294967295, 4294967295)
    return raw[2], shape, body


def assert_is(array, code, shape, body):
    """The array is exactly that content, bit for bit, in the machine's own byte order."""
    assert type(array) is np.ndarray
    assert array.dtype == np.dtype(TYPES[code][0]) and array.dtype.isnative
    assert array.flags.writeable and array.flags.c_contiguous
    assert array.shape == tuple(shape)
    size = array.itemsize
    if sys.byteorder == "little":  # reverse the bytes of every item, without NumPy's help
        body = b"".join(body[start : start + size][::-1] for start in range(0, len(body), size))
    assert array.tobytes() == body


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all property tests: Hypothesis wants no new one for each example."""
    return tmp_path_factory.mktemp("idx")


# ------------------------------------------------------------- right values

VALUES = {
    0x08: [0, 1, 127, 128, 255, 7],
    0x09: [0, 1, 127, -128, -1, 7],
    0x0B: [0, 1, 32767, -32768, 258, -2],
    0x0C: [0, 1, 2**31 - 1, -(2**31), 16909060, -2],
    0x0D: [0.0, -0.0, 0.5, -3.25, math.inf, 2.0**-149],
    0x0E: [0.0, -0.0, 0.1, -1e300, -math.inf, 5e-324],
}


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
@pytest.mark.parametrize("code", TYPES)
def test_every_type_reads_as_the_values_that_were_written(tmp_path, code, packed):
    """Each of the six types arrives with its values, native and writable."""
    values = VALUES[code]
    raw = idx_bytes(code, (2, 3), values)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    array = read_idx(path)
    assert array.tolist() == [values[:3], values[3:]]
    assert_is(array, code, (2, 3), raw[12:])
    array[0, 0] = 1  # really writable
    assert read_idx(str(path)).tolist() == [values[:3], values[3:]]  # a string is a path, too


SHAPES = [
    (), (0,), (1,), (5,), (2, 3), (0, 5), (2, 0, 3), (2, 3, 4), (1, 2, 1, 3, 2), (0, 2**32 - 1),
    (1,) * MOST_DIMENSIONS, (2, *(1,) * (MOST_DIMENSIONS - 2), 3),
]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(tmp_path, shape, packed):
    """From no dimension to as many as NumPy has, with and without empty ones."""
    raw = idx_bytes(0x0B, shape, [3 * n - 7 for n in range(math.prod(shape))])
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    assert_is(read_idx(path), *decode(raw))


def test_compression_is_recognised_by_content_not_by_name(tmp_path):
    """A browser that unpacks, or a hand that renames, does no harm."""
    raw = idx_bytes(0x08, (3,), [1, 2, 3])
    for name, content in (("plain.gz", raw), ("packed-idx1-ubyte", gzip.compress(raw))):
        (tmp_path / name).write_bytes(content)
        assert read_idx(tmp_path / name).tolist() == [1, 2, 3]


def test_a_gzip_file_may_have_several_members_and_zeros_at_its_end(tmp_path):
    """What `cat a.gz b.gz` makes, and tape padding, are gzip files like any other."""
    raw = idx_bytes(0x0C, (500,), list(range(500)))
    path = tmp_path / "file"
    for cut in (0, 2, 7, 8, 1000, len(raw)):
        for gap in (b"", b"\0" * 3, b"\0" * (1 << 19)):
            first, second = gzip.compress(raw[:cut]), gzip.compress(raw[cut:])
            path.write_bytes(first + gap + second + gap)
            assert_is(read_idx(path), *decode(raw))


def test_a_large_file_passes_through_all_buffers(tmp_path):
    """Megabytes, of noise or of zeros that shrink as far as deflate can, arrive unchanged."""
    noise = np.random.default_rng(0).integers(0, 256, 3_000_017, dtype="uint8")
    for body in (noise, noise * 0, np.repeat(noise[:3000], 1500)):
        raw = header(0x08, (len(body),)) + body.tobytes()
        for number, content in enumerate((raw, gzip.compress(raw, 1), gzip.compress(raw, 9))):
            path = tmp_path / str(number)
            path.write_bytes(content)
            assert np.array_equal(read_idx(path), body)


# ---------------------------------------------------------- what is refused

GOOD = idx_bytes(0x08, (2, 3), [1, 2, 3, 4, 5, 6])
SIX = "6 bytes of data, uint8 in the shape (2, 3)"
HTML = b"<!DOCTYPE html><html><body>Not found</body></html>"
HUGE = header(0x0E, (2**32 - 1,) * MOST_DIMENSIONS)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:440fcabf\nsize 9912422\n"
ZIP, NPZ = io.BytesIO(), io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
    archive.writestr("train-images-idx3-ubyte", GOOD)
np.savez(NPZ, x_train=np.zeros((2, 3), "uint8"))


def damaged_at(content, position):
    position %= len(content)
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


# name: content, what the message must say was expected, and found, and the cause or what to do
REFUSED = {
    "empty": (b"", "a header of at least 4 bytes", "0 bytes", "cut short"),
    "three bytes": (b"\0\0\x08", "a header of at least 4 bytes", "3 bytes", "cut short"),
    "html": (HTML, "two zero bytes", "3c 21 44 4f", "HTML page"),
    "html after blank lines": (b"\r\n" + HTML, "two zero bytes", "0d 0a 3c 21", "HTML page"),
    "csv with a header": (b"label,1x1,1x2\n5,0,0\n", "two zero bytes", "6c 61 62 65", "CSV"),
    "csv": (b"5,0,0,0\n", "two zero bytes", "35 2c 30 2c", "whose names contain idx"),
    "git lfs": (LFS, "two zero bytes", "76 65 72 73", "git lfs pull"),
    "xz": (lzma.compress(GOOD), "two zero bytes", "fd 37 7a 58", "xz -d"),
    "zip": (ZIP.getvalue(), "two zero bytes", "50 4b 03 04", "zip archive"),
    "npz": (NPZ.getvalue(), "two zero bytes", "50 4b 03 04", "numpy.load"),
    "first byte": (b"\1" + GOOD[1:], "two zero bytes", "01 00 08 02", "damaged"),
    "second byte": (b"\0\1" + GOOD[2:], "two zero bytes", "00 01 08 02", "damaged"),
    "type 0": (b"\0\0\0\1\0\0\0\0", "a type in 08 09 0b 0c 0d 0e", "00", "damaged"),
    "type 10": (b"\0\0\x0a\1\0\0\0\0", "a type in 08 09 0b 0c 0d 0e", "0a", "damaged"),
    "type 15": (b"\0\0\x0f\1\0\0\0\0", "a type in 08 09 0b 0c 0d 0e", "0f", "damaged"),
    "no sizes": (GOOD[:4], "2 sizes of 4 bytes", "0 bytes", "cut short"),
    "sizes cut": (GOOD[:11], "2 sizes of 4 bytes", "7 bytes", "cut short"),
    "no body": (GOOD[:12], SIX, "0.", "cut short"),
    "body short": (GOOD[:-1], SIX, "5.", "cut short"),
    "body long": (GOOD + b"\0", SIX, "7", "joined"),
    "half an item": (header(0x0C, (2,)) + bytes(7), "8 bytes of data, int32", "7.", "cut short"),
    "scalar without value": (header(0x0D, ()), "4 bytes of data, float32", "0.", "cut short"),
    "255 dimensions": (header(0x08, (0,) * 255), "a shape for NumPy", "(0, 0, 0", "damaged"),
    "one dimension too many": (
        header(0x08, (1,) * (MOST_DIMENSIONS + 1)) + b"x", "a shape for NumPy", "(1, 1, 1",
        "damaged"),
    "absurd with a zero": (header(0x08, (0, 2**32 - 1, 2**32 - 1)), "a shape for NumPy",
                           "(0, 4294967295, 4294967295)", "damaged"),
}  # fmt: skip
PACKED, STREAM = gzip.compress(GOOD, mtime=0), "a sound gzip stream"
PACKED_HUGE, PACKED_BILLION = gzip.compress(HUGE), gzip.compress(header(0x08, (10**9,)))
TOO_FEW = "{} compressed bytes, too few"
GZIP_REFUSED = {
    "two bytes": (PACKED[:2], STREAM, "this: Compressed file ended", "cut short"),
    "gzip header only": (PACKED[:10], STREAM, "this: Compressed file ended", "cut short"),
    "cut in the data": (PACKED[:14], STREAM, "this: Compressed file ended", "cut short"),
    "no trailer": (PACKED[:-8], STREAM, "this: Compressed file ended", "cut short"),
    "last byte missing": (PACKED[:-1], STREAM, "this: Compressed file ended", "cut short"),
    "checksum": (damaged_at(PACKED, -8), STREAM, "this: CRC check failed", "damaged"),
    "length": (damaged_at(PACKED, -1), STREAM, "this: Incorrect length", "damaged"),
    "not deflate": (PACKED[:10] + b"\xff" * 20, STREAM, "this: Error -3", "damaged"),
    "unknown method": (b"\x1f\x8b\x07" + PACKED[3:], STREAM, "this: Unknown compr", "damaged"),
    "garbage behind it": (PACKED + b"garbage", STREAM, "this: Not a gzipped file", "damaged"),
    "one byte behind it": (PACKED + b"!", STREAM, "this: Not a gzipped file", "damaged"),
    "garbage after zeros": (PACKED + b"\0\0!!!", STREAM, "this: Not a gzipped", "damaged"),
    "half a second member": (PACKED + PACKED[:10], STREAM, "this: Compressed file", "cut short"),
    "whole second member": (PACKED + PACKED, SIX, "7 or more.", "joined"),
    "packed twice": (gzip.compress(PACKED), "two zero bytes", "1f 8b", "compressed twice"),
    "absurd, gzip": (PACKED_HUGE, "", TOO_FEW.format(len(PACKED_HUGE)), "damaged"),
    "more than deflate can hold": (PACKED_BILLION, "1,000,000,000 bytes of data",
                                   TOO_FEW.format(len(PACKED_BILLION)), "damaged"),
}  # fmt: skip
# Everything that is wrong with a plain file is wrong with the same file compressed.
for name, (content, *phrases) in REFUSED.items():
    GZIP_REFUSED[f"{name}, gzip"] = (gzip.compress(content, mtime=0), *phrases)
REFUSED["absurd"] = (HUGE, f"{8 * (2**32 - 1) ** MOST_DIMENSIONS:,} bytes", "0.", "cut short")
REFUSED["wraps round to 0 in 64 bits"] = (
    header(0x08, (2**31, 2**31, 4)), "18,446,744,073,709,551,616 bytes", "0.", "cut short",
)  # fmt: skip


@pytest.mark.parametrize("case", [*REFUSED, *GZIP_REFUSED])
def test_refused_with_a_message_that_explains(tmp_path, case):
    """The message names the file, what was expected, what was found, and the usual cause."""
    content, expected, found, cause = (REFUSED | GZIP_REFUSED)[case]
    path = tmp_path / "my-digits.idx"
    path.write_bytes(content)
    with pytest.raises(IDXError) as caught:
        read_idx(path)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message.startswith(f"{path}: expected {expected}")
    assert f", found {found}" in message
    assert cause in message.split(f", found {found}")[1]
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_folder_is_refused_and_a_missing_file_is_missing(tmp_path):
    """The two mistakes in the path: Kaggle's folder named like the file, and a typing error."""
    with pytest.raises(IDXError, match="expected an IDX file, found a folder.*look inside"):
        read_idx(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "no-such-file")


# ------------------------------------------------------------------- memory

SMALL = 4_000_000  # what reading anything at all may cost: first buffer and pieces in flight


def peak_memory(path):
    """Bytes that Python and NumPy held at most during read_idx; and what it returned or raised."""
    tracemalloc.start()
    try:
        result = read_idx(path)
    except IDXError as error:
        result = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, result


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
def test_a_sound_file_costs_little_more_than_its_array(tmp_path, packed):
    """No second copy: 40 MB of floats need 44 MB, not 80."""
    body = np.random.default_rng(1).integers(0, 9, 1_000_000, dtype="uint8").tobytes() * 40
    raw = header(0x0E, (5_000, 1_000)) + body
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    peak, array = peak_memory(path)
    assert array.shape == (5_000, 1_000)
    assert array.nbytes <= peak <= 1.1 * array.nbytes + SMALL


@pytest.mark.parametrize("claim", [(2**32 - 1,), (2**16, 2**15), (3_000_000_000, 1, 1)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
def test_a_header_that_lies_costs_no_more_than_the_file_holds(tmp_path, claim, packed):
    """Ten megabytes that claim to be gigabytes are refused within eleven."""
    # For gzip, ten megabytes of noise, so that the claim is not absurd at first sight.
    body = np.random.default_rng(2).bytes(10_000_000)
    raw = header(0x08, claim) + body
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    peak, error = peak_memory(path)
    assert isinstance(error, IDXError)
    assert "found 10,000,000." in str(error)
    assert peak <= 1.1 * len(body) + SMALL


def bomb(start, megabytes):
    """A gzip stream of ``start`` and so many megabytes of zeros, without compressing them all."""
    engine = zlib.compressobj(9, wbits=31)
    packed = engine.compress(start) + engine.flush(zlib.Z_FULL_FLUSH)
    million = engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)
    # After a full flush, deflate looks back no further: one block can be repeated.
    return packed + million * megabytes + engine.flush()


@pytest.mark.parametrize("shape", [(), (10,), (28, 28), (1_000_000,), "members"], ids=str)
def test_a_gzip_bomb_is_stopped_where_its_header_says_the_end_is(tmp_path, shape):
    """Two gigabytes of zeros behind a small header: refused at the first byte too many."""
    path = tmp_path / "bomb"
    if shape == "members":  # a second stream, and 2,046 more, are no way round the limit
        shape, member = (10,), gzip.compress(bytes(1 << 20), 1)
        path.write_bytes(gzip.compress(header(0x08, shape)) + member * 2048)
    else:
        path.write_bytes(bomb(header(0x08, shape), 2048))
    peak, error = peak_memory(path)
    assert isinstance(error, IDXError)
    assert f"found {math.prod(shape) + 1:,} or more." in str(error)
    assert peak <= SMALL


# --------------------------------------------------- images and their labels

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype="uint8")
LABELS = (np.arange(12) % 10).astype("uint8")


def normalised(positions):
    return torch.tensor((PIXELS[positions].astype("float64") / 255 - MEAN) / STD)[:, None]


POSITIONS = {
    "list": [7, 1, 9],
    "tensor": torch.tensor([7, 1, 9]),
    "array": np.array([7, 1, 9]),
    "list of 0-d tensors": list(torch.tensor([7, 1, 9])),
    "list of numpy integers": [np.int64(7), np.uint8(1), np.int32(9)],
}


@pytest.mark.parametrize("index", [*POSITIONS.values(), slice(7, 10), []], ids=[*POSITIONS, *"se"])
def test_a_batch_by_any_kind_of_index(index):
    """Positions in any form give the images and labels that stand there, normalised."""
    positions = [7, 8, 9] if isinstance(index, slice) else [int(i) for i in index]
    images, labels = MNISTDataset(PIXELS, LABELS)[index]
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(images.double(), normalised(positions), rtol=0, atol=1e-6)
    assert labels.tolist() == LABELS[positions].tolist()


def test_one_sample_by_its_number():
    """An image and a label that is a plain int; past the end is an IndexError."""
    dataset = MNISTDataset(PIXELS, LABELS)
    assert len(dataset) == 12 and dataset.pixels.tolist() == PIXELS.tolist()
    for index in (7, -5, np.int64(7), np.uint8(7)):
        image, label = dataset[index]
        assert type(label) is int and label == 7
        assert image.dtype == torch.float32
        torch.testing.assert_close(image[None].double(), normalised([7]), rtol=0, atol=1e-6)
    with pytest.raises(IndexError):
        dataset[12]


@pytest.mark.parametrize("indices", POSITIONS.values(), ids=POSITIONS)
def test_a_loader_of_a_subset(indices):
    """Whatever holds a Subset's indices, its batches are the right ones."""
    batches = list(utils.make_loader(Subset(MNISTDataset(PIXELS, LABELS), indices), 2))
    assert [labels.tolist() for _, labels in batches] == [[7, 1], [9]]
    images = torch.cat([images for images, _ in batches]).double()
    torch.testing.assert_close(images, normalised([7, 1, 9]), rtol=0, atol=1e-6)


def test_a_dataset_of_nothing():
    """Zero images with zero labels are odd, but consistent."""
    assert len(MNISTDataset(PIXELS[:0], LABELS[:0])) == 0


IMAGES, DIGITS = "images: expected uint8 of shape (N, 28, 28)", "labels: expected uint8 of shape (N"
# name: pixels, labels, what the message must start with, and say was found, and the cause
NO_PAIRS = {
    "unequal counts": (PIXELS, LABELS[:11], "labels: expected 12 for the images", "11.", "mixed"),
    "swapped": (LABELS, PIXELS, IMAGES, "uint8 of shape (12,)", "swapped"),
    "images twice": (PIXELS, PIXELS, DIGITS, "uint8 of shape (12, 28, 28)", "swapped"),
    "labels in a column": (PIXELS, LABELS[:, None], DIGITS, "uint8 of shape (12, 1)", ""),
    "a single label": (PIXELS[:1], LABELS[0], DIGITS, "uint8 of shape ()", ""),
    "qmnist": (PIXELS, np.zeros((12, 8), "int32"), DIGITS, "int32 of shape (12, 8)", "QMNIST"),
}  # fmt: skip
for size in ((28, 27), (27, 28), (32, 32), (784,), (28, 28, 1), ()):
    images, found = np.zeros((12, *size), "uint8"), f"uint8 of shape {(12, *size)}"
    NO_PAIRS[f"images {size}"] = (images, LABELS, IMAGES, found, "")
for dtype in ("int8", "int32", "int64", "float32", "bool"):
    NO_PAIRS[f"{dtype} images"] = (PIXELS.astype(dtype), LABELS, IMAGES, f"{dtype} of shape", "")
    NO_PAIRS[f"{dtype} labels"] = (PIXELS, LABELS.astype(dtype), DIGITS, f"{dtype} of shape", "")
for wrong in (10, 26, 255):  # EMNIST's letters, for example, reach 26
    labels = np.where(np.arange(12) == 5, wrong, LABELS).astype("uint8")
    NO_PAIRS[f"label {wrong}"] = (PIXELS, labels, "labels: expected 0 to 9", f"{wrong}.", "another")


@pytest.mark.parametrize("case", NO_PAIRS)
def test_what_is_no_pair_of_images_and_labels(case):
    """Another type, shape, number or range is refused: which of the two, what was found, why."""
    pixels, labels, expected, found, cause = NO_PAIRS[case]
    with pytest.raises(IDXError) as caught:
        MNISTDataset(pixels, labels)
    message = str(caught.value)
    assert message.startswith(expected)
    assert f", found {found}" in message and cause in message.split(f", found {found}")[1]


def test_a_pair_of_files_that_does_not_fit_is_named(tmp_path, monkeypatch):
    """load_mnist says which two files it had read."""
    for part, count in (("train", 11), ("t10k", 12)):
        write(tmp_path / f"{part}-images.idx3-ubyte", PIXELS)
        write(tmp_path / f"{part}-labels.idx1-ubyte.gz", LABELS[:count])
    monkeypatch.setenv("MNIST_DIR", str(tmp_path))
    utils.find_mnist.cache_clear()
    try:
        with pytest.warns(UserWarning, match="not the original"):
            assert utils.load_mnist("test").labels.tolist() == LABELS.tolist()
        with pytest.raises(
            IDXError, match="labels: expected 12 for the images, found 11"
        ) as caught:
            utils.load_mnist("train")
    finally:
        utils.find_mnist.cache_clear()
    assert str(tmp_path / "train-images.idx3-ubyte, ") in str(caught.value)
    assert str(tmp_path / "train-labels.idx1-ubyte.gz: ") in str(caught.value)


# ------------------------------------------------ for all files: properties


@st.composite
def contents(draw):
    """A type, a shape and a body that fit each other, as the bytes of a plain file."""
    code = draw(st.sampled_from(list(TYPES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=5))
    length = math.prod(shape) * struct.calcsize(">" + TYPES[code][1])
    # Half of the bodies are noise (any bit pattern, odd NaNs too), half are plain runs.
    body = draw(st.binary(min_size=length, max_size=length) | st.just(bytes(length)))
    return header(code, shape) + body


@st.composite
def damages(draw, content):
    """The same bytes after one to three accidents: flips, cuts, additions, swaps, gaps."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        spot = st.integers(0, max(0, len(content) - 1))
        kind = draw(st.sampled_from(["flip", "set", "cut", "extend", "swap", "gap", "repeat"]))
        if kind == "cut":
            del content[draw(spot) :]
        elif kind == "extend":
            content += draw(st.binary(min_size=1, max_size=20) | st.just(bytes(3)))
        elif not content:
            continue
        elif kind == "flip":
            content[draw(spot)] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            content[draw(spot)] = draw(st.integers(0, 255))
        elif kind == "swap":
            one, other = draw(spot), draw(spot)
            content[one], content[other] = content[other], content[one]
        elif kind == "gap":
            start = draw(spot)
            del content[start : start + draw(st.integers(1, 8))]
        else:
            start = draw(spot)
            content[start:start] = content[start : start + draw(st.integers(1, 8))]
    return bytes(content)


def assert_read_or_refused(path, raw):
    """read_idx and the independent decoder agree: the same array, or an IDXError."""
    try:
        wanted = decode(raw)
    except Refused:
        with pytest.raises(IDXError):
            read_idx(path)
    else:
        assert_is(read_idx(path), *wanted)


@given(content=contents(), packed=st.booleans())
def test_any_array_is_read_bit_for_bit(folder, content, packed):
    """Whatever the type, the shape and the bits, compressed or not."""
    path = folder / "whole"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert_is(read_idx(path), *decode(content))


@given(data=st.data(), content=contents())
def test_a_damaged_plain_file_is_what_it_says_or_is_refused(folder, data, content):
    """A plain file has no checksum: where damage leaves header and length in agreement,
    the array is what the bytes say, no more can be asked. All else is an IDXError."""
    content = data.draw(damages(content))
    path = folder / "damaged"
    path.write_bytes(content)
    assert_read_or_refused(path, content)


@given(data=st.data(), content=contents(), level=st.sampled_from([0, 1, 9]))
def test_a_damaged_gzip_file_is_identical_or_refused(folder, data, content, level):
    """gzip has a checksum: damage gives the original array (where it hit a time stamp, a
    file name or padding) or an IDXError, never another array."""
    packed = data.draw(damages(gzip.compress(content, level)))
    path = folder / "damaged.gz"
    path.write_bytes(packed)
    wanted = content
    if packed[:2] != b"\x1f\x8b":  # no longer a gzip file, so the rule for plain files holds
        wanted = packed
    try:
        array = read_idx(path)
    except IDXError:
        return
    assert_is(array, *decode(wanted))


@given(junk=st.binary(max_size=60), start=st.sampled_from([b"", b"\0\0", b"\x1f\x8b", b"\0\0\x08"]))
@example(junk=b"\x08\x00" + bytes(50), start=b"\x1f\x8b")
def test_any_bytes_at_all_are_read_or_refused(folder, junk, start):
    """No file makes read_idx raise anything but IDXError."""
    path = folder / "junk"
    path.write_bytes(start + junk)
    assert_read_or_refused(path, start + junk)


# ----------------------------------------- agreement with torchvision's reader


def torchvision_agrees(path):
    """Whatever torchvision accepts, read_idx reads the same; say whether it did accept it."""
    try:
        theirs = read_sn3_pascalvincent_tensor(str(path)).numpy()
    except Exception:  # it refuses in many ways: AssertionError, ValueError, RuntimeError …
        return False
    ours = read_idx(path)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes()
    return True


@given(data=st.data(), content=contents(), damaged=st.booleans())
def test_agrees_with_torchvision(folder, data, content, damaged):
    """On whole and on damaged files, the other reader sees nothing that ours does not."""
    if damaged:
        content = data.draw(damages(content))
    path = folder / "theirs"
    path.write_bytes(content)
    agreed = torchvision_agrees(path)
    if not damaged:  # torchvision takes 1 to 3 dimensions and no empty files
        assert agreed == (1 <= content[3] <= 3 and 0 not in decode(content)[1])


@pytest.mark.parametrize("name", utils.DATASETS["mnist"]["files"])
def test_the_real_files(mnist, tmp_path, name):
    """MNIST itself: both readers agree, and written again it has the original's SHA-256."""
    size, sha256, _ = utils.DATASETS["mnist"]["files"][name]
    write(tmp_path / name, read_idx(mnist[name]))
    raw = (tmp_path / name).read_bytes()
    assert (len(raw), hashlib.sha256(raw).hexdigest()) == (size, sha256)
    assert torchvision_agrees(tmp_path / name)
