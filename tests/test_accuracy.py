"""Notebook 08 and its study: what is computed, never how well a training went."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torchvision.transforms.v2 import functional as vision

import utils
from tools import accuracy_study


@pytest.fixture(scope="module")
def page():
    return accuracy_study.page()


@pytest.fixture(scope="module")
def small(train):
    return utils.MNISTDataset(train.pixels[:640], train.labels[:640].numpy().astype("uint8"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


# -------------------------------------------------------------- distortions


def test_without_distortion_the_middle_stays_as_it_is(page, test, generator):
    images = test.images[:50]
    assert torch.allclose(
        page.distorted(images, page.Setup(), generator), images[..., 2:26, 2:26], atol=1e-4
    )


@pytest.mark.parametrize(
    "change, arguments",
    [
        ({"turn": 30}, {"angle": 30}), ({"shift": 3}, {"translate": [3, 3]}),
        ({"stretch": 0.2}, {"scale": 1.2}), ({"slant": 20}, {"shear": [20, 0]}),
    ],
)  # fmt: skip
def test_each_distortion_at_its_largest_is_torchvisions(page, test, monkeypatch, change, arguments):
    images, standard = test.images[:20], dict(angle=0, translate=[0, 0], scale=1.0, shear=[0, 0])
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.ones(size))
    found = page.distorted(images, page.Setup(**change), None)
    bilinear = vision.InterpolationMode.BILINEAR
    differences = []
    for sign in (1, -1):  # which way round is a matter of convention
        signed = {
            key: [sign * v for v in value] if isinstance(value, list)
            else value if key == "scale" else sign * value for key, value in arguments.items()
        }  # fmt: skip
        wanted = vision.affine(
            images - page.BACKGROUND, **(standard | signed), interpolation=bilinear
        )
        wanted = wanted[..., page.CUT, page.CUT] + page.BACKGROUND
        differences.append((found - wanted).abs().max().item())
    assert min(differences) < 1e-3
    assert max(differences) > 1e-3 or "stretch" in change  # which has no way round


def test_a_net_whose_corners_all_move_alike_moves_the_picture(page, test, monkeypatch):
    images = test.images[:20]
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.ones(size))
    monkeypatch.setattr(torch, "randn", lambda *size, generator: torch.ones(size))
    bent = page.distorted(images, page.Setup(bend=1.5), None)
    assert torch.allclose(bent, page.distorted(images, page.Setup(shift=1.5), None), atol=1e-4)


def test_pictures_of_a_batch_are_distorted_differently_and_by_the_seed_alone(page, test):
    images, setup = test.images[:1].expand(8, -1, -1, -1), page.Setup(turn=30)
    first, again = (
        page.distorted(images, setup, torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert first.equal(again) and not any(first[0].equal(other) for other in first[1:])


# ------------------------------------------------------------------ folding


@pytest.fixture
def normalised(page, small):
    """A network whose means, deviations and whatever else can be trained have moved."""
    setup = page.Setup(network="normalised", lr=0.02, epochs=2)
    *_, model = page.training(setup, small, seed=0)
    return model


def test_folded_network_answers_the_same_with_60_874_parameters(page, normalised, small):
    plain, images = page.folded(normalised), small.images[..., page.CUT, page.CUT]
    assert type(plain) is utils.MnistClassifier
    assert sum(weight.numel() for weight in plain.parameters()) == 60_874
    assert torch.allclose(plain(images), normalised(images), atol=1e-4)


def test_folding_is_pytorchs(page, normalised):
    plain = page.folded(normalised)
    fuses = 3 * [fuse_conv_bn_eval] + [fuse_linear_bn_eval]
    for fuse, name, norm in zip(fuses, ("conv1", "conv2", "conv3", "fc1"), normalised.norms):
        wanted = fuse(getattr(normalised, name).eval(), norm)
        assert torch.allclose(getattr(plain, name).weight, wanted.weight, atol=1e-6)
        assert torch.allclose(getattr(plain, name).bias, wanted.bias, atol=1e-6)


# ----------------------------------------------------------- other networks


def test_stack_has_the_layers_that_its_words_say(page):
    model = page.Stack("c8P s16")
    assert model(torch.zeros(2, 1, 24, 24)).shape == (2, 10)
    kinds = [nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU,
             nn.Conv2d, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]  # fmt: skip
    assert [type(layer) for layer in model.steps] == kinds
    weights = 8 * 9 + 8 + 8 * 9 + 8 * 16 + 16 + 16 * 10 + 10
    assert sum(weight.numel() for weight in page.trained_weights(model)) == weights


# ----------------------------------------------------------------- training


def weights_after(page, setup, data, seed, **more):
    *_, model = page.training(replace(setup, epochs=2), data, seed, **more)
    return torch.cat([weight.flatten() for weight in model.state_dict().values()])


def test_training_depends_on_the_seed_alone(page, small):
    setup = page.STEPS["weight decay"]
    first, again, other = (weights_after(page, setup, small, seed) for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)


@pytest.mark.long
@pytest.mark.parametrize("network", ["plain", "normalised", "c16P c32P s32"])
def test_a_network_learns(page, small, network):
    setup = page.Setup(network=network, epochs=20, lr=0.01)
    *_, model = page.training(setup, small, seed=0)
    assert (page.answers_of(model, small).argmax(1) == small.labels).float().mean() > 0.9


def test_averaged_weights_follow_the_formula(page, small, monkeypatch):
    """From the first step's weights: share × average + (1 - share) × weights, after each step."""
    seen = []
    update = torch.optim.swa_utils.AveragedModel.update_parameters

    def watched(average, model):
        seen.append(model.conv1.weight.detach().clone())
        update(average, model)

    monkeypatch.setattr(page.AveragedModel, "update_parameters", watched)
    *_, averaged = page.training(page.Setup(averaging=0.9, epochs=1), small, seed=0)
    wanted = seen[0]
    for weights in seen[1:]:
        wanted = 0.9 * wanted + 0.1 * weights
    assert len(seen) == 10 and torch.allclose(averaged.conv1.weight, wanted, atol=1e-6)


