"""Notebook 07 and its study: what is computed, never how long it took."""

import itertools
import json
import statistics
import sys

import nbformat
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
def small(train):
    """500 training pictures, as many of each digit as it has in all of them."""
    return speed_study.split_off(train, 500)[1]


@pytest.fixture(scope="module")
def study():
    return json.loads(speed_study.RESULT.read_text(encoding="utf-8"))


# --------------------------------------------------------------- batches


@pytest.mark.parametrize("name", ["whole batches", "24 × 24 pixels", "peer"])
def test_each_pass_has_every_picture_once(small, name, page):
    setup = page.stack(speed_study.all_setups()[name], batch_size=64)
    stream = setup.batches(small, 0, "cpu")
    passes = []
    for _ in range(2):
        seen = list(itertools.islice(stream, 8))
        assert [len(labels) for _, labels in seen] == [64] * 7 + [52]
        pictures = torch.cat([images for images, _ in seen])
        passes.append(pictures)
        wanted = setup.prepare(torch.from_numpy(small.pixels)).flatten(1)
        assert torch.equal(pictures.flatten(1).unique(dim=0), wanted.unique(dim=0))
    assert torch.equal(*passes) is (name == "peer")  # the file's order, or a new one each time


def test_labels_belong_to_their_pictures(small, page):
    images, labels = next(page.FASTEST.batches(small, 3, "cpu"))
    for image, label in zip(images[:20], labels[:20]):
        match = (small.images[..., 2:26, 2:26] == image).flatten(1).all(1).nonzero()[0]
        assert small.labels[match] == label


@pytest.mark.parametrize("name", ["the usual way", "whole batches"])
def test_both_data_paths_give_the_very_pictures_of_utils(small, name, page):
    images, labels = next(page.LADDER[name].batches(small, 0, "cpu"))
    assert len(labels) == 16 and images.dtype == torch.float32
    for image, label in zip(images, labels):
        match = (small.images == image).flatten(1).all(1).nonzero()[0]
        assert small.labels[match] == label


# -------------------------------------------------------------- training


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["the usual way", "bfloat16", "one part a core", "first layer trained", "peer"]
)
def test_a_seed_decides_everything(small, name, page):
    """Also when two trainings take turns."""
    setup = (speed_study.all_setups() | page.ABLATIONS | page.IN_PARTS)[name]
    setup = page.stack(setup, pictures=2_000)
    alone = [list(map(weights, page.training(setup, small, seed)))[-1] for seed in (0, 1)]
    in_turns = list(zip(page.training(setup, small, 0), page.training(setup, small, 1)))[-1]
    assert not torch.equal(*alone)
    for one, two in zip(alone, in_turns):
        assert torch.equal(one, weights(two))


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
    setup = page.stack(page.FASTEST, pictures=1000, batch_size=64)
    assert sum(1 for _ in page.training(setup, small, 0)) == 1000 // 64
    constant = page.training(page.LADDER["fused Adam"], small, 0)
    assert sum(1 for _ in itertools.islice(constant, 70)) == 70  # goes on


def test_recipe_in_the_ladder_is_the_recipe_of_utils(small, page):
    """Same weights after the same steps as utils.new_model, new_optimizer and a plain loop."""
    setup = page.LADDER["fused Adam"]
    model = utils.new_model(5)
    optimizer = utils.new_optimizer(model)
    for images, labels in itertools.islice(setup.batches(small, 5, "cpu"), 20):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    ours = next(itertools.islice(page.training(setup, small, 5), 19, None))
    for a, b in zip(model.parameters(), ours.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_rung_is_the_last_one_with_one_change(page):
    """Each rung adds one class, which replaces one method or value, with its helper or its own."""
    rungs = [type(setup) for setup in page.LADDER.values()]
    for below, rung in itertools.pairwise(rungs):
        added = [kind for kind in rung.__mro__ if kind not in below.__mro__]
        replaced = {n for kind in added for n in vars(kind) if not n.startswith("__")}
        one_thing = ({"batch_size", "rate"}, {"order", "batches"}, {"smoothing", "loss"},
                     {"muon_rate", "optimizers"}, {"rate", "schedules"})  # fmt: skip
        replaced -= {"pictures"}
        assert len(replaced) == 1 or replaced in one_thing, rung


def test_one_part_a_core_gives_the_gradients_of_the_batch(small, page, monkeypatch):
    images, labels = next(page.FASTEST.batches(small, 0, "cpu"))
    found, in_parts = [], page.IN_PARTS["one part a core"]
    for setup, parts in ((page.FASTEST, 1), (in_parts, 1), (in_parts, 2), (in_parts, 3)):
        monkeypatch.setattr(page.UsualWay, "threads", parts)
        monkeypatch.setattr(page, "has_bfloat16", lambda device: False)
        torch.manual_seed(0)
        model = setup.network(small)
        setup.gradients(model, images, labels)
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append(torch.cat([p.grad.flatten() for p in trained]))
    for other in found[1:]:
        assert (other - found[0]).norm() < 1e-5 * found[0].norm()


def test_the_fastest_is_the_network_of_the_collection(small, page):
    network = page.FASTEST.network(small)
    assert type(network) is utils.MnistClassifier
    assert list(page.LADDER.values())[-1] is page.FASTEST


def test_whitened_filters_answer_equally_strongly(train, page):
    setup = page.LADDER["whitened first layer"]
    model = setup.network(train)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters()} - {"conv1.weight", "conv1.bias"}
    images = setup.prepare(torch.from_numpy(train.pixels[:1000]))
    with torch.no_grad():
        answers = F.conv2d(images, model.conv1.weight).transpose(0, 1).flatten(1)
    covariance = 4 * torch.cov(answers[:8])
    assert torch.allclose(covariance, torch.eye(8), atol=0.01)
    assert torch.allclose(answers[8:], -answers[:8], atol=1e-5)


