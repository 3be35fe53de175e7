"""Notebook 07 and its study: what is computed, never how long it took."""

import contextlib
import itertools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import utils
from tools import notebook_code, speed_study


@pytest.fixture(scope="module")
def page():
    return speed_study.page()


@pytest.fixture(scope="module")
def every_setup(page):
    return page.LADDER | page.RIVALS


@pytest.fixture(scope="module")
def small(train):
    """500 training pictures, as many of each digit as it has in all of them."""
    return speed_study.split_off(train, 500)[1]


@pytest.fixture(scope="module")
def study():
    return json.loads(speed_study.RESULT.read_text(encoding="utf-8"))


# --------------------------------------------------------------- batches


@pytest.mark.parametrize("name", ["whole batches", "smoothed labels", "peer"])
def test_each_pass_has_every_picture_once(small, name, page, every_setup):
    setup = replace(every_setup[name], batch_size=64)
    stream = page.batches(setup, small, seed=0)
    passes = []
    for _ in range(2):
        seen = list(itertools.islice(stream, 8))
        assert [len(labels) for _, labels in seen] == [64] * 7 + [52]
        pictures = torch.cat([images for images, _ in seen])
        passes.append(pictures)
        cut = slice(setup.border, 28 - setup.border)
        wanted = small.images[..., cut, cut].flatten(1)
        assert torch.equal(pictures.flatten(1).unique(dim=0), wanted.unique(dim=0))
    assert torch.equal(*passes) is not setup.shuffle  # a new order each time, or the file's


def test_labels_belong_to_their_pictures(small, page):
    images, labels = next(page.batches(page.FASTEST, small, seed=3))
    for image, label in zip(images[:20], labels[:20]):
        match = (small.images[..., 2:26, 2:26] == image).flatten(1).all(1).nonzero()[0]
        assert small.labels[match] == label


def test_classic_data_path_gives_the_same_pictures(small, page):
    images, labels = next(page.batches(page.LADDER["the usual way"], small, seed=0))
    for image, label in zip(images, labels):
        match = (small.images == image).flatten(1).all(1).nonzero()[0]
        assert small.labels[match] == label


# -------------------------------------------------------------- training


def last_network(page, setup, data, seed):
    *_, model = page.training(replace(setup, pictures=2_000), data, seed)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["bfloat16", "smoothed labels", "peer", "another network"])
def test_a_seed_decides_everything(small, name, every_setup, page):
    one, two, other = (last_network(page, every_setup[name], small, seed) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("setting", [(5, 0.2), (0, 0.2), (100, 0.0), (100, 1.0)])
def test_one_cycle_needs_room(setting, page):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    with pytest.raises(ValueError, match="steps: expected room for a rise and a fall, found"):
        page.one_cycle(optimizer, *setting)


def test_one_cycle_rises_and_falls(page):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule, rates = page.one_cycle(optimizer, 100, warm_up=0.2), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(rates) < 100 else None
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == rates[19] == pytest.approx(1)
    assert rates[-1] < 1e-3 and rates[19:] == sorted(rates[19:], reverse=True)


def test_training_ends_where_the_schedule_ends(small, page):
    setup = replace(page.FASTEST, pictures=1000, batch_size=64)
    assert sum(1 for _ in page.training(setup, small, 0)) == 1000 // 64
    constant = page.training(page.LADDER["batches of 128"], small, 0)
    assert sum(1 for _ in itertools.islice(constant, 30)) == 30  # goes on


def test_recipe_in_the_ladder_is_the_recipe_of_utils(small, page):
    """Same weights after the same steps as utils.new_model, new_optimizer and a plain loop."""
    setup = page.LADDER["fused Adam"]
    model = utils.new_model(5)
    optimizer = utils.new_optimizer(model)
    for images, labels in itertools.islice(page.batches(setup, small, 5), 20):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    ours = next(itertools.islice(page.training(setup, small, 5), 19, None))
    for a, b in zip(model.parameters(), ours.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_only_what_a_rung_names_changes(page):
    """Each rung differs from the one below it in a change of its own, and in no more than that."""
    rungs = list(page.LADDER.values())
    fields = [
        {f for f in page.Setup.__dataclass_fields__ if getattr(a, f) != getattr(b, f)}
        for a, b in itertools.pairwise(rungs)
    ]
    assert fields == [
        {"per_image"}, {"channels_last"}, {"network"}, {"fused"}, {"batch_size", "lr"},
        {"warm_up", "lr", "betas"}, {"bfloat16"}, {"border"}, {"muon"},
        {"smoothing", "pictures"},
    ]  # fmt: skip


def test_the_fastest_is_the_network_of_the_collection(page):
    assert list(page.LADDER.values())[-1] == page.FASTEST
    assert page.FASTEST.network is utils.MnistClassifier
    assert list(page.FASTEST.network().state_dict()) == list(utils.MnistClassifier().state_dict())


# ------------------------------------------------------------------ Muon


@pytest.mark.parametrize("shape", [(32, 144), (64, 576), (10, 64), (16, 16)])
def test_newton_schulz_keeps_directions_and_evens_out_sizes(shape, page):
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=generator))
    v, _ = torch.linalg.qr(torch.randn(shape[1], shape[0], generator=generator))
    sizes = torch.logspace(0, -1.3, shape[0])
    matrix = 7 * u @ torch.diag(sizes) @ v.T
    result = page.newton_schulz((matrix @ matrix.T)[None])[0] @ matrix
    inside = u.T @ result @ v  # diagonal, if the directions were kept
    assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-3)
    assert inside.diagonal().min() > 0.6 and inside.diagonal().max() < 1.25


