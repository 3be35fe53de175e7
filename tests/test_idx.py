"""Reading IDX files: right values, or an IDXError that explains itself."""

import gzip
import hashlib
import io
import lzma
import math
import struct
import sys
import tracemalloc
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

# Type code -> name in NumPy, letter in the struct module, six values. Written out here once
# more on purpose: a slip in the table of utils.py must not be copied into its tests.
TYPES = {
    0x08: ("uint8", "B", [0, 1, 127, 128, 255, 7]),
    0x09: ("int8", "b", [0, 1, 127, -128, -1, 7]),
    0x0B: ("int16", "h", [0, 1, 32767, -32768, 258, -2]),
    0x0C: ("int32", "i", [0, 1, 2**31 - 1, -(2**31), 16909060, -2]),
    0x0D: ("float32", "f", [0.0, -0.0, 0.5, -3.25, math.inf, 2.0**-149]),
    0x0E: ("float64", "d", [0.0, -0.0, 0.1, -1e300, -math.inf, 5e-324]),
}
MOST_DIMENSIONS = 64 if int(np.__version__.split(".")[0]) >= 2 else 32


def header(code, shape):
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def idx_bytes(code, shape, values):
    return header(code, shape) + struct.pack(f">{len(values)}{TYPES[code][1]}", *values)


def write(path, content, packed=False, level=9):
    """Write bytes, perhaps compressed, and return the path."""
    path.write_bytes(gzip.compress(content, level, mtime=0) if packed else content)
    return path


def decode(raw):
    """Decode a plain IDX file with the struct module alone: (code, shape, body), None if bad."""
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in TYPES or raw[3] > MOST_DIMENSIONS:
        return None
    if len(raw) < (start := 4 + 4 * raw[3]):
        return None
    shape, itemsize = struct.unpack_from(f">{raw[3]}I", raw, 4), struct.calcsize(TYPES[raw[2]][1])
    if len(raw) - start != math.prod(shape) * itemsize:
        return None
    if math.prod(size or 1 for size in shape) * itemsize >= 2**63:
        return None  # empty, but NumPy cannot express it: (0, 4294967295, 4294967295)
    return raw[2], shape, raw[start:]


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


# ------------------------------------------------------------- right values

either = pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
SHAPES = [
    (), (0,), (1,), (5,), (2, 3), (0, 5), (2, 0, 3), (2, 3, 4), (1, 2, 1, 3, 2), (0, 2**32 - 1),
    (1,) * MOST_DIMENSIONS, (2, *(1,) * (MOST_DIMENSIONS - 2), 3),
]  # fmt: skip


@either
@pytest.mark.parametrize("code", TYPES)
def test_every_type_reads_as_the_values_that_were_written(tmp_path, code, packed):
    """Native, writable, and whatever a browser that unpacks, or a hand, made of the name."""
    values = TYPES[code][2]
    raw = idx_bytes(code, (2, 3), values)
    path = write(tmp_path / ("idx3-ubyte" if packed else "plain.gz"), raw, packed)
    array = read_idx(path)
    assert array.tolist() == [values[:3], values[3:]]
    assert_is(array, code, (2, 3), raw[12:])
    array[0, 0] = 1  # really writable
    assert read_idx(str(path)).tolist() == [values[:3], values[3:]]  # a string is a path, too


@either
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(tmp_path, shape, packed):
    """From no dimension to as many as NumPy has, with and without empty ones."""
    raw = idx_bytes(0x0B, shape, [3 * n - 7 for n in range(math.prod(shape))])
    assert_is(read_idx(write(tmp_path / "file", raw, packed)), *decode(raw))


def test_a_gzip_file_may_have_several_members_and_zeros_at_its_end(tmp_path):
    """What `cat a.gz b.gz` makes, and tape padding, are gzip files like any other."""
    raw = idx_bytes(0x0C, (500,), list(range(500)))
    for cut in (0, 2, 7, 8, 1000, len(raw)):
        for gap in (b"", b"\0" * 3, b"\0" * (1 << 19)):
            content = gzip.compress(raw[:cut]) + gap + gzip.compress(raw[cut:]) + gap
            assert_is(read_idx(write(tmp_path / "file", content)), *decode(raw))


