"""The study of real pictures that notebook 06 shows, on pictures drawn here."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.data import Subset

import utils
from tools import photo_study
from tools.photo_study import attempt, augment, by_threshold, otsu, otsu_level, ours, read, shrunk


class Narrow(nn.Module):
    """A network that calls narrow ink a 1 and all other a 0."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, images):
        width = (images > 1).any(dim=2).sum(dim=(1, 2))
        answer = nn.functional.one_hot((width < 10).long(), 10)
        return 5.0 * answer + self.bias


@pytest.fixture
def folder(tmp_path):
    """A 1 and an empty page, a number with labels, and a copy that does not count."""
    sheet = Image.new("L", (300, 200), 220)
    sheet.save(tmp_path / "empty.png")
    pencil = ImageDraw.Draw(sheet)
    pencil.line((60, 60, 66, 150), fill=30, width=12)
    sheet.save(tmp_path / "one.png")
    pencil.ellipse((130, 60, 200, 150), outline=30, width=12)
    sheet.save(tmp_path / "ten.png")
    rows = ["one.png,1,photo", "empty.png,7,photo", "ten.png,10,num_drawn"]
    rows = ["file,label,kind", *rows, "exif_orientation/ten.png,10,num_drawn"]
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_OUTPUT_DIR", str(tmp_path))
    return tmp_path


# -------------------------------------------------------------- preparing
def test_otsu_s_threshold_is_the_library_s_or_the_definition_s():
    rng = np.random.default_rng(0)
    for dark in (20, 90, 128):
        grey = rng.normal(200, 25, (40, 50))
        grey[10:20, 10:30] = rng.normal(dark, 25, (10, 20))
        grey = grey.clip(0, 255).astype(np.uint8)
        try:
            from skimage.filters import threshold_otsu
        except ImportError:

            def threshold_otsu(grey):
                """The level that leaves the least variance within the two groups."""
                levels = range(grey.min(), grey.max())
                groups = ((grey[grey <= level], grey[grey > level]) for level in levels)
                within = [sum(len(group) * group.var() for group in pair) for pair in groups]
                return levels[int(np.argmin(within))]

        assert otsu_level(grey) == threshold_otsu(grey)


@pytest.mark.parametrize("inverted", [False, True])
def test_each_way_gives_pictures_as_mnist_has_them(folder, inverted):
    image = Image.open(folder / "one.png")
    image = image.point(lambda level: 255 - level) if inverted else image
    for way in (ours, shrunk, otsu):
        [[picture]] = attempt(way, image)
        assert picture.shape == (28, 28) and picture.dtype == np.uint8
        assert np.median(picture) < 40 and picture.max() > 180  # light on dark
        rows = np.flatnonzero((picture > 100).any(axis=1))
        assert len(rows) == (13 if way is shrunk else 20), way
        assert read(Narrow(), [[[picture]]])[0][0] == "1"


def test_otsu_parts_the_digits_of_a_number(folder):
    [digits] = attempt(otsu, folder / "ten.png", number=True)
    assert read(Narrow(), [[digits]])[0][0] == "10"
    assert read(Narrow(), [[digits[:1], digits[::-1]]])[0][0] == "1/01"


def test_scikit_learn_s_digits_become_light_on_dark_with_a_margin():
    pytest.importorskip("sklearn")
    images, labels = photo_study.small_digits()
    assert len(images) == len(labels) == 1797 and labels[:3] == ["0", "1", "2"]
    pixels = np.asarray(images[0])
    assert pixels.shape == (120, 120) and pixels.max() > 230
    assert not pixels[:10].any() and not pixels[:, -10:].any()


# --------------------------------------------------------------- counting
def test_only_what_is_sure_enough_is_answered():
    answers = [("1", 0.995), ("7", 0.93), ("7", 0.55), (None, 0.0)]
    limits = by_threshold(answers, ["1", "7", "1", "4"])
    assert list(limits.values()) == [[3, 1]] * 2 + [[2, 0]] * 4 + [[1, 0]] * 2


