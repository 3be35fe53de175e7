"""Training that is stopped, resumed, repeated or led astray."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import nbformat
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

import utils
from tools import seed_study
from tools.notebook_code import definitions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def page():
    """What notebook 03 defines: the loop that trains modelku.pth."""
    return definitions("03_training")


@pytest.fixture
def setting(train):
    """Makes a short run: model, optimiser, training loader, test loaders."""

    def make(seed=0, lr=0.001, count=320, data=None, **options):
        model = utils.new_model(seed)
        optimizer = utils.new_optimizer(model, lr, **options)
        loader = utils.make_loader(data or Subset(train, range(count)), shuffle=True, seed=seed)
        return model, optimizer, loader, {"test": utils.make_loader(Subset(train, range(99)))}

    return make


def state_dicts(model, optimizer):
    return model.state_dict() | {
        f"{number} {key}": value
        for number, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def assert_same(one, other):
    one, other = state_dicts(*one), state_dicts(*other)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


# --------------------------------------------------------------- survives


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork; Windows has none")
def test_killed_at_eight_random_moments(tmp_path):
    """A killed run that is started again ends bit for bit where an uninterrupted one ends."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.interrupted_training", str(tmp_path), "8", "0"],
        cwd=utils.ROOT, capture_output=True, encoding="utf-8", timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 8
    assert all(line["same"] for line in lines), lines
    kept = [line["epochs kept"] for line in lines]
    assert min(kept) < 2 and max(kept) >= 4 and len(set(kept)) >= 4, "the moments were not spread"


class Augmented(Dataset):
    """Pictures with noise from three generators, as careless augmentation may draw it."""

    def __init__(self, data, count):
        self.data, self.count = data, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        images, labels = self.data[index]
        noise = torch.rand(images.shape) + random.random() + np.random.rand()
        return images + 0.1 * noise, labels


@pytest.mark.long
@pytest.mark.parametrize("augmented", [False, True])
def test_resumed_in_another_process_s_place(page, setting, train, tmp_path, augmented):
    """Two epochs, then two more from the file alone, are four epochs, to the last bit."""
    data = Augmented(train, 320) if augmented else None

    def start():
        random.seed(0)
        np.random.seed(0)
        return setting(data=data)

    expected = start()
    history = page.fit(*expected, 4, tmp_path / "whole.pth", CPU)
    state = tmp_path / "state.pth"
    page.fit(*start(), 2, state, CPU)
    np.random.seed(99)  # what another process would have done meanwhile
    random.seed(99)
    again = setting(data=data)
    assert page.fit(*again, 4, state, CPU) == history
    assert_same(again[:2], expected[:2])
    # Killed before its result was saved, a finished run gives the result again.
    third = start()
    assert page.fit(*third, 4, state, CPU) == history
    assert_same(third[:2], expected[:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pth", "whole.pth"]


def test_describing_a_run_draws_no_random_number(page, setting, train):
    model, optimizer, loader, tests = setting(data=Augmented(train, 64))

    def states():
        return str(page.random_state(loader, CPU))

    before = states()
    first = page.describe(model, optimizer, loader, tests, CPU)
    assert states() == before
    torch.rand(1), np.random.rand(), random.random()
    assert page.describe(model, optimizer, loader, tests, CPU) == first


def test_fewer_epochs_than_were_done_are_refused(page, setting, tmp_path):
    state = tmp_path / "state.pth"
    page.fit(*setting(), 2, state, CPU)
    with pytest.raises(utils.CheckpointError, match="at most 1 epochs, found 2"):
        page.fit(*setting(), 1, state, CPU)
    assert state.is_file()


@pytest.mark.long
def test_interrupted_by_hand(page, setting, tmp_path, capsys):
    """Ctrl-C leaves a state that can be used."""
    state = tmp_path / "state.pth"
    expected = setting(count=1600)
    history = page.fit(*expected, 4, tmp_path / "whole.pth", CPU)

    def interrupt():
        for _ in range(2000):  # as soon as there is something to go on from
            if state.is_file():
                return signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)

    watcher = threading.Thread(target=interrupt)
    # A shell starts what runs in the background with Ctrl-C switched off.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watcher.start()
        with pytest.raises(KeyboardInterrupt):
            page.fit(*setting(count=1600), 4, state, CPU)
        watcher.join()
    finally:
        signal.signal(signal.SIGINT, earlier)
    again = setting(count=1600)
    assert page.fit(*again, 4, state, CPU) == history
    assert "Going on after epoch" in capsys.readouterr().out
    assert_same(again[:2], expected[:2])


def test_a_loss_that_is_not_finite(page, setting, tmp_path, train):
    """The error names the epoch; the state after the last good epoch stays on disk."""

    class Poisoned(Augmented):
        """Real pictures; one of them has a damaged pixel from the second epoch on."""

        served = 0

        def __getitem__(self, index):
            images, labels = self.data[index]
            Poisoned.served += len(index)
            if Poisoned.served > 2 * 320:  # once to describe the run, once to train
                images[0, 0, 14, 14] = float("nan")
            return images, labels

    state = tmp_path / "state.pth"
    with pytest.raises(FloatingPointError, match="epoch 2: the training loss is nan"):
        page.fit(*setting(data=Poisoned(train, 320)), 3, state, CPU)
    content = torch.load(state, weights_only=True)
    assert len(content["history"]["train_loss"]) == 1
    assert all(value.isfinite().all() for value in content["model"].values())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"lr": 0.01}, r"its settings: .*'lr': 0.001.* there, .*'lr': 0.01.* here"),
        ({"betas": (0.5, 0.9)}, r"its settings: .*\(0.9, 0.999\).* there, .*\(0.5, 0.9\).* here"),
        ({"count": 160}, "data and first weights: .* there, .* here"),
    ],
)
def test_the_state_of_another_run_is_refused(page, setting, tmp_path, change, says):
    state = tmp_path / "state.pth"
    page.fit(*setting(), 1, state, CPU)
    before = state.read_bytes()
    with pytest.raises(utils.CheckpointError, match=f"state.pth: .*{says}.*start anew"):
        page.fit(*setting(**change), 2, state, CPU)
    assert state.read_bytes() == before