@pytest.mark.parametrize("one_cycle", [False, True])
def test_learning_rate_is_constant_or_rises_for_a_quarter_and_falls_to_nothing(page, one_cycle):
    setup = page.Setup(lr=0.01, one_cycle=one_cycle)
    optimizer, schedule = page.prepare(page.new_network(setup, 0), setup, steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(rates) < 100 else None
    if one_cycle:
        assert np.argmax(rates) == 24 and max(rates) == pytest.approx(0.01)
        assert rates[-1] < 1e-6 < 0.0003 < rates[0] < 0.0005
    else:
        assert rates == pytest.approx([0.01] * 100)


def test_teachers_mark_instead_of_the_labels(page, small):
    """A network that learns from a teacher who calls everything a 3 does so too."""

    class Three(nn.Module):
        def forward(self, images):
            return 50.0 * F.one_hot(torch.full((len(images),), 3), 10)

    setup = page.Setup(epochs=3)
    *_, model = page.training(setup, small, seed=0, teachers=[Three()])
    assert (page.answers_of(model, small).argmax(1) == 3).all()


# -------------------------------------------------------------------- study


def test_ensembles_add_up_probabilities():
    """Neither a vote of the networks, which the first picture would deceive, nor the surest one."""
    chances = [[0.6, 0.6, 0.0], [0.65, 0.65, 0.3]]  # of the right digit, by picture and network
    table = torch.zeros(3, 2, 10)
    table[:, :, 0] = torch.tensor(chances).T
    table[:, :, 1] = 1 - table[:, :, 0]
    found = accuracy_study.together(table, torch.tensor([0, 0]))
    assert found == {1: [1, 1, 0], 2: [1, 0, 0], 3: [0.5]}


def test_no_ensemble_is_drawn_twice(monkeypatch):
    """Each network is right about pictures of its own, so many that every pair has another sum."""
    monkeypatch.setattr(accuracy_study, "DRAWS", 27)  # of 28 pairs
    monkeypatch.setattr(accuracy_study, "SIZES", (2,))
    right = [1, 2, 5, 10, 16, 23, 33, 35]
    table, start = torch.zeros(8, sum(right), 10), 0
    for network, count in enumerate(right):
        table[network, start : start + count, 1] = 1.0
        start += count
    drawn = accuracy_study.together(table, torch.ones(start, dtype=torch.int64))[2]
    assert len(drawn) == len(set(drawn)) == 27


def test_stored_errors_are_read_as_they_were_written(page, monkeypatch):
    labels, table = torch.arange(10), torch.eye(10)
    table[7] = table[2]
    monkeypatch.setattr(
        page, "runs", {"p": {"n": {"errors": [accuracy_study.errors(table, labels)]}}},
        raising=False,
    )  # fmt: skip
    assert page.runs["p"]["n"]["errors"] == ["7:2"]
    assert page.guesses_of("p", "n", labels.numpy()).tolist() == [[0, 1, 2, 3, 4, 5, 6, 2, 8, 9]]


@pytest.fixture
def study(page, small, monkeypatch, tmp_path):
    """A study of little work: two networks, and one that they teach."""
    setup = page.Setup(network="normalised", epochs=1)
    runs = {
        "final": {"this training": (setup, 2), "b": (replace(setup, teachers="this training"), 1)}
    }
    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(tmp_path))
    for where, name, value in (
        (page, "RUNS", runs), (page, "BEST", setup), (accuracy_study, "TEACHERS", 2),
        (accuracy_study, "SIZES", (1, 2)), (accuracy_study, "ROUNDS", 1),
        (accuracy_study, "data", lambda final: (small, small)),
        (accuracy_study, "prepare_process", lambda: None),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, value)

    def train(job):
        return accuracy_study.run(*job, accuracy_study.described(*job[:2]))

    return runs, train


