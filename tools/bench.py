"""Print the speed tables: the classic ways against this collection's, on real MNIST.

    python tools/bench.py

Other programs on the machine disturb a clock, so the two ways take turns in slices
of well under a second, many times over. The table gives the ratio of the medians and
the ratio of the fastest tenths of the slices; where these two disagree, trust neither
and measure again on a quieter machine.
"""

import gzip
import itertools
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils  # noqa: E402

ROUNDS = 60
TRAIN_SLICE, TEST_SLICE = 50, 10  # batches of 16


class ClassicDataset(Dataset):
    """The data path of most tutorials: each image goes through Pillow, every time."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([
            transforms.Resize((28, 28)),
            transforms.ToTensor(),
            transforms.Normalize((utils.MEAN,), (utils.STD,)),
        ])  # fmt: skip

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class ClassicNet(nn.Module):
    """The same network as it is usually written: ReLU before pooling, default layout."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(576, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        for layer in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.relu(layer(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def forever(loader):
    return itertools.chain.from_iterable(itertools.repeat(loader))


def training_steps(model, optimizer, batches, losses):
    """Yield after each training step; the mean loss is kept as the recipe asks."""
    while True:
        images, labels = next(batches)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        yield


def test_batches(model, batches):
    """Yield after each batch of an evaluation."""
    total, correct = 0.0, 0
    while True:
        with torch.inference_mode():
            images, labels = next(batches)
            logits = model(images)
            total += F.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
        yield


def seconds(steps, count):
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    return time.perf_counter() - start


def interleave(contestants: dict, rounds: int) -> dict:
    """Call each function in turn, many times; return the seconds of each call."""
    times = {name: [] for name in contestants}
    for function in contestants.values():
        function()  # the first call warms up caches and allocators
    for _ in range(rounds):
        for name, function in contestants.items():
            times[name].append(function())
    return times


def fastest_tenth(values):
    return statistics.mean(sorted(values)[: max(1, len(values) // 10)])


def ratios(ours, theirs):
    median = statistics.median(ours) / statistics.median(theirs)
    return f"{median:8.2f} {fastest_tenth(ours) / fastest_tenth(theirs):13.2f}"


def bench_epoch():
    train, test = utils.load_mnist("train"), utils.load_mnist("test")
    losses = {"classic": [], "ours": []}

    torch.manual_seed(0)
    classic = ClassicNet()
    adam = torch.optim.Adam(classic.parameters(), lr=0.001, weight_decay=1e-5)
    ours = utils.new_model(seed=0)
    # Both see the same pictures in the same order, so that their losses can be compared.
    order = [list(map(int, i)) for i in utils.BatchIndices(len(train), 16, shuffle=True, seed=0)]
    classic_train = ClassicDataset(train.pixels, train.labels.numpy())
    classic_test = ClassicDataset(test.pixels, test.labels.numpy())
    steps = {
        "classic data": forever(DataLoader(classic_train, batch_size=16, shuffle=True)),
        "ours data": forever(utils.make_loader(train, shuffle=True, seed=0)),
        "classic train": training_steps(
            classic, adam, forever(DataLoader(classic_train, batch_sampler=order)),
            losses["classic"],
        ),
        "ours train": training_steps(
            ours, utils.new_optimizer(ours),
            forever(utils.make_loader(train, shuffle=True, seed=0)), losses["ours"],
        ),
        "classic test": test_batches(classic, forever(DataLoader(classic_test, batch_size=16))),
        "ours test": test_batches(ours, forever(utils.make_loader(test, 16))),
    }  # fmt: skip
    counts = {name: TEST_SLICE if "test" in name else TRAIN_SLICE for name in steps}
    times = interleave(
        {name: lambda n=name: seconds(steps[n], counts[n]) for name in steps}, ROUNDS
    )
    for who in ("classic", "ours"):
        # One epoch of the recipe: 3,750 training batches, then 625 test batches.
        times[f"{who} epoch"] = [
            3750 / TRAIN_SLICE * a + 625 / TEST_SLICE * b
            for a, b in zip(times[f"{who} train"], times[f"{who} test"])
        ]
    scale = {"data": 3750 / TRAIN_SLICE, "train": 3750 / TRAIN_SLICE,
             "test": 625 / TEST_SLICE, "epoch": 1}  # fmt: skip
    titles = {"data": "data path alone, 60,000 images", "train": "training, 60,000 images",
              "test": "test, 10,000 images", "epoch": "one epoch of the recipe"}  # fmt: skip

    print(f"\n{'batch size 16, float32':32} classic (s)  ours (s)  ours / classic")
    print(f"{'':32} {'median':>11} {'median':>9}  {'medians':>8} {'fastest tenths':>14}")
    for part, title in titles.items():
        a, b = times[f"classic {part}"], times[f"ours {part}"]
        print(
            f"{title:32} {scale[part] * statistics.median(a):11.2f} "
            f"{scale[part] * statistics.median(b):9.2f}  {ratios(b, a)}"
        )
    first = [torch.stack(values[:TRAIN_SLICE]) for values in losses.values()]
    print(f"training losses of the first {TRAIN_SLICE} steps differ by at most "
          f"{(first[0] - first[1]).abs().max():.1e}")  # fmt: skip


def bench_idx():
    raw = utils.mnist_files(utils.find_mnist())["train-images.idx3-ubyte"]
    data = utils.read_idx(raw)
    folder = utils.output_dir()
    plain, packed = folder / "bench.idx", folder / "bench.idx.gz"
    try:
        utils.write_idx(plain, data)
        utils.write_idx(packed, data)

        def timed(function):
            def call():
                start = time.perf_counter()
                function()
                return time.perf_counter() - start

            return call

        times = interleave(
            {
                "numpy.fromfile": timed(lambda: np.fromfile(plain, dtype=np.uint8)),
                "read_idx": timed(lambda: utils.read_idx(plain)),
                "gzip.decompress": timed(lambda: gzip.decompress(packed.read_bytes())),
                "read_idx, gzip": timed(lambda: utils.read_idx(packed)),
            },
            rounds=15,
        )
    finally:
        plain.unlink(missing_ok=True)
        packed.unlink(missing_ok=True)

    print(f"\n{'reading the training images':32} theirs (ms)  ours (ms)  ours / theirs")
    for theirs, ours in (("numpy.fromfile", "read_idx"), ("gzip.decompress", "read_idx, gzip")):
        print(
            f"{ours + ' / ' + theirs:32} {1e3 * statistics.median(times[theirs]):11.1f} "
            f"{1e3 * statistics.median(times[ours]):10.1f}  {ratios(times[ours], times[theirs])}"
        )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(f"{processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    bench_epoch()
    bench_idx()