def test_a_test_set_must_not_be_called_train(page, setting, tmp_path):
    """Its losses would be taken for those of training."""
    model, optimizer, loader, tests = setting()
    with pytest.raises(AssertionError, match="taken by the training loss"):
        page.fit(model, optimizer, loader, {"train": tests["test"]}, 1, tmp_path / "s.pth", CPU)


def test_a_run_without_shuffling_is_another_run(page, setting, train, tmp_path):
    state = tmp_path / "state.pth"
    model, optimizer, _, tests = setting()
    page.fit(*setting(), 1, state, CPU)
    straight = utils.make_loader(Subset(train, range(320)))
    with pytest.raises(utils.CheckpointError, match="order: _Shuffled there, SequentialSampler"):
        page.fit(model, optimizer, straight, tests, 2, state, CPU)


@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_a_damaged_state_is_refused(page, setting, tmp_path, content):
    state = tmp_path / "state.pth"
    page.fit(*setting(), 1, state, CPU)
    state.write_bytes(state.read_bytes()[:3000] if content is None else content)
    with pytest.raises(utils.CheckpointError, match=r"state\.pth: expected"):
        page.fit(*setting(), 2, state, CPU)
    torch.save({"epoch": 1}, state)
    with pytest.raises(utils.CheckpointError, match="that of another one"):
        page.fit(*setting(), 2, state, CPU)


def test_the_loop_on_the_page_is_that_of_utils(page, setting):
    """Same losses and same weights, whichever of the two train_epoch and evaluate is used."""
    ours, theirs = setting(), setting()
    for code, (model, optimizer, loader, tests) in ((page, ours), (utils, theirs)):
        code.losses = [code.train_epoch(model, loader, optimizer, CPU) for _ in range(2)]
        code.result = code.evaluate(model, tests["test"], CPU)
    assert page.losses == pytest.approx(utils.losses, rel=1e-6)
    assert page.result == utils.result
    assert_same(ours[:2], theirs[:2])


