"""Reading and writing IDX files: right values, or an IDXError that explains itself."""

import gzip
import hashlib
import math
import os
import struct
import sys
import tracemalloc
import zlib

import idx2numpy
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from utils import (
    MEAN,
    MNIST_FILES,
    STD,
    IDXError,
    MNISTDataset,
    _read_pair,
    mnist_files,
    read_idx,
    write_idx,
)

# Type code -> name in NumPy, letter in the struct module. Written out here once more
# on purpose: a slip in the table of utils.py must not be copied into its tests.
TYPES = {
    0x08: ("uint8", "B"),
    0x09: ("int8", "b"),
    0x0B: ("int16", "h"),
    0x0C: ("int32", "i"),
    0x0D: ("float32", "f"),
    0x0E: ("float64", "d"),
}
MOST_DIMENSIONS = 64 if int(np.__version__.split(".")[0]) >= 2 else 32


def header(code, shape):
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def idx_bytes(code, shape, values):
    return header(code, shape) + struct.pack(f">{len(values)}{TYPES[code][1]}", *values)


def itemsize(code):
    return struct.calcsize(">" + TYPES[code][1])


class Refused(Exception):
    """The independent decoder found something wrong."""


def decode(raw):
    """Decode a plain IDX file with the struct module alone: (code, shape, body)."""
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in TYPES or raw[3] > MOST_DIMENSIONS:
        raise Refused
    if len(raw) < 4 + 4 * raw[3]:
        raise Refused
    shape, body = struct.unpack_from(f">{raw[3]}I", raw, 4), raw[4 + 4 * raw[3] :]
    if len(body) != math.prod(shape) * itemsize(raw[2]):
        raise Refused
    if math.prod(size or 1 for size in shape) * itemsize(raw[2]) >= 2**63:
        raise Refused  # empty, but NumPy cannot express it: (0, 4294967295, 4294967295)
    return raw[2], shape, body


def assert_is(array, code, shape, body):
    """The array is exactly that content, bit for bit, in the machine's own byte order."""
    assert type(array) is np.ndarray
    assert array.dtype == np.dtype(TYPES[code][0])
    assert array.dtype.isnative
    assert array.flags.writeable
    assert array.flags.c_contiguous
    assert array.shape == tuple(shape)
    size = itemsize(code)
    if sys.byteorder == "little":  # reverse the bytes of every item, without NumPy's help
        body = b"".join(body[start : start + size][::-1] for start in range(0, len(body), size))
    assert array.tobytes() == body


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all property tests: Hypothesis wants no new one for each example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)  # 100,000 of them take long
        yield tmp_path_factory.mktemp("idx")


# ------------------------------------------------------------- right values


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
@pytest.mark.parametrize(
    ("code", "values"),
    [
        (0x08, [0, 1, 127, 128, 255, 7]),
        (0x09, [0, 1, 127, -128, -1, 7]),
        (0x0B, [0, 1, 32767, -32768, 258, -2]),
        (0x0C, [0, 1, 2**31 - 1, -(2**31), 16909060, -2]),
        (0x0D, [0.0, -0.0, 0.5, -3.25, math.inf, 2.0**-149]),
        (0x0E, [0.0, -0.0, 0.1, -1e300, -math.inf, 5e-324]),
    ],
)
def test_every_type_reads_as_the_values_that_were_written(tmp_path, code, values, packed):
    """Each of the six types arrives with its values, native and writable."""
    raw = idx_bytes(code, (2, 3), values)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    array = read_idx(path)
    assert array.tolist() == [values[:3], values[3:]]
    assert_is(array, code, (2, 3), raw[12:])
    array[0, 0] = 1  # really writable
    assert read_idx(str(path)).tolist() == [values[:3], values[3:]]  # a string is a path, too