# ------------------------------------------------------------------ Muon


@pytest.mark.parametrize("shape", [(32, 144), (64, 576), (10, 64), (16, 16)])
def test_newton_schulz_keeps_directions_and_evens_out_sizes(shape, page):
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=generator))
    v, _ = torch.linalg.qr(torch.randn(shape[1], shape[0], generator=generator))
    sizes = torch.logspace(0, -1.3, shape[0])
    matrix = 7 * u @ torch.diag(sizes) @ v.T
    result = page.newton_schulz((matrix @ matrix.T)[None], repeats=5)[0] @ matrix
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


def test_muon_keeps_a_running_mean(page):
    weight = torch.zeros(2, 3, requires_grad=True)
    optimizer = page.Muon([weight], lr=0.0, momentum=0.9)
    for size in (1.0, 2.0):
        weight.grad = torch.full((2, 3), size)
        optimizer.step()
    assert torch.allclose(optimizer.means[0], torch.full((2, 3), 0.9 * 0.1 * 1 + 0.1 * 2))


def test_muon_survives_a_gradient_of_zero(page):
    weight = torch.ones(4, 5, requires_grad=True)
    (0 * weight).sum().backward()
    page.Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(4, 5))


# ------------------------------------------------------ counting, timing


def test_operations_by_hand(train, page):
    by_hand = {
        "conv1": 2 * 28 * 28 * 16 * 9, "conv2": 2 * 14 * 14 * 32 * 144,
        "conv3": 2 * 7 * 7 * 64 * 288, "fc1": 2 * 576 * 64, "fc2": 2 * 64 * 10,
    }  # fmt: skip
    whole, layers = page.operations(page.LADDER["fused Adam"], train)
    assert layers == list(by_hand.values())
    assert whole == 3 * sum(by_hand.values()) - by_hand["conv1"]
    whole, layers = page.operations(page.FASTEST, train)
    assert layers[1] == 2 * 12 * 12 * 32 * 144
    assert whole == 3 * sum(layers) - 2 * layers[0] - layers[1]


@pytest.mark.long
def test_accuracy_is_that_of_evaluate(test, page):
    model = utils.new_model(0)
    expected = utils.evaluate(model, utils.make_loader(test, 500))[1]
    assert page.accuracy(page.LADDER["fused Adam"], model, test) == pytest.approx(expected)


def test_interleave_takes_turns(page):
    calls = []
    times = page.interleave({name: lambda n=name: calls.append(n) for name in "ab"}, 3)
    assert "".join(calls) == "ab" + "ababab"  # once each to warm up
    assert [len(values) for values in times.values()] == [3, 3]


# ------------------------------------------------------------- the study


def test_study_is_of_these_setups(study, page):
    """Whoever changes a rung has to measure it again."""
    for part, setups, key in (
        ("setups", speed_study.to_train(), "test"), ("ablations", page.ABLATIONS, "validation"),
    ):  # fmt: skip
        rows = study["accuracy"][part]
        assert list(rows) == list(setups)
        for name, setup in setups.items():
            assert rows[name]["setup"] == speed_study.described(setup), name
            assert len(rows[name][key]) == 20 and min(rows[name][key]) > 0.9
    timed = speed_study.all_setups() | page.ABLATIONS | page.IN_PARTS
    for part, setups in (
        ("speed", timed),
        ("race", page.RECIPE | page.RACERS),
        ("gpu", page.RACERS),
    ):
        for run in study[part].values():
            assert run["setups"] == speed_study.about(setups)["setups"]