def test_a_large_file_passes_through_all_buffers(tmp_path):
    """Megabytes, of noise or of zeros that shrink as far as deflate can, arrive unchanged."""
    noise = np.random.default_rng(0).integers(0, 256, 3_000_017, dtype="uint8")
    for body in (noise, noise * 0, np.repeat(noise[:3000], 1500)):
        raw = header(0x08, body.shape) + body.tobytes()
        for packed, level in ((False, 0), (True, 1), (True, 9)):
            assert np.array_equal(read_idx(write(tmp_path / "file", raw, packed, level)), body)


# ---------------------------------------------------------- what is refused

GOOD = idx_bytes(0x08, (2, 3), [1, 2, 3, 4, 5, 6])
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:440fcabf\nsize 9912422\n"
NPZ = io.BytesIO()
np.savez(NPZ, x_train=np.zeros((2, 3), "uint8"))
SIX, ZEROS, SHAPE = "6 bytes of data, uint8 in the shape (2, 3)", "two zero bytes", "a shape for"
# name: content, what the message must say was expected, and found, and the cause or what to do
REFUSED = {
    "empty": (b"", "a header of at least 4 bytes", "0 bytes.", "cut short"),
    "three bytes": (b"\0\0\x08", "a header of at least 4 bytes", "3 bytes.", "cut short"),
    "html": (b"<!DOCTYPE html><html>", ZEROS, "3c 21 44 4f.", "HTML page"),
    "html after blank lines": (b"\r\n<html><body>", ZEROS, "0d 0a 3c 68.", "HTML page"),
    "csv with a header": (b"label,1x1,1x2\n5,0,0\n", ZEROS, "6c 61 62 65.", "such as CSV"),
    "csv": (b"5,0,0,0\n", ZEROS, "35 2c 30 2c.", "whose names contain idx"),
    "git lfs": (LFS, ZEROS, "76 65 72 73.", "git lfs pull"),
    "xz": (lzma.compress(GOOD), ZEROS, "fd 37 7a 58.", "xz -d"),
    "zip": (b"PK\3\4" + bytes(30), ZEROS, "50 4b 03 04.", "zip archive"),
    "npz": (NPZ.getvalue(), ZEROS, "50 4b 03 04.", "numpy.load"),
    "first byte": (b"\1" + GOOD[1:], ZEROS, "01 00 08 02.", "damaged"),
    "second byte": (b"\0\1" + GOOD[2:], ZEROS, "00 01 08 02.", "damaged"),
    "type 10": (b"\0\0\x0a\1\0\0\0\0", "a type in 08 09 0b 0c 0d 0e", "0a.", "damaged"),
    "sizes cut": (GOOD[:11], "2 sizes of 4 bytes", "7 bytes.", "cut short"),
    "body short": (GOOD[:-1], SIX, "5.", "cut short"),
    "body long": (GOOD + b"\0", SIX, "7", "joined"),
    "half an item": (header(0x0C, (2,)) + bytes(7), "8 bytes of data, int32", "7.", "cut short"),
    "scalar without value": (header(0x0D, ()), "4 bytes of data, float32", "0.", "cut short"),
    "255 dimensions": (header(0x08, (0,) * 255), SHAPE, "(0, 0, 0", "damaged"),
    "33 or 65": (header(8, (1,) * (MOST_DIMENSIONS + 1)) + b"x", SHAPE, "(1, 1, 1", "damaged"),
    "0 and absurd": (header(8, (0, 2**32 - 1, 2**32 - 1)), SHAPE, "(0, 4294967295,", "damaged"),
}  # fmt: skip
PACKED, STREAM = gzip.compress(GOOD, mtime=0), "a sound gzip stream"
CUT, OTHER = "this: Compressed file ended", "this: Not a gzipped file"
GZIP_REFUSED = {
    "two bytes": (PACKED[:2], STREAM, CUT, "cut short"),
    "cut in the data": (PACKED[:14], STREAM, CUT, "cut short"),
    "last byte missing": (PACKED[:-1], STREAM, CUT, "cut short"),
    "half a second member": (PACKED + PACKED[:10], STREAM, CUT, "cut short"),
    "one byte behind it": (PACKED + b"!", STREAM, OTHER, "damaged"),
    "garbage after zeros": (PACKED + b"\0\0!!!", STREAM, OTHER, "damaged"),
    "checksum": (PACKED[:-8] + b"????" + PACKED[-4:], STREAM, "this: CRC check failed", "damaged"),
    "length": (PACKED[:-1] + b"?", STREAM, "this: Incorrect length", "damaged"),
    "not deflate": (PACKED[:10] + b"\xff" * 20, STREAM, "this: Error -3", "damaged"),
    "unknown method": (b"\x1f\x8b\x07" + PACKED[3:], STREAM, "this: Unknown compr", "damaged"),
    "whole second member": (PACKED + PACKED, SIX, "7 or more.", "joined"),
    "packed twice": (gzip.compress(PACKED), ZEROS, "1f 8b 08 00.", "compressed twice"),
}  # fmt: skip
# Everything that is wrong with a plain file is wrong with the same file compressed.
for name, (content, *phrases) in REFUSED.items():
    GZIP_REFUSED[f"{name}, gzip"] = (gzip.compress(content), *phrases)