SHAPES = [
    (),
    (0,),
    (1,),
    (5,),
    (2, 3),
    (0, 5),
    (5, 0),
    (2, 0, 3),
    (2, 3, 4),
    (1, 2, 1, 3, 2),
    (0, 2**32 - 1),
    (1,) * MOST_DIMENSIONS,
    (2, *(1,) * (MOST_DIMENSIONS - 2), 3),
]


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(tmp_path, shape, packed):
    """From no dimension to as many as NumPy has, with and without empty ones."""
    raw = idx_bytes(0x0B, shape, [3 * n - 7 for n in range(math.prod(shape))])
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    assert_is(read_idx(path), *decode(raw))
    write_idx(tmp_path / "again", read_idx(path))
    assert (tmp_path / "again").read_bytes() == raw


def test_compression_is_recognised_by_content_not_by_name(tmp_path):
    """A browser that unpacks, or a hand that renames, does no harm."""
    raw = idx_bytes(0x08, (3,), [1, 2, 3])
    (tmp_path / "plain.gz").write_bytes(raw)
    (tmp_path / "packed-idx1-ubyte").write_bytes(gzip.compress(raw))
    assert read_idx(tmp_path / "plain.gz").tolist() == [1, 2, 3]
    assert read_idx(tmp_path / "packed-idx1-ubyte").tolist() == [1, 2, 3]


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
    """Several megabytes, that compress well or not at all, arrive unchanged."""
    noise = np.random.default_rng(0).integers(0, 256, 3_000_017, dtype="uint8")
    for body in (noise, noise * 0, np.repeat(noise[:3000], 1500)):
        raw = header(0x08, (len(body),)) + body.tobytes()
        for number, content in enumerate((raw, gzip.compress(raw, 1))):
            path = tmp_path / str(number)
            path.write_bytes(content)
            assert np.array_equal(read_idx(path), body)


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("code", TYPES)
def test_write_makes_the_bytes_of_the_format(tmp_path, code, order):
    """Whatever the byte order in memory, the file is big-endian."""
    values = [0, 1, 100, -100 if code > 8 else 200, 7, 99]
    array = np.array(values, dtype=TYPES[code][0]).reshape(3, 2)
    write_idx(tmp_path / "file", array.astype(array.dtype.newbyteorder(order)))
    assert (tmp_path / "file").read_bytes() == idx_bytes(code, (3, 2), values)
    write_idx(tmp_path / "file.gz", array)
    assert gzip.decompress((tmp_path / "file.gz").read_bytes()) == idx_bytes(code, (3, 2), values)


def test_write_takes_arrays_that_are_not_contiguous(tmp_path):
    """Transposed, reversed, strided and repeated arrays are written as they look."""
    base = np.arange(24, dtype="int16").reshape(4, 6)
    views = [base.T, base[::-1], base[:, ::2], np.asfortranarray(base), base[1:3, 1:4]]
    views += [np.broadcast_to(base[0], (3, 6)), base[::-2, ::-3].T, base[2, 3]]
    for view in views:
        write_idx(tmp_path / "file", view)
        assert read_idx(tmp_path / "file").tolist() == view.tolist()
    assert base.tolist() == np.arange(24).reshape(4, 6).tolist()  # the input stays as it was


def test_write_gives_the_same_file_for_the_same_array(tmp_path, monkeypatch):
    """No time stamp in the .gz: a file written tomorrow has the same checksum."""
    array, written = np.arange(10, dtype="uint8"), []
    for now in (1_000_000_000, 2_000_000_000):
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_idx(tmp_path / "file.gz", array)
        written.append((tmp_path / "file.gz").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "dtype", ["int64", "uint16", "uint32", "bool", "float16", "complex64", "U3", "O", "M8[s]"]
)
def test_write_refuses_types_that_idx_does_not_have(tmp_path, dtype):
    """int64 is not silently cut down to int32; the message names the type and a way out."""
    with pytest.raises(IDXError, match="astype") as caught:
        write_idx(tmp_path / "file", np.zeros(3, dtype=dtype))
    assert str(np.dtype(dtype)) in str(caught.value)
    assert "file" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_write_refuses_dimensions_that_idx_cannot_say(tmp_path):
    """A dimension has 32 bits; one more than fits is refused, not wrapped round to 0."""
    with pytest.raises(IDXError, match="4294967296"):
        write_idx(tmp_path / "file", np.zeros((0, 2**32), dtype="uint8"))
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    """An error while writing costs neither the file that was there nor any litter."""
    path = tmp_path / "file"
    write_idx(path, np.arange(3, dtype="uint8"))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_idx(path, np.arange(9, dtype="uint8"))
    assert read_idx(path).tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------- what is refused