@pytest.mark.parametrize("change", ["rate", "step", "length"])
def test_a_changed_setup_is_described_otherwise(change, page, monkeypatch):
    before = speed_study.described(page.FASTEST)
    if change == "rate":
        assert speed_study.described(page.stack(page.FASTEST, rate=0.5)) != before
    elif change == "step":
        monkeypatch.setattr(page, "newton_schulz", lambda grams, repeats=4: grams)
        assert speed_study.described(page.FASTEST) != before
    else:  # it has a place of its own
        assert speed_study.described(page.stack(page.FASTEST, pictures=10)) == before


def test_lengths_are_those_of_the_rule(study, page):
    """The shortest on the grid that passes; the one before it does not."""
    cells = nbformat.read(utils.ROOT / "notebooks" / "07_speed.ipynb", as_version=4).cells
    assert any(f"THRESHOLD = {speed_study.THRESHOLD}\n" in cell.source for cell in cells)
    for name, setup in speed_study.to_train().items():
        row = study["accuracy"]["setups"][name]
        means = {int(n): statistics.mean(values) for n, values in row["tried"].items()}
        passed = {n: mean >= speed_study.THRESHOLD for n, mean in means.items()}
        assert setup.pictures == row["pictures"] == row["tested"], name
        if name not in page.PEERS:
            assert passed[setup.pictures], name
            place = speed_study.GRID.index(setup.pictures)
            assert place == 0 or not passed[speed_study.GRID[place - 1]], name


def test_study_says_where_it_comes_from(study):
    assert set(study) == set(speed_study.PARTS)
    for part in ("speed", "race", "gpu"):
        for run in study[part].values():
            assert set(run["provenance"]) == {"processor", "threads", "python", "torch", "numpy"}
            assert run["date"] >= "2026"


@pytest.mark.slow
def test_one_stored_accuracy_can_be_had_again(study, train, test, page):
    """Training with a seed of the study gives about the stored accuracy, also on other machines."""
    *_, model = page.training(page.FASTEST, train, seed=100)
    again = page.accuracy(page.FASTEST, model, test)
    stored = study["accuracy"]["setups"]["24 × 24 pixels"]["test"]
    assert abs(again - stored[0]) < 0.003


# -------------------------------------------------------------- the rule


@pytest.fixture
def rule(monkeypatch):
    """Return the length that the rule finds where accuracy depends on the length as given."""
    NAME = "Muon"

    def find(accuracy, row=None):
        rows, looks = {NAME: row} if row else {}, []

        def scores(self, part, name, pictures, seeds=None):
            looks.append((part, pictures))
            return [accuracy(pictures)] * 20

        monkeypatch.setattr(speed_study.Accuracies, "scores", scores)
        speed_study.Accuracies(None, rows, lambda: None).measure(NAME)
        return rows[NAME], looks

    return find


def test_rule_takes_the_shortest_that_passes_and_looks_at_the_test_set_once(rule):
    row, looks = rule(lambda pictures: 0.99 if pictures >= 26_000 else 0.98)
    assert row["pictures"] == 27_000
    assert [look for look in looks if look[0] == "test"] == [("test", 27_000)] == looks[-1:]
    again, looks = rule(lambda pictures: 1 / 0, row)
    assert again["pictures"] == 27_000 and not looks  # everything is there


def test_rule_measures_a_changed_setup_anew(rule):
    row, _ = rule(lambda pictures: 0.99)
    changed, looks = rule(lambda pictures: 0.98, row | {"setup": "other"})
    assert changed["pictures"] is None and looks  # it never passes, and is not tested
    assert all(part == "validation" for part, _ in looks)


def test_study_refuses_an_unknown_part(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed_study.py", "laddr"])
    with pytest.raises(SystemExit) as refused:
        speed_study.main()
    assert refused.value.code == 2
    assert "expected accuracy, speed, race, gpu, found laddr" in capsys.readouterr().err


def test_definitions_need_the_tag(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebooks" / "11_new.ipynb")
    monkeypatch.setattr(notebook_code, "ROOT", tmp_path)
    with pytest.raises(LookupError, match="11_new.ipynb: expected cells with the tag"):
        notebook_code.definitions("11_new")
