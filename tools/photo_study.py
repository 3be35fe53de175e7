"""Read a folder of real pictures in three ways, with eleven networks, and count what was right.

    python -m tools.photo_study            only train the networks
    python -m tools.photo_study FOLDER     then read the pictures

FOLDER has a labels.csv with the columns file, label and kind. A / in a label separates rows;
kinds that begin with num are numbers, and so are labels longer than a digit. Each of the ten
networks takes about two minutes on a quiet CPU core. Their weights stay in outputs/, so a study
that was stopped goes on with the network it was at, and reading alone takes a minute or two.
The result, counts only, goes to notebooks/06_study.json, which notebook 06 shows.
"""

import argparse
import contextlib
import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.optim.lr_scheduler import LinearLR

import utils
from tools import studies
from tools.notebook_code import definitions

RESULT = utils.ROOT / "notebooks" / "06_study.json"
VARIANTS = ("plain", "augmented")
SETTINGS = {"seeds": [0, 1, 2, 3, 4], "epochs": 5, "batch_size": 64, "lr": 0.004,
            "degrees": 12, "shear": 0.25, "scale": 0.1, "shift": 1.5}  # fmt: skip
THRESHOLDS = (0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
page = definitions("06_your_handwriting")


# --------------------------------------------------------------- networks
def thicken(images, size):
    """Give each pixel the largest value of the size × size around it."""
    return F.max_pool2d(F.pad(images, (size // 2, (size - 1) // 2) * 2), size, stride=1)


def augment(images, random):
    """Return normalised images turned, sheared, scaled and shifted, a third with another pen.

    One in nine gets strokes thicker by a pixel, one by two, and one thinner by one, because two
    would leave an eighth of the ink.
    """
    images, count = images * utils.STD + utils.MEAN, len(images)
    thin = -thicken(-images, 2)
    thin = thin / thin.amax((2, 3), keepdim=True).clamp(min=0.2)  # full ink again, as to_mnist
    pen = torch.randint(9, (count, 1, 1, 1), generator=random)
    for choice, other in enumerate((thicken(images, 2), thicken(images, 3), thin)):
        images = torch.where(pen == choice, other, images)
    angle, shear, scale, x, y = 2 * torch.rand(5, count, generator=random) - 1
    angle, shear = SETTINGS["degrees"] * math.pi / 180 * angle, SETTINGS["shear"] * shear
    scale, shift = 1 + SETTINGS["scale"] * scale, SETTINGS["shift"] / 14  # a picture is 2 wide
    cos, sin = scale * angle.cos(), scale * angle.sin()
    top = torch.stack([cos, shear * cos - sin, shift * x], dim=1)
    bottom = torch.stack([sin, shear * sin + cos, shift * y], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), images.shape, align_corners=False)
    return (F.grid_sample(images, grid, align_corners=False) - utils.MEAN) / utils.STD


def trained(variant, seed, train=None):
    """Return a network; it is trained unless outputs/ has its weights."""
    path = utils.output_dir() / f"photo_study_{variant}_{seed}.pth"
    made_with = json.dumps([SETTINGS, studies.provenance(threads=1)])
    model, random = utils.new_model(seed), torch.Generator().manual_seed(seed)
    content = utils.load_plain(path) if path.is_file() else {}
    if content.get("made_with") == made_with:
        model.load_state_dict(content["weights"])
        return model.eval()
    train = train or utils.load_mnist("train")
    batches = utils.make_loader(train, SETTINGS["batch_size"], shuffle=True, seed=seed)
    optimizer = utils.new_optimizer(model, SETTINGS["lr"])
    schedule = LinearLR(optimizer, 1, 0, SETTINGS["epochs"] * len(batches))
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    for _ in range(SETTINGS["epochs"]):
        changed = ((augment(images, random), labels) for images, labels in batches)
        with contextlib.redirect_stderr(io.StringIO()):  # no progress bars
            utils.train_epoch(model, changed if variant == "augmented" else batches, optimizer)
    torch.save({"made_with": made_with, "weights": model.state_dict()}, file := io.BytesIO())
    utils.write_whole(path, file.getvalue())
    print(f"{variant}, seed {seed}: trained", flush=True)
    return model.eval()


# ------------------------- ways of preparing: each returns rows of (28, 28) uint8
def ours(source, number):
    return page.prepare_number(source) if number else [[page.prepare(source)]]


def to_levels(source):
    """Return a picture's grey levels, uint8, and the median of its outermost pixels."""
    grey = np.asarray(page.open_picture(source).convert("L"))
    return grey, np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))


def shrunk(source, number):
    """The whole picture, light on dark, made small: one digit, whatever it is."""
    grey, rim = to_levels(source)
    return [[np.asarray(Image.fromarray(255 - grey if rim > 127 else grey).resize((28, 28)))]]


def otsu_level(grey):
    """Return the last level of the darker of two groups of pixels that differ most (Otsu 1979).

    In practice: ``skimage.filters.threshold_otsu``.
    """
    counts = np.bincount(grey.ravel(), minlength=256).astype(float)
    below, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    apart = (sums * below[-1] - sums[-1] * below) ** 2
    return int((apart / np.maximum(below * (below[-1] - below), 1)).argmax())


def otsu(source, number):
    """One threshold for the whole picture; in a number, columns without ink part the digits."""
    grey, rim = to_levels(source)
    level = otsu_level(grey)
    ink = (grey <= level if rim > level else grey > level).astype(float)
    if not ink.any():
        raise page.PhotoError("expected ink, found one brightness all over.")
    edges = np.flatnonzero(np.diff(ink.any(axis=0), prepend=False, append=False))
    runs = zip(edges[::2], edges[1::2]) if number else [(0, None)]
    return [[page.to_mnist(ink[:, start:stop]) for start, stop in runs]]


WAYS = {"ours": ours, "shrunk": shrunk, "otsu": otsu}


def attempt(way, source, number=False):
    """Return the rows of pictures, or why there are none."""
    try:
        return way(source, number)
    except page.PhotoError as error:
        return str(error)


# ---------------------------------------------------------------- reading
def read(model, prepared):
    """Return text (None: refused) and least probability of a digit for each ``attempt``."""
    pictures = [p for rows in prepared if isinstance(rows, list) for row in rows for p in row]
    pixels = torch.from_numpy(np.asarray(pictures, np.float32).reshape(-1, 1, 28, 28)) / 255
    best = utils.predict(model, (pixels - utils.MEAN) / utils.STD).softmax(dim=1).max(dim=1)
    digits, answers = iter(zip(best.indices.tolist(), best.values.tolist())), []
    for rows in prepared:
        found = [[next(digits) for _ in row] for row in rows] if isinstance(rows, list) else []
        text = "/".join("".join(str(digit) for digit, _ in row) for row in found)
        answers.append((text or None, min((p for row in found for _, p in row), default=0.0)))
    return answers


def tally(answers, labels):
    """Return how many are right, refused, wrong."""
    right = sum(text == label for (text, _), label in zip(answers, labels, strict=True))
    refused = sum(text is None for text, _ in answers)
    return [right, refused, len(answers) - right - refused]


def by_threshold(answers, labels):
    """Return [how many are answered, how many of these wrong] for each least probability."""
    pairs = [(p, text != label) for (text, p), label in zip(answers, labels) if text]
    kept = {least: [wrong for p, wrong in pairs if p >= least] for least in THRESHOLDS}
    return {str(least): [len(wrong), sum(wrong)] for least, wrong in kept.items()}


def small_digits():
    """Return scikit-learn's 1,797 pictures and labels, none if it is not installed.

    Their 8 × 8 levels from 0 to 16 get a margin of two and are enlarged to 120 × 120.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        print("Without load_digits: scikit-learn is not installed.")
        return [], []
    data = load_digits()
    pixels = np.pad(data.images * 255 / 16, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    size, way = (120, 120), Image.Resampling.BICUBIC
    return [Image.fromarray(p).resize(size, way) for p in pixels], list(map(str, data.target))


def measure(folder, networks, model):
    """Return the counts; print those of each kind and what ``model`` does not read right."""
    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        photos = [row for row in csv.DictReader(file) if "exif_orientation/" not in row["file"]]
    labels, kinds = [photo["label"] for photo in photos], {}
    numbers = [p["kind"].startswith("num") or len(p["label"]) > 1 for p in photos]
    pairs = [(folder / photo["file"], number) for photo, number in zip(photos, numbers)]
    prepared = {way: [attempt(make, *pair) for pair in pairs] for way, make in WAYS.items()}
    answers = {way: read(model, prepared[way]) for way in WAYS}

    for kind in sorted({photo["kind"] for photo in photos}):
        at = [i for i, photo in enumerate(photos) if photo["kind"] == kind]
        by_way = {w: tally([answers[w][i] for i in at], [labels[i] for i in at]) for w in WAYS}
        kinds[kind] = {"n": len(at)} | by_way
        print(f"{kind:15} {len(at):3}   ", *(f"{way} {by_way[way]}".ljust(18) for way in WAYS))
    for label, pair, rows, (text, p) in zip(labels, pairs, prepared["ours"], answers["ours"]):
        if text != label:
            print(f"{pair[0].name}, label {label}: {f'{text}, {p:.2f}' if text else rows}")

    single = [i for i, number in enumerate(numbers) if not number]
    places = {"photos": single, "ones and sevens": [i for i in single if labels[i] in "17"]}
    rows, (images, truth), test = prepared["ours"], small_digits(), utils.load_mnist("test")
    sets = {n: ([rows[i] for i in at], [labels[i] for i in at]) for n, at in places.items()}
    sets["load_digits"] = [attempt(ours, image) for image in images], truth
    sets["test"] = [[[p]] for p in test.pixels], list(map(str, test.labels.tolist()))

    def counts(network):
        return {n: tally(read(network, rows), truth) for n, (rows, truth) in sets.items()}

    limits = {n: by_threshold(read(model, sets[n][0]), sets[n][1]) for n in ("photos", "test")}
    by_variant = {v: {str(s): counts(m) for s, m in some.items()} for v, some in networks.items()}
    return {"kinds": kinds, "limits": limits, "network": counts(model), "networks": by_variant}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="has labels.csv; if left out: train")
    parser.add_argument("--source", default="a folder of one's own", help="for the result's text")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = {v: {s: trained(v, s) for s in SETTINGS["seeds"]} for v in VARIANTS}
    if arguments.folder is None:
        return
    model, checkpoint = utils.trained_model("cpu")
    counts = measure(arguments.folder, networks, model)
    total = sum(kind["n"] for kind in counts["kinds"].values())
    head = {
        "command": "python -m tools.photo_study FOLDER", "date": studies.today(),
        "provenance": studies.provenance(threads=1),
        "settings": SETTINGS | {"epochs of the main network": checkpoint["epoch"]},
        "source": f"{total} pictures from {arguments.source}, not redistributed",
    }  # fmt: skip
    studies.store(RESULT, head | counts)
    print(f"Stored as {RESULT.name}")


if __name__ == "__main__":
    main()