def test_newton_schulz_treats_each_matrix_alone(page):
    """A smaller matrix in a batch, padded with zeros, gets what it would get by itself."""
    generator = torch.Generator().manual_seed(1)
    large, small = torch.randn(20, 50, generator=generator), torch.randn(6, 9, generator=generator)
    grams = torch.zeros(2, 20, 20)
    grams[0], grams[1, :6, :6] = large @ large.T, small @ small.T
    together = page.newton_schulz(grams)
    alone = page.newton_schulz((small @ small.T)[None])[0]
    assert torch.allclose(together[1, :6, :6] @ small, alone @ small, atol=1e-4)


def test_muon_moves_every_weight_matrix_by_its_rate(page):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3, bias=False)
    before = layer.weight.detach().clone()
    layer(torch.randn(4, 3, 9, 9)).square().sum().backward()
    page.Muon([layer.weight], lr=0.5).step()
    step = torch.linalg.svdvals((before - layer.weight.detach()).flatten(1) / 0.5)
    assert step.min() > 0.3 and step.max() < 1.25
    gradient = layer.weight.grad.flatten()
    assert (before - layer.weight.detach()).flatten() @ gradient > 0  # downhill


def test_muon_survives_a_gradient_of_zero(page):
    weight = torch.ones(4, 5, requires_grad=True)
    (0 * weight).sum().backward()
    page.Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(4, 5))


# ----------------------------------------------------- counting, growing


def test_operations_by_hand(page):
    whole, layers = page.operations(page.FASTEST)
    by_hand = {
        "conv1": 2 * 24 * 24 * 16 * 9, "conv2": 2 * 12 * 12 * 32 * 144,
        "conv3": 2 * 6 * 6 * 64 * 288, "fc1": 2 * 576 * 64, "fc2": 2 * 64 * 10,
    }  # fmt: skip
    assert layers == by_hand
    assert whole == 3 * sum(by_hand.values()) - by_hand["conv1"]


def test_bytes_give_the_very_numbers(train, page):
    index = torch.tensor([5, 0, 59_999])
    images = page.ByteImages(torch.from_numpy(train.pixels))
    assert torch.equal(images[index], train.images[index])
    assert torch.equal(images[3:6], train.images[3:6])


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("times", [1 / 6, 1, 2.5])
def test_repeated_data(train, times, as_bytes, page):
    data = page.repeated(train, times, as_bytes)
    assert len(data.labels) == round(60_000 * times)
    size = 1 if as_bytes else 4
    assert data.images.nbytes == len(data.labels) * 784 * size
    assert torch.equal(data.images[:5], train.images[:5])
    if times > 1:  # the second copy is shifted by one pixel to the right
        second = data.images[60_000:60_003]
        assert torch.equal(second[..., 1:], train.images[:3, ..., :-1])
        assert torch.equal(data.labels[60_000:60_003], train.labels[:3])


def test_accuracy_is_that_of_evaluate(page):
    test, model = utils.load_mnist("test"), utils.new_model(0)
    expected = utils.evaluate(model, utils.make_loader(test, 500))[1]
    assert page.accuracy(page.Setup(), model, test) == pytest.approx(expected)


def test_interleave_takes_turns(page):
    calls = []
    times = page.interleave({name: lambda n=name: calls.append(n) for name in "ab"}, 3)
    assert "".join(calls) == "ab" + "ababab"  # once each to warm up
    assert [len(values) for values in times.values()] == [3, 3]