GOOD = idx_bytes(0x08, (2, 3), [1, 2, 3, 4, 5, 6])
HTML = b"<!DOCTYPE html><html><body>Not found</body></html>"
HUGE = header(0x0E, (2**32 - 1,) * MOST_DIMENSIONS)


def damaged_at(content, position):
    position %= len(content)
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


# name: content, what the message must say was expected, found, and the usual cause
REFUSED = {
    "empty": (b"", "at least 4 bytes", "an empty file", "cut short"),
    "three bytes": (b"\0\0\x08", "at least 4 bytes", "3 bytes", "cut short"),
    "html": (HTML, "two zero bytes", "3c 21 44 4f", "HTML"),
    "html after blank lines": (b"\r\n" + HTML, "two zero bytes", "0d 0a 3c 21", "HTML"),
    "json": (b'{"error": 403}', "two zero bytes", "7b 22", "text"),
    "zip": (b"PK\3\4" + bytes(30), "two zero bytes", "50 4b 03 04", "zip archive"),
    "first byte": (b"\1" + GOOD[1:], "two zero bytes", "01 00 08 02", "get the file again"),
    "second byte": (b"\0\1" + GOOD[2:], "two zero bytes", "00 01 08 02", "get the file again"),
    "type 0": (b"\0\0\0\1\0\0\0\0", "0x08 uint8", "0x00", "damaged"),
    "type 10": (b"\0\0\x0a\1\0\0\0\0", "0x0b int16", "0x0a", "damaged"),
    "type 15": (b"\0\0\x0f\1\0\0\0\0", "0x0e float64", "0x0f", "damaged"),
    "no sizes": (GOOD[:4], "12 bytes for 2 dimensions", "found 4", "cut short"),
    "sizes cut": (GOOD[:11], "12 bytes for 2 dimensions", "found 11", "cut short"),
    "no body": (GOOD[:12], "6 bytes of data", "found 0", "cut short"),
    "body short": (GOOD[:-1], "6 bytes of data", "found 5", "cut short"),
    "body long": (GOOD + b"\0", "6 bytes of data", "found", "joined"),
    "body twice": (GOOD + GOOD[12:], "6 bytes of data", "found", "joined"),
    "half an item": (header(0x0C, (2,)) + bytes(7), "8 bytes of data", "found 7", "cut short"),
    "scalar without value": (header(0x0D, ()), "4 bytes of data", "found 0", "cut short"),
    "255 dimensions": (b"\0\0\x08\xff" + bytes(1020), "at most", "255", "damaged"),
    "one dimension too many": (
        header(0x08, (1,) * (MOST_DIMENSIONS + 1)) + b"x", "at most", str(MOST_DIMENSIONS + 1),
        "damaged"),
    "absurd": (HUGE, "bytes of data", "found", "damaged"),
    "absurd with a zero": (header(0x08, (0, 2**32 - 1, 2**32 - 1)), "NumPy", "4294967295",
                           "damaged"),
    "wraps round to 0 in 64 bits": (header(0x08, (2**31, 2**31, 4)), "18,446,744,073,709,551,616",
                                    "found", "damaged"),
}  # fmt: skip

