"""Kill real training processes at random moments, let them go on, and compare the ends.

    python -m tests.interrupted_training FOLDER KILLS SEED

Run by tests/test_training.py. Prints one JSON line for each process that was killed. Each
training runs in a child of its own, forked from this process so that PyTorch need not be
imported again; with a single thread, because a fork copies no threads.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from torch.utils.data import Subset

import utils
from tools.notebook_code import definitions

EPOCHS, TRAIN, TEST = 6, 1600, 500


def train(folder, data):
    """The recipe on a small part of the real data: state and modelku.pth go to the folder."""
    model = utils.new_model(seed=0)
    optimizer = utils.new_optimizer(model)
    loader = utils.make_loader(Subset(data[0], torch.arange(TRAIN)), shuffle=True, seed=0)
    tests = {"test": utils.make_loader(Subset(data[1], torch.arange(TEST)))}
    fit, state = definitions("03_training").fit, folder / "state.pth"
    history = fit(model, optimizer, loader, tests, EPOCHS, state, torch.device("cpu"))
    losses = history["train_loss"], history["test_loss"]
    utils.save_checkpoint(folder / "modelku.pth", model, optimizer, EPOCHS, *losses)
    state.unlink()


def fork(folder, data) -> int:
    """Start a training process; return its number."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            train(folder, data)
            code = 0
        except BaseException:
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        finally:
            os._exit(code)
    return process


def finish(process, folder) -> None:
    status = os.waitpid(process, 0)[1]
    if status:
        raise SystemExit(f"training failed: {(folder / 'error.txt').read_text(encoding='utf-8')}")


def epochs_in(state: Path) -> int:
    try:
        return len(torch.load(state, weights_only=True)["history"]["train_loss"])
    except FileNotFoundError:  # not yet, or not any more
        return 0


def same(one, other) -> bool:
    """Equal to the last bit, through dicts, lists, tensors and numbers."""
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def main(top: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    data = utils.load_mnist("train"), utils.load_mnist("test")
    reference = top / "uninterrupted"
    reference.mkdir()
    started = time.monotonic()
    finish(fork(reference, data), reference)
    duration = time.monotonic() - started
    expected = torch.load(reference / "modelku.pth", weights_only=True)

    moments = random.Random(seed)
    for number in range(kills):
        folder = top / f"killed-{number}"
        folder.mkdir()
        # One moment in each of as many equal parts of the run. Its epochs are counted, not timed:
        # what else the machine does may make this run several times as long as the first.
        share = moments.uniform(number, number + 1) / kills
        epochs, part = divmod(share * EPOCHS, 1)
        process = fork(folder, data)
        while epochs_in(folder / "state.pth") < epochs and not (folder / "modelku.pth").is_file():
            time.sleep(0.01)
        time.sleep(part * duration / EPOCHS)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        epochs = epochs_in(folder / "state.pth")
        finished = (folder / "modelku.pth").is_file()
        finish(fork(folder, data), folder)
        ended = torch.load(folder / "modelku.pth", weights_only=True)
        line = {
            "share of the run": round(share, 2),
            "epochs kept": EPOCHS if finished else epochs,
            "same": same(ended, expected),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