def test_pictures_needed(page):
    runs = {
        "test: fused Adam": {"accuracy": [[0.98, 0.991, 0.98], [0.98, 0.991, 0.999]]},
        "test: batches of 128": {"accuracy": [[0.9, 0.9], [0.9, 0.99]]},
        "test: Muon": {"accuracy": [[0.99], [0.992]]},
    }
    ladder = page.LADDER
    for name in ("the usual way", "fused Adam"):
        assert page.pictures_needed(name, ladder[name], runs) == 120_000
    name = "batches of 128"
    assert np.isnan(page.pictures_needed(name, ladder[name], runs))
    assert page.pictures_needed("Muon", ladder["Muon"], runs) == ladder["Muon"].pictures
    assert np.isnan(page.pictures_needed("Muon", ladder["Muon"], runs, wanted=0.995))


# ------------------------------------------------------------- the study


def test_study_is_of_these_setups(study):
    """Whoever changes a rung has to measure it again."""
    runs = study["accuracy"]["runs"]
    for (part, name), setup in speed_study.accuracy_jobs().items():
        stored = runs[f"{part}: {name}"]
        assert stored["setup"] == repr(setup), f"{part}: {name}"
        assert len(stored["accuracy"]) >= 10
        assert all(0.9 < score < 1 for scores in stored["accuracy"] for score in scores)
    assert len(runs) == len(speed_study.accuracy_jobs())


def test_study_is_whole_and_says_where_it_comes_from(study, page, every_setup):
    assert set(study) == {"accuracy", *speed_study.PARTS}
    for part in study.values():
        assert set(part["provenance"]) == {"processor", "threads", "python", "torch", "numpy"}
        assert part["date"] >= "2026"
    assert set(study["ladder"]["seconds"]) == set(every_setup | speed_study.ablations())
    assert set(study["contest"]) > {"fastest", *page.RIVALS}


@pytest.mark.slow
def test_one_stored_accuracy_can_be_had_again(study, train, page):
    """Training with a seed of the study gives about the stored accuracy, also on other machines."""
    *_, model = page.training(page.FASTEST, train, seed=0)
    again = page.accuracy(page.FASTEST, model, utils.load_mnist("test"))
    stored = study["accuracy"]["runs"]["test: smoothed labels"]["accuracy"]
    assert abs(again - np.mean(stored)) < 0.004


def run_study(monkeypatch, tmp_path, *arguments, broken=()):
    """Run the study with measurements that take no time; parts in ``broken`` raise."""
    calls = []

    def fake(part):
        def measure(*_):
            calls.append(part)
            if part in broken:
                raise InterruptedError
            jobs = {f"{kind}: {name}": 0 for kind, name in speed_study.accuracy_jobs()}
            return jobs if part == "accuracy" else {"value": part}

        return measure

    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    monkeypatch.setattr(speed_study, "RESULT", tmp_path / "07_study.json")
    monkeypatch.setattr(speed_study, "measure_accuracy", fake("accuracy"))
    monkeypatch.setattr(speed_study, "PARTS", {part: fake(part) for part in speed_study.PARTS})
    monkeypatch.setattr(sys, "argv", ["speed_study.py", *arguments])
    # The switch would stay on in the process of all tests, and test_idx reads denormal numbers.
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: calls.append("denormals"))
    with contextlib.suppress(InterruptedError):
        speed_study.main()
    assert calls.pop(0) == "denormals"  # before anything is measured
    return calls


def test_study_goes_on_where_it_was_stopped(monkeypatch, tmp_path):
    result, partial = tmp_path / "07_study.json", tmp_path / "speed_study.json"
    assert run_study(monkeypatch, tmp_path, broken=["growth"])[-1] == "growth"
    assert not result.exists() and partial.exists()
    again = run_study(monkeypatch, tmp_path)
    assert again == ["accuracy", "growth", "switches"]  # accuracy looks for missing seeds itself
    assert result.exists() and not partial.exists()
    content = json.loads(result.read_text(encoding="utf-8"))
    assert content["growth"]["value"] == "growth"
    assert run_study(monkeypatch, tmp_path, "ladder") == ["ladder"]  # one part anew
    assert json.loads(result.read_text(encoding="utf-8"))["contest"] == content["contest"]


def test_study_refuses_an_unknown_part(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed_study.py", "laddr"])
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: None)
    with pytest.raises(SystemExit) as refused:
        speed_study.main()
    assert refused.value.code == 2
    message = "expected accuracy, ladder, contest, growth, switches, found laddr"
    assert message in capsys.readouterr().err


def test_definitions_need_the_tag():
    with pytest.raises(LookupError, match="01_idx_files.ipynb: expected cells with the tag"):
        notebook_code.definitions("01_idx_files")