def test_study_goes_on_where_it_was_stopped(study):
    runs, train = study
    every = [("final", "this training", 0), ("final", "this training", 1), ("final", "b", 0)]
    assert accuracy_study.missing(runs) == every
    train(every[0])
    assert accuracy_study.missing(runs) == every[1:]
    assert not accuracy_study.is_ready(*every[2])  # who teaches has not learnt yet
    train(every[1])
    assert accuracy_study.is_ready(*every[2])
    train(every[2])
    assert accuracy_study.missing(runs) == []
    setup, seeds = runs["final"]["this training"]
    runs["final"]["this training"] = (replace(setup, lr=0.1), seeds)
    assert accuracy_study.missing(runs) == every  # who was taught by others, too


@pytest.mark.long
def test_summary_has_what_was_trained(study, page, small):
    runs, train = study
    scores = [train(job) for job in accuracy_study.missing(runs)]
    result = accuracy_study.summary()
    row = result["runs"]["final"]["this training"]
    assert [epochs[-1] for epochs in row["by_epoch"]] == row["together"][1] == scores[:2]
    assert [1 - len(errors.split()) / 640 for errors in row["errors"]] == pytest.approx(scores[:2])
    assert row["parameters"] == 60_874 and row["seconds"] > 0 and sum(row["devices"].values()) == 2
    network = utils.MnistClassifier().eval()
    weights = np.frombuffer(base64.b64decode(result["weights"]), dtype="<f4").copy()
    nn.utils.vector_to_parameters(torch.from_numpy(weights), network.parameters())
    right = page.answers_of(network, small).argmax(1) == small.labels
    assert right.double().mean() == pytest.approx(scores[0])


def test_changed_notebook_stops_the_study(study):
    with pytest.raises(RuntimeError, match="08_accuracy.ipynb has changed since the study began"):
        accuracy_study.run("final", "this training", 0, {"epochs": 99})


# ------------------------------------------------------- what the page says


@pytest.fixture(scope="module")
def stored():
    return json.loads((utils.ROOT / "notebooks" / "08_study.json").read_text(encoding="utf-8"))


def test_stored_study_is_of_the_setups_on_the_page(page, stored):
    assert {part: list(setups) for part, setups in page.RUNS.items()} == {
        part: list(rows) for part, rows in stored["runs"].items()
    }
    for part, setups in page.RUNS.items():
        for name, (setup, seeds) in setups.items():
            row = stored["runs"][part][name]
            assert row["setup"] == accuracy_study.described(part, name)
            assert row["parameters"] == accuracy_study.parameters(setup)
            assert [len(epochs) for epochs in row["by_epoch"]] == [setup.epochs] * seeds
            if part in page.FINAL:  # every error is stored, and leads to the stored accuracy
                correct = [1 - len(errors.split()) / 10_000 for errors in row["errors"]]
                assert correct == pytest.approx([epochs[-1] for epochs in row["by_epoch"]])


def test_the_prose_says_what_was_stored(page, stored):
    """No number stands in the prose, but words such as "several times more" do."""
    after = {
        name: 100 * np.array([epochs[-1] for epochs in row["by_epoch"]])
        for part in ("steps", "final", "small") for name, row in stored["runs"][part].items()
    }  # fmt: skip
    changes = {
        name: page.paired(after[name], after[before])
        for name, before in page.BEFORE.items() if before
    }  # fmt: skip
    gain = changes.pop("one-cycle schedule")[0]
    assert gain > 3 * max(change for change, _ in changes.values())
    wrong = {name: 100 - values.mean() for name, values in after.items()}
    first = 1 - wrong["one-cycle schedule"] / wrong["constant rate"]
    rest = 1 - wrong["smoothed labels"] / wrong["one-cycle schedule"]
    assert 0.38 < first < 0.42 and first > rest  # two in five, more than everything after
    for name in ("averaged weights", "milder distortions", "40 epochs", "distillation"):
        change, error = changes[name]
        assert abs(change) < 2 * error, name
    for name in ("stronger distortions", "bent strokes"):
        change, error = changes[name]
        assert change < -2 * error, name
    assert 0 < changes["smoothed labels"][0] < 2 * changes["smoothed labels"][1]
    assert changes["weight decay"][0] < 0
    means = {name: values.mean() for name, values in after.items()}
    assert max(page.STEPS, key=means.get) == "smoothed labels"
    assert 0.7 < (100 - means["larger"]) / (100 - means["this training"]) < 0.8
    assert abs(means["distilled"] - means["this training"]) < 0.01
    assert 98.8 < means["1,000"] < 99 and 99.35 < means["3,000"] < 99.45
    assert 19 < 60_874 / stored["runs"]["small"]["3,000"]["parameters"] < 21