PACKED = gzip.compress(GOOD, mtime=0)
GZIP_REFUSED = {
    "two bytes": (PACKED[:2], "whole gzip stream", "cut short", "get the file again"),
    "header only": (PACKED[:10], "whole gzip stream", "cut short", "get the file again"),
    "cut in the data": (PACKED[:14], "whole gzip stream", "cut short", "get the file again"),
    "no trailer": (PACKED[:-8], "whole gzip stream", "cut short", "get the file again"),
    "last byte missing": (PACKED[:-1], "whole gzip stream", "cut short", "get the file again"),
    "checksum": (damaged_at(PACKED, -8), "sound gzip stream", "data check", "Get the file again"),
    "length": (damaged_at(PACKED, -1), "sound gzip stream", "length check", "Get the file again"),
    "garbage behind it": (PACKED + b"garbage", "sound gzip stream", "header", "Get the file again"),
    "one byte behind it": (PACKED + b"!", "gzip stream", "found", "et the file again"),
    "garbage after zeros": (PACKED + b"\0\0!!!", "sound gzip stream", "header", "Get the file"),
    "half a second member": (PACKED + PACKED[:10], "whole gzip stream", "cut short", "again"),
    "whole second member": (PACKED + PACKED, "6 bytes of data", "at least 7", "joined"),
    "unknown method": (b"\x1f\x8b\x07" + PACKED[3:], "sound gzip stream", "method", "again"),
    "packed twice": (gzip.compress(PACKED), "two zero bytes", "1f 8b", "compressed twice"),
    "absurd": (gzip.compress(HUGE), "bytes of data", "compressed bytes", "damaged"),
    "more than deflate can hold": (gzip.compress(header(0x08, (10**9,))), "1,000,000,000 bytes",
                                   "compressed bytes", "damaged"),
}  # fmt: skip
# Everything that is wrong with a plain file is wrong with the same file compressed.
for name, (content, expected, found, cause) in REFUSED.items():
    if name not in ("absurd", "wraps round to 0 in 64 bits"):
        GZIP_REFUSED[f"{name}, gzip"] = (gzip.compress(content, mtime=0), expected, found, cause)


@pytest.mark.parametrize("case", [*REFUSED, *GZIP_REFUSED])
def test_refused_with_a_message_that_explains(tmp_path, case):
    """The message names the file, what was expected, what was found, and the usual cause."""
    content, *phrases = (REFUSED | GZIP_REFUSED)[case]
    path = tmp_path / "my-digits.idx"
    path.write_bytes(content)
    with pytest.raises(IDXError) as caught:
        read_idx(path)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message.startswith(f"{path}: expected ")
    for phrase in phrases:
        assert phrase in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_folder_is_refused_and_a_missing_file_is_missing(tmp_path):
    """The two mistakes in the path: Kaggle's folder named like the file, and a typing error."""
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(IDXError, match="found a folder.*inside it"):
        read_idx(tmp_path / "train-images-idx3-ubyte")
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
    assert "found 10,000,000" in str(error)
    assert peak <= 1.1 * len(body) + SMALL


def bomb(start, megabytes):
    """A gzip stream of ``start`` and so many megabytes of zeros, without compressing them all."""
    engine = zlib.compressobj(9, wbits=31)
    packed = engine.compress(start) + engine.flush(zlib.Z_FULL_FLUSH)
    million = engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)
    # After a full flush, deflate looks back no further: one block can be repeated.
    return packed + million * megabytes + engine.flush()


@pytest.mark.parametrize("shape", [(), (10,), (28, 28), (1_000_000,)], ids=str)
def test_a_gzip_bomb_is_stopped_where_its_header_says_the_end_is(tmp_path, shape):
    """Two gigabytes of zeros behind a small header: refused at the first byte too many."""
    path = tmp_path / "bomb"
    path.write_bytes(bomb(header(0x08, shape), 2048))
    peak, error = peak_memory(path)
    assert isinstance(error, IDXError)
    assert f"found at least {math.prod(shape) + 1:,}" in str(error)
    assert peak <= SMALL


def test_a_bomb_in_many_members_is_stopped_too(tmp_path):
    """The second stream in a row is no way round the limit."""
    path = tmp_path / "bomb"
    member = gzip.compress(bytes(1 << 20), 1)
    path.write_bytes(gzip.compress(header(0x08, (10,))) + member * 2048)
    peak, error = peak_memory(path)
    assert isinstance(error, IDXError)
    assert "found at least 11" in str(error)
    assert peak <= SMALL


