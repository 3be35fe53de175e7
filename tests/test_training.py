"""Training that is stopped, resumed, repeated or led astray."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.data import Subset

import utils
from tools import study


@pytest.fixture(scope="module")
def train():
    return utils.load_mnist("train")


@pytest.fixture
def setting(train):
    """Makes a short run: model, optimiser, training loader, test loaders."""

    def make(seed=0, lr=0.001, count=320):
        model = utils.new_model(seed)
        optimizer = utils.new_optimizer(model)
        optimizer.param_groups[0]["lr"] = lr
        loader = utils.make_loader(Subset(train, torch.arange(count)), shuffle=True, seed=seed)
        return (
            model,
            optimizer,
            loader,
            {"test": utils.make_loader(Subset(train, torch.arange(99)))},
        )

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
def test_killed_at_twenty_random_moments(tmp_path):
    """A killed run that is started again ends bit for bit where an uninterrupted one ends."""
    script = utils.ROOT / "tests" / "interrupted_training.py"
    running = []
    for seed in (0, 1):  # each has a thread of its own, so two of them fill two cores
        folder = tmp_path / str(seed)
        folder.mkdir()
        running.append(subprocess.Popen(
            [sys.executable, str(script), str(folder), "10", str(seed)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    lines = []
    for process in running:
        printed, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
        lines += [json.loads(line) for line in printed.splitlines()]
    assert len(lines) == 20
    assert all(line["same"] for line in lines), lines
    kept = [line["epochs kept"] for line in lines]
    assert min(kept) < 2 and max(kept) >= 4 and len(set(kept)) >= 4, "the moments were not spread"


def test_resumed_in_another_process_s_place(setting, tmp_path):
    """Two epochs, then two more from the file alone, are four epochs."""
    model, optimizer, loader, tests = setting()
    history = utils.fit(model, optimizer, loader, tests, 4)

    state = tmp_path / "state.pth"
    first = setting()

    def stop(*arguments):  # a crash just before the third epoch
        raise RuntimeError("crash")

    with pytest.MonkeyPatch.context() as patch:
        real, calls = utils.train_epoch, []
        patch.setattr(
            utils,
            "train_epoch",
            lambda *a: stop() if len(calls) == 2 else calls.append(1) or real(*a),
        )
        with pytest.raises(RuntimeError, match="crash"):
            utils.fit(*first, 4, state_path=state)
    assert state.is_file()

    again = setting()
    resumed = utils.fit(*again, 4, state_path=state)
    assert resumed == history
    assert_same(again[:2], (model, optimizer))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pth"]
    # Killed before its result was saved, a finished run gives the result again.
    third = setting()
    assert utils.fit(*third, 4, state_path=state) == history
    assert_same(third[:2], (model, optimizer))


def test_fewer_epochs_than_were_done_are_refused(setting, tmp_path):
    state = tmp_path / "state.pth"
    model, optimizer, loader, tests = setting()
    run = utils._describe_run(model, optimizer, loader, tests, "cpu")
    utils._save_state(state, run, model, optimizer, loader, {"train_loss": [0.3, 0.2]})
    with pytest.raises(utils.CheckpointError, match="at most 1 epochs, found 2"):
        utils.fit(*setting(), 1, state_path=state)
    assert state.is_file()


def test_interrupted_by_hand(setting, tmp_path, capsys):
    """Ctrl-C leaves a state that can be used and a sentence that says how."""
    state = tmp_path / "state.pth"
    expected = setting(count=1600)
    history = utils.fit(*expected, 4)

    def interrupt():
        for _ in range(2000):  # as soon as there is something to go on from
            if state.is_file():
                return os.kill(os.getpid(), signal.SIGINT)
            stop.wait(0.01)

    stop = threading.Event()
    watcher = threading.Thread(target=interrupt)
    # A shell starts what runs in the background with Ctrl-C switched off.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watcher.start()
        with pytest.raises(KeyboardInterrupt):
            utils.fit(*setting(count=1600), 4, state_path=state)
        stop.set()
        watcher.join()
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert "is in state.pth: run the same again" in capsys.readouterr().out
    again = setting(count=1600)
    assert utils.fit(*again, 4, state_path=state) == history
    assert "Going on after epoch" in capsys.readouterr().out
    assert_same(again[:2], expected[:2])


def test_a_loss_that_is_not_finite(setting, tmp_path, train):
    """The error names epoch and batch; the state after the last good epoch stays on disk."""
    state = tmp_path / "state.pth"
    model, optimizer, _, tests = setting()
    part = Subset(train, torch.arange(320))
    images = train.images[:320].clone()

    class Poisoned(torch.utils.data.Dataset):
        """Real pictures; one of them has a damaged pixel from the second epoch on."""

        served = 0

        def __len__(self):
            return 320

        def __getitem__(self, index):
            Poisoned.served += len(index)
            if Poisoned.served > 320:
                images[95, 0, 14, 14] = float("nan")
            return images[index], part.dataset.labels[index]

    with pytest.raises(
        utils.TrainingError, match=r"epoch 2, batch 6 of 20: .* nan\. Likely causes"
    ):
        utils.fit(model, optimizer, utils.make_loader(Poisoned()), tests, 3, state_path=state)
    content = torch.load(state, weights_only=True)
    assert len(content["history"]["train_loss"]) == 1
    assert all(value.isfinite().all() for value in content["model_state_dict"].values())


def test_a_learning_rate_that_is_far_too_high(setting):
    with pytest.raises(utils.TrainingError, match=r"epoch 1, batch \d+ of 20.*learning rate"):
        utils.fit(*setting(lr=1e30), 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"lr": 0.01}, r"optimiser: Adam, lr 0.001.* there, Adam, lr 0.01.* here"),
        ({"count": 160}, "training samples: 320 there, 160 here"),
    ],
)
def test_the_state_of_another_run_is_refused(setting, tmp_path, change, says):
    state = tmp_path / "state.pth"
    model, optimizer, loader, tests = setting()
    run = utils._describe_run(model, optimizer, loader, tests, "cpu")
    utils._save_state(state, run, model, optimizer, loader, {"train_loss": []})
    with pytest.raises(utils.CheckpointError, match=f"state.pth: .*{says}.*start anew"):
        utils.fit(*setting(**change), 2, state_path=state)
    assert state.is_file()


@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_a_damaged_state_is_refused(setting, tmp_path, content):
    state = tmp_path / "state.pth"
    model, optimizer, loader, tests = setting()
    run = utils._describe_run(model, optimizer, loader, tests, "cpu")
    utils._save_state(state, run, model, optimizer, loader, {"train_loss": []})
    state.write_bytes(state.read_bytes()[:3000] if content is None else content)
    with pytest.raises(utils.CheckpointError, match=r"state\.pth: expected"):
        utils.fit(*setting(), 2, state_path=state)
    torch.save({"epoch": 1}, state)
    with pytest.raises(utils.CheckpointError, match="another kind of file"):
        utils.fit(*setting(), 2, state_path=state)


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
        "from torch.utils.data import Subset\n"
        "part = Subset(utils.load_mnist('train'), torch.arange(1600))\n"
        "model = utils.new_model(3)\n"
        "loader = utils.make_loader(part, shuffle=True, seed=3)\n"
        "utils.fit(model, utils.new_optimizer(model), loader, {}, 2)\n"
        "print([p.double().sum().item().hex() for p in model.parameters()])\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and "0x1" in runs[0]


def test_the_split_is_fixed_and_stratified(train):
    kept, held_out = utils.stratified_split(train.labels, 5_000)
    assert (len(kept), len(held_out)) == (55_000, 5_000)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(60_000))
    shares = torch.bincount(train.labels[held_out]) - torch.bincount(train.labels) / 12
    assert shares.abs().max() < 1.5
    assert torch.equal(utils.stratified_split(train.labels, 5_000)[1], held_out)
    assert not torch.equal(utils.stratified_split(train.labels, 5_000, seed=1)[1], held_out)
    with pytest.raises(ValueError, match="divisor of 60,000, found 7"):
        utils.stratified_split(train.labels, 7)


@pytest.mark.slow
def test_the_study_s_stored_figures_come_back():
    """Its first epoch, trained again: exactly equal on the same machine and versions,
    and as near as rounding allows elsewhere."""
    stored = json.loads(study.RESULT.read_text())
    model, optimizer, loader, loaders = study.start("recipe", 0)
    history = utils.fit(model, optimizer, loader, loaders, 1)
    expected = {key: values[0] for key, values in stored["recipe"]["0"].items()}
    if stored["provenance"] == study.provenance():
        assert {key: values[0] for key, values in history.items()} == expected
    assert history["train_loss"][0] == pytest.approx(expected["train_loss"], rel=0.05)
    assert history["test_accuracy"][0] == pytest.approx(expected["test_accuracy"], abs=0.015)


def test_the_study_is_complete():
    stored = json.loads(study.RESULT.read_text())
    seeds = [str(seed) for seed in study.SEEDS]
    assert list(stored["recipe"]) == list(stored["split"]) == seeds
    for kind, keys in (
        ("recipe", {"train_loss", "test_loss", "test_accuracy"}),
        ("split", {"train_loss", "test_loss", "test_accuracy", "validation_loss",
                   "validation_accuracy"}),
    ):  # fmt: skip
        for history in stored[kind].values():
            assert set(history) == keys
            assert all(len(values) == study.EPOCHS for values in history.values())
    assert {"processor", "threads", "python", "torch", "numpy"} <= set(stored["provenance"])
    assert stored["command"] and stored["date"]