def test_a_folder_becomes_counts(folder, test, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["photo_study", str(folder), "--source", "a pencil"])
    monkeypatch.setattr(photo_study, "RESULT", folder / "06_study.json")
    monkeypatch.setattr(photo_study, "trained", lambda variant, seed: Narrow())
    monkeypatch.setattr(photo_study, "small_digits", lambda: ([], []))
    monkeypatch.setattr(photo_study.page, "prepare_number", lambda path: otsu(path, True))
    monkeypatch.setattr(utils, "trained_model", lambda device: (Narrow(), {"epoch": 10}))
    few = utils.MNISTDataset(test.pixels[:20], test.labels[:20].numpy().astype(np.uint8))
    monkeypatch.setattr(utils, "load_mnist", lambda split: few)
    photo_study.main()

    text = (folder / "06_study.json").read_text(encoding="utf-8")
    study = json.loads(text)
    assert study["source"] == "3 pictures from a pencil, not redistributed"
    assert study["kinds"] == {
        "num_drawn": {"n": 1, "ours": [1, 0, 0], "shrunk": [0, 0, 1], "otsu": [1, 0, 0]},
        "photo": {"n": 2, "ours": [1, 1, 0], "shrunk": [1, 0, 1], "otsu": [1, 1, 0]},
    }
    assert study["network"]["photos"] == [1, 1, 0]
    assert study["network"]["ones and sevens"] == [1, 1, 0]
    assert sum(study["network"]["test"]) == 20
    assert study["limits"]["photos"]["0.5"] == [1, 0]
    seeds = {variant: list(by_seed) for variant, by_seed in study["networks"].items()}
    assert seeds == dict.fromkeys(["plain", "augmented"], list("01234"))
    assert ".png" not in text
    assert "empty.png, label 7: empty.png: expected clear ink" in capsys.readouterr().out


# --------------------------------------------------------------- networks
def test_pens_and_places_change_and_digits_stay(train, monkeypatch):
    images, random = train.images[:300], torch.Generator().manual_seed(0)
    moved = augment(images, random)
    assert moved.shape == images.shape and moved.min() >= images.min() - 1e-4
    assert not torch.isclose(moved, images, atol=0.01).flatten(1).all(dim=1).any()

    still = {"degrees": 0, "shear": 0, "scale": 0, "shift": 0}
    monkeypatch.setattr(photo_study, "SETTINGS", photo_study.SETTINGS | still)
    pens = augment(images, random)
    same = torch.isclose(pens, images, atol=0.001).flatten(1).all(dim=1)
    assert 170 < same.sum() < 230  # two thirds
    ink = (pens - images).sum(dim=(1, 2, 3))[~same]
    assert 40 < (ink > 0).sum() < 90 and 15 < (ink < 0).sum() < 60


def test_a_network_is_trained_once(train, outputs, monkeypatch):
    monkeypatch.setattr(photo_study, "SETTINGS", photo_study.SETTINGS | {"epochs": 1})
    few, images = Subset(train, range(1280)), train.images[2000:2500]
    networks = {v: photo_study.trained(v, 3, few) for v in photo_study.VARIANTS}
    logits = {v: utils.predict(network, images) for v, network in networks.items()}
    assert not torch.equal(*logits.values())
    assert (logits["plain"].argmax(dim=1) == train.labels[2000:2500]).float().mean() > 0.5

    monkeypatch.setattr(utils, "train_epoch", None)  # calling it would fail
    for variant, kept in logits.items():
        assert torch.equal(utils.predict(photo_study.trained(variant, 3, few), images), kept)
    photo_study.SETTINGS["lr"] = 0.002  # no longer what the weights were made with
    with pytest.raises(TypeError):
        photo_study.trained("plain", 3, few)