# --------------------------------------------------- images and their labels


def make_pair(folder, count=12, size=(28, 28), seed=0):
    """Write a well-formed pair that is not MNIST; return both paths."""
    generator = np.random.default_rng(seed)
    images, labels = folder / "images", folder / "labels"
    write_idx(images, generator.integers(0, 256, (count, *size), dtype="uint8"))
    write_idx(labels, (np.arange(count) % 10).astype("uint8"))
    return images, labels


def test_a_good_pair_becomes_a_dataset(tmp_path):
    """One sample by number, a batch by slice, list or tensor; normalised as documented."""
    images, labels = make_pair(tmp_path)
    dataset = MNISTDataset(images, labels)
    assert len(dataset) == 12
    assert dataset.pixels.tolist() == read_idx(images).tolist()
    wanted = torch.tensor((dataset.pixels.astype("float64") / 255 - MEAN) / STD)
    image, label = dataset[7]
    assert image.shape == (1, 28, 28)
    assert image.dtype == torch.float32
    assert type(label) is int
    assert label == 7
    torch.testing.assert_close(image[0].double(), wanted[7], rtol=0, atol=1e-6)
    for index in ([7, 8, 9], slice(7, 10), torch.tensor([7, 8, 9]), np.array([7, 8, 9])):
        batch, targets = dataset[index]
        assert batch.shape == (3, 1, 28, 28)
        assert targets.dtype == torch.int64
        assert targets.tolist() == [7, 8, 9]
        torch.testing.assert_close(batch[:, 0].double(), wanted[7:10], rtol=0, atol=1e-6)
    assert dataset[-1][1] == dataset[11][1]
    with pytest.raises(IndexError):
        dataset[12]


def test_pair_with_unequal_counts(tmp_path):
    """Training images with test labels: the message gives both counts."""
    images, labels = make_pair(tmp_path)
    write_idx(labels, np.zeros(11, dtype="uint8"))
    with pytest.raises(IDXError, match="expected 12 labels.*found 11.*mixed up"):
        _read_pair(images, labels)


@pytest.mark.parametrize("size", [(28, 27), (27, 28), (32, 32), (784,), (28, 28, 1), ()], ids=str)
def test_pair_with_images_of_another_shape(tmp_path, size):
    """Only 28 by 28 grey pixels are MNIST's images."""
    images, labels = make_pair(tmp_path, size=size)
    with pytest.raises(IDXError, match=r"images: expected uint8 images of shape \(N, 28, 28\)"):
        MNISTDataset(images, labels)