for name, content, wanted in (
    ("absurd", header(0x0E, (2**32 - 1,) * 64), f"{8 * (2**32 - 1) ** 64:,} bytes of data"),
    ("0 in 64 bits", header(0x08, (2**31, 2**31, 4)), "18,446,744,073,709,551,616 bytes of data"),
    ("a little too much", header(0x08, (50_000,)), "50,000 bytes of data"),  # deflate: 1 : 1032
):
    REFUSED[name], packed = (content, wanted, "0.", "cut short"), gzip.compress(content)
    found = f"{len(packed)} compressed bytes, too few for that."
    GZIP_REFUSED[f"{name}, gzip"] = (packed, wanted, found, "damaged")


@pytest.mark.parametrize("case", [*REFUSED, *GZIP_REFUSED])
def test_refused_with_a_message_that_explains(tmp_path, case):
    """The message names the file, what was expected, what was found, and the usual cause."""
    content, expected, found, cause = (REFUSED | GZIP_REFUSED)[case]
    path = write(tmp_path / "my-digits.idx", content)
    with pytest.raises(IDXError) as caught:
        read_idx(path)
    assert isinstance(caught.value, ValueError)
    before, after = str(caught.value).split(f", found {found}")
    assert before.startswith(f"{path}: expected {expected}") and cause in after
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
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, result


@either
def test_a_sound_file_costs_little_more_than_its_array(tmp_path, packed):
    """No second copy: 40 MB of floats need 44 MB, not 80."""
    body = np.random.default_rng(1).integers(0, 9, 1_000_000, dtype="uint8").tobytes() * 40
    path = write(tmp_path / "file", header(0x0E, (5_000, 1_000)) + body, packed, level=1)
    peak, array = peak_memory(path)
    assert array.shape == (5_000, 1_000)
    assert array.nbytes <= peak <= 1.1 * array.nbytes + SMALL


@either
@pytest.mark.parametrize("claim", [(2**32 - 1,), (2**16, 2**15), (3_000_000_000, 1, 1)], ids=str)
def test_a_header_that_lies_costs_no_more_than_the_file_holds(tmp_path, claim, packed):
    """Ten megabytes that claim to be gigabytes are refused within eleven."""
    # Of noise, so that the claim of the .gz file is not absurd at first sight.
    body = np.random.default_rng(2).bytes(10_000_000)
    peak, error = peak_memory(write(tmp_path / "file", header(0x08, claim) + body, packed, 1))
    assert isinstance(error, IDXError) and "found 10,000,000." in str(error)
    assert peak <= 1.1 * len(body) + SMALL


def bomb(start, megabytes):
    """A gzip stream of ``start`` and so many megabytes of zeros, without compressing them all."""
    engine = zlib.compressobj(9, wbits=31)
    packed = engine.compress(start) + engine.flush(zlib.Z_FULL_FLUSH)
    million = engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)
    # After a full flush, deflate looks back no further: one block can be repeated.
    return packed + million * megabytes + engine.flush()