def test_a_checkpoint_from_a_gpu_loads_on_a_cpu(tmp_path, monkeypatch):
    """The file says that its tensors were on a GPU; there need not be one."""
    model = utils.new_model(0)
    path = tmp_path / "modelku.pth"
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    utils.save_checkpoint(path, model, utils.new_optimizer(model), 1, [0.1], [0.2])
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
    restored = utils.new_model(1)
    utils.load_checkpoint(path, restored)
    assert torch.equal(restored.fc1.weight, model.fc1.weight)


# ---------------------------------------------------------------- repeats


@pytest.mark.slow
def test_two_processes_with_one_seed_agree_to_the_last_bit():
    code = (
        "import torch, utils\n"
        "torch.set_num_threads(1)\n"
        "part = torch.utils.data.Subset(utils.load_mnist('train'), range(1600))\n"
        "model = utils.new_model(3)\n"
        "loader = utils.make_loader(part, shuffle=True, seed=3)\n"
        "for _ in range(2): utils.train_epoch(model, loader, utils.new_optimizer(model))\n"
        "print([p.double().sum().item().hex() for p in model.parameters()])\n"
    )
    command, options = [sys.executable, "-c", code], {"cwd": utils.ROOT, "encoding": "utf-8"}
    runs = [
        subprocess.run(command, capture_output=True, check=True, **options).stdout for _ in range(2)
    ]
    assert runs[0] == runs[1] and "0x1" in runs[0]


def test_the_split_is_fixed_and_stratified(page, train):
    kept, held_out = page.stratified_split(train.labels, 5_000)
    assert (len(kept), len(held_out)) == (55_000, 5_000)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(60_000))
    shares = torch.bincount(train.labels[held_out]) - torch.bincount(train.labels) / 12
    assert shares.abs().max() < 1.5
    assert torch.equal(page.stratified_split(train.labels, 5_000)[1], held_out)
    assert not torch.equal(page.stratified_split(train.labels, 5_000, seed=1)[1], held_out)
    with pytest.raises(ValueError, match="divisor of 60,000, found 7"):
        page.stratified_split(train.labels, 7)


def test_notebook_04_splits_alike(page, train):
    """It writes the same split in four lines, so that it runs alone."""
    notebook = nbformat.read(utils.ROOT / "notebooks" / "04_evaluation.ipynb", as_version=4)
    (source,) = [cell.source for cell in notebook.cells if "by_digit = order" in cell.source]
    names = {"torch": torch, "train": train}
    exec(source.split("rival = ")[0], names)
    kept, held_out = page.stratified_split(train.labels, 5_000, seed=0)
    assert torch.equal(names["kept"], kept) and torch.equal(names["held_out"], held_out)


# --------------------------------------------------------------- the study


@pytest.mark.slow
def test_the_study_s_stored_figures_come_back(tmp_path, monkeypatch):
    """Its first epoch, trained again: as near as the rounding of another machine allows."""
    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(tmp_path))
    stored = json.loads(seed_study.RESULT.read_text(encoding="utf-8"))
    threads = torch.get_num_threads()
    history = seed_study.run("recipe", 0, epochs=1)
    torch.set_num_threads(threads)
    expected = {key: values[0] for key, values in stored["recipe"]["0"].items()}
    assert history["train_loss"][0] == pytest.approx(expected["train_loss"], rel=0.05)
    assert history["test_accuracy"][0] == pytest.approx(expected["test_accuracy"], abs=0.015)


def test_the_study_is_complete():
    stored = json.loads(seed_study.RESULT.read_text(encoding="utf-8"))
    seeds = [str(seed) for seed in seed_study.SEEDS]
    assert list(stored["recipe"]) == list(stored["split"]) == seeds
    for kind, keys in (
        ("recipe", {"train_loss", "test_loss", "test_accuracy"}),
        ("split", {"train_loss", "test_loss", "test_accuracy", "validation_loss",
                   "validation_accuracy"}),
    ):  # fmt: skip
        for history in stored[kind].values():
            assert set(history) == keys
            assert all(len(values) == seed_study.EPOCHS for values in history.values())
    assert {"processor", "threads", "python", "torch", "numpy"} <= set(stored["provenance"])
    assert stored["provenance"]["threads"] == 1  # as many as notebook 03 trains with
    assert stored["command"] and stored["date"]