@pytest.mark.parametrize("which", ["images", "labels"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32", "float64"])
def test_pair_of_another_type(tmp_path, which, dtype):
    """float32 pixels, or labels as int32, are another data set."""
    paths = dict(zip(("images", "labels"), make_pair(tmp_path)))
    write_idx(paths[which], read_idx(paths[which]).astype(dtype))
    with pytest.raises(IDXError, match=f"{which}: expected uint8 {which}.*found {dtype}"):
        MNISTDataset(paths["images"], paths["labels"])


def test_pair_swapped(tmp_path):
    """The classic slip, found and named."""
    images, labels = make_pair(tmp_path)
    with pytest.raises(IDXError, match="swapped"):
        MNISTDataset(labels, images)
    with pytest.raises(IDXError, match="labels.*swapped"):
        MNISTDataset(images, images)


@pytest.mark.parametrize("wrong", [10, 26, 255])
def test_pair_with_labels_past_nine(tmp_path, wrong):
    """EMNIST's letters, for example, reach 26."""
    images, labels = make_pair(tmp_path)
    values = read_idx(labels)
    values[5] = wrong
    write_idx(labels, values)
    with pytest.raises(IDXError, match=f"labels from 0 to 9, found {wrong}"):
        MNISTDataset(images, labels)


def test_pair_of_nothing(tmp_path):
    """Zero images with zero labels are odd, but consistent."""
    assert len(MNISTDataset(*make_pair(tmp_path, count=0))) == 0


# ------------------------------------------------ for all files: properties


@st.composite
def contents(draw):
    """A type, a shape and a body that fit each other, as the bytes of a plain file."""
    code = draw(st.sampled_from(list(TYPES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=5))
    length = math.prod(shape) * itemsize(code)
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


@given(content=contents(), packed=st.booleans())
def test_any_array_survives_the_round_trip(folder, content, packed):
    """read_idx gives every bit, write_idx gives the very file back."""
    path, copy = folder / "round", folder / ("copy.gz" if packed else "copy")
    path.write_bytes(gzip.compress(content) if packed else content)
    array = read_idx(path)
    assert_is(array, *decode(content))
    write_idx(copy, array)
    written = copy.read_bytes()
    assert (gzip.decompress(written) if packed else written) == content


@given(data=st.data(), content=contents())
def test_a_damaged_plain_file_is_what_it_says_or_is_refused(folder, data, content):
    """A plain file has no checksum: where damage leaves header and length in agreement,
    the array is what the bytes say, no more can be asked. All else is an IDXError."""
    content = data.draw(damages(content))
    path = folder / "damaged"
    path.write_bytes(content)
    try:
        wanted = decode(content)
    except Refused:
        with pytest.raises(IDXError):
            read_idx(path)
    else:
        assert_is(read_idx(path), *wanted)


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
    try:
        wanted = decode(start + junk)
    except Refused:
        with pytest.raises(IDXError):
            read_idx(path)
    else:
        assert_is(read_idx(path), *wanted)


# --------------------------------------------- agreement with other readers


def same(ours, theirs):
    assert ours.dtype == theirs.dtype.newbyteorder("=")
    assert ours.shape == theirs.shape
    assert ours.astype(ours.dtype.newbyteorder("<")).tobytes() == (
        theirs.astype(theirs.dtype.newbyteorder("<")).tobytes()
    )


def check_against_others(path):
    """Whatever idx2numpy or torchvision accept, read_idx reads the same; count who did."""
    agreed = 0
    for reader in (
        lambda: idx2numpy.convert_from_file(str(path)),
        lambda: read_sn3_pascalvincent_tensor(str(path)).numpy(),
    ):
        try:
            theirs = reader()
        except Exception:  # they refuse in many ways: FormatError, AssertionError, ValueError …
            continue
        same(read_idx(path), theirs)
        agreed += 1
    return agreed


@given(data=st.data(), content=contents(), damaged=st.booleans())
def test_agrees_with_idx2numpy_and_torchvision(folder, data, content, damaged):
    """On whole and on damaged files, no other reader sees something that ours does not."""
    if damaged:
        content = data.draw(damages(content))
    path = folder / "theirs"
    path.write_bytes(content)
    agreed = check_against_others(path)
    if not damaged:  # torchvision takes 1 to 3 dimensions and no empty files
        empty = 0 in decode(content)[1]
        assert agreed == 1 + (1 <= content[3] <= 3 and not empty)


@pytest.mark.parametrize("code", TYPES)
def test_idx2numpy_reads_what_we_write(tmp_path, code):
    """The other direction: a file from write_idx opens elsewhere."""
    array = np.arange(24).reshape(2, 3, 4).astype(TYPES[code][0])
    write_idx(tmp_path / "file", array)
    assert check_against_others(tmp_path / "file") == 2
    same(array, idx2numpy.convert_from_file(str(tmp_path / "file")))


@pytest.mark.parametrize("name", MNIST_FILES)
def test_the_real_files(mnist, tmp_path, name):
    """MNIST itself: the three readers agree, and written again it has the original's SHA-256."""
    array = read_idx(mnist_files(mnist)[name])
    write_idx(tmp_path / name, array)
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == MNIST_FILES[name][1]
    assert check_against_others(tmp_path / name) == 2