@pytest.mark.parametrize("members", [False, True], ids=["one member", "many members"])
@pytest.mark.parametrize("shape", [(), (28, 28), (1_000_000,)], ids=str)
def test_a_gzip_bomb_is_stopped_where_its_header_says_the_end_is(tmp_path, shape, members):
    """Two gigabytes of zeros behind a small header: refused at the first byte too many."""
    start = header(0x08, shape)
    many = gzip.compress(start) + gzip.compress(bytes(1 << 20), 1) * 2048
    peak, error = peak_memory(write(tmp_path / "file", many if members else bomb(start, 2048)))
    assert isinstance(error, IDXError)
    assert f"found {math.prod(shape) + 1:,} or more." in str(error)
    assert peak <= SMALL


# --------------------------------------------------- images and their labels

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype="uint8")
LABELS = (np.arange(12) % 10).astype("uint8")


def assert_are(images, labels, positions):
    """The images and labels that stand at these positions, normalised as documented."""
    wanted = (PIXELS[positions].astype("float64") / 255 - MEAN) / STD
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(images.double(), torch.tensor(wanted[:, None]), rtol=0, atol=1e-6)
    assert labels.tolist() == LABELS[positions].tolist()


INDICES = {
    "list": [7, 1, 9],
    "tensor": torch.tensor([7, 1, 9]),
    "array": np.array([7, 1, 9]),
    "list of 0-d tensors": list(torch.tensor([7, 1, 9])),
    "list of numpy integers": [np.int64(7), np.uint8(1), np.int32(9)],
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_a_batch_by_any_kind_of_index(index):
    """From the data set in one step, or as a Subset's indices from a loader."""
    dataset = MNISTDataset(PIXELS, LABELS)
    assert_are(*dataset[index], [7, 1, 9])
    first, second = utils.make_loader(Subset(dataset, index), 2)
    assert_are(*first, [7, 1])
    assert_are(*second, [9])


def test_one_sample_a_slice_and_nothing():
    """A single image has a plain int for its label; past the end is an IndexError."""
    dataset = MNISTDataset(PIXELS, LABELS)
    assert len(dataset) == 12 and np.array_equal(dataset.pixels, PIXELS)
    for index in (7, -5, np.int64(7), np.uint8(7)):
        image, label = dataset[index]
        assert type(label) is int
        assert_are(image[None], torch.tensor([label]), [7])
    assert_are(*dataset[7:10], [7, 8, 9])
    assert_are(*dataset[[]], [])
    with pytest.raises(IndexError):
        dataset[12]
    assert len(MNISTDataset(PIXELS[:0], LABELS[:0])) == 0  # odd, but consistent


# name: pixels, labels, what was expected of which, what was found, the cause if there is a usual
IMAGES, DIGITS = "images: expected uint8 of shape (N, 28, 28)", "labels: expected uint8 of shape (N"
NO_PAIRS = {
    "unequal counts": (PIXELS, LABELS[:11], "labels: expected 12 for the images", "11.", "mixed"),
    "swapped": (LABELS, PIXELS, IMAGES, "uint8 of shape (12,)", "swapped"),
    "images twice": (PIXELS, PIXELS, DIGITS, "uint8 of shape (12, 28, 28)", "swapped"),
    "labels in a column": (PIXELS, LABELS[:, None], DIGITS, "uint8 of shape (12, 1)", ""),
    "a single label": (PIXELS[:1], np.array(7, "uint8"), DIGITS, "uint8 of shape ()", ""),
    "qmnist": (PIXELS, np.zeros((12, 8), "int32"), DIGITS, "int32 of shape (12, 8)", "other data"),
}  # fmt: skip
for size in ((28, 27), (27, 28), (32, 32), (784,), (28, 28, 1), ()):
    images, found = np.zeros((12, *size), "uint8"), f"uint8 of shape {(12, *size)}"
    NO_PAIRS[f"images {size}"] = (images, LABELS, IMAGES, found, "")
for dtype in ("int8", "int32", "int64", "float32", "bool"):
    NO_PAIRS[f"{dtype} images"] = (PIXELS.astype(dtype), LABELS, IMAGES, f"{dtype} of shape", "")
    NO_PAIRS[f"{dtype} labels"] = (PIXELS, LABELS.astype(dtype), DIGITS, f"{dtype} of shape", "")
for wrong in (10, 26, 255):  # EMNIST's letters, for example, reach 26
    labels = np.array([*LABELS[:11], wrong], "uint8")
    NO_PAIRS[f"label {wrong}"] = (PIXELS, labels, "labels: expected 0 to 9", f"{wrong}.", "another")


@pytest.mark.parametrize("case", NO_PAIRS)
def test_what_is_no_pair_of_images_and_labels(case):
    """Another type, shape, number or range is refused: which of the two, what was found, why."""
    pixels, labels, expected, found, cause = NO_PAIRS[case]
    with pytest.raises(IDXError) as caught:
        MNISTDataset(pixels, labels)
    before, after = str(caught.value).split(f", found {found}")
    assert before.startswith(expected) and cause in after


# ------------------------------------------------ for all files: properties


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One file for all property tests: Hypothesis wants no new one for each example."""
    return tmp_path_factory.mktemp("idx") / "file"


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
        start, length, other = draw(spot), draw(st.integers(1, 8)), draw(spot)
        if kind == "cut":
            del content[start:]
        elif kind == "gap":
            del content[start : start + length]
        elif kind == "repeat":
            content[start:start] = content[start : start + length]
        elif kind == "extend" or not content:
            content += draw(st.binary(min_size=1, max_size=20) | st.just(bytes(3)))
        elif kind == "set":
            content[start] = draw(st.integers(0, 255))
        elif kind == "flip":
            content[start] ^= 1 << length - 1
        else:
            content[start], content[other] = content[other], content[start]
    return bytes(content)


def assert_read_or_refused(path, raw):
    """read_idx and the independent decoder agree: the same array, or an IDXError."""
    if wanted := decode(raw):
        assert_is(read_idx(path), *wanted)
    else:
        with pytest.raises(IDXError):
            read_idx(path)


@given(content=contents(), packed=st.booleans())
def test_any_array_is_read_bit_for_bit(path, content, packed):
    """Whatever the type, the shape and the bits, compressed or not."""
    assert_is(read_idx(write(path, content, packed)), *decode(content))


@given(data=st.data(), content=contents())
def test_a_damaged_plain_file_is_what_it_says_or_is_refused(path, data, content):
    """A plain file has no checksum: where damage leaves header and length in agreement,
    the array is what the bytes say, no more can be asked. All else is an IDXError."""
    content = data.draw(damages(content))
    assert_read_or_refused(write(path, content), content)


@given(data=st.data(), content=contents(), level=st.sampled_from([0, 1, 9]))
def test_a_damaged_gzip_file_is_identical_or_refused(path, data, content, level):
    """gzip has a checksum: damage gives the original array (where it hit a time stamp, a
    file name or padding) or an IDXError, never another array."""
    packed = data.draw(damages(gzip.compress(content, level, mtime=0)))
    if packed[:2] != b"\x1f\x8b":  # no longer a gzip file, so the rule for plain files holds
        content = packed
    try:
        array = read_idx(write(path, packed))
    except IDXError:
        return
    assert_is(array, *decode(content))


@given(junk=st.binary(max_size=60), start=st.sampled_from([b"", b"\0\0", b"\x1f\x8b", b"\0\0\x08"]))
@example(junk=b"\x08\x00" + bytes(50), start=b"\x1f\x8b")
def test_any_bytes_at_all_are_read_or_refused(path, junk, start):
    """No file makes read_idx raise anything but IDXError."""
    assert_read_or_refused(write(path, start + junk), start + junk)


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
def test_agrees_with_torchvision(path, data, content, damaged):
    """On whole and on damaged files, the other reader sees nothing that ours does not."""
    if damaged:
        content = data.draw(damages(content))
    agreed = torchvision_agrees(write(path, content))
    if not damaged:  # torchvision takes 1 to 3 dimensions and no empty files
        assert agreed == (1 <= content[3] <= 3 and 0 not in decode(content)[1])


@pytest.mark.parametrize("name", utils.DATASETS["mnist"]["files"])
def test_the_real_files(mnist, tmp_path, name):
    """MNIST itself: both readers agree, and written again it has the original's SHA-256."""
    size, sha256, _ = utils.DATASETS["mnist"]["files"][name]
    array = read_idx(mnist[name])
    raw = header(0x08, array.shape) + array.tobytes()
    assert (len(raw), hashlib.sha256(raw).hexdigest()) == (size, sha256)
    assert torchvision_agrees(write(tmp_path / name, raw))
