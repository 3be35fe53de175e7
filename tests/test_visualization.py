"""Notebook 05's attributions, attacks and the rest against independent implementations.

The functions are taken from the notebook's own cells and run on a trained network, so what is
tested is what the reader sees.
"""

import captum.attr
import captum.robust
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import sklearn.decomposition
import sklearn.metrics
import torch

import utils
from tools.notebook_code import definitions

pytestmark = pytest.mark.slow  # it trains a network, unless one is there


@pytest.fixture(scope="module")
def cells(test):
    """What the notebook defines, by name, beside a trained network and its answers."""
    names = vars(definitions("05_visualization"))
    model, _ = utils.trained_model("cpu")
    names |= {"model": model, "test": test, "labels": test.labels}
    probabilities = utils.predict(model, test.images).double().softmax(dim=1)
    names["confidence"], names["guesses"] = probabilities.max(dim=1)
    names["right"] = names["guesses"] == test.labels
    names["pixels"] = torch.from_numpy(test.pixels[:64]).unsqueeze(1) / 255
    return names


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize(("k", "n"), [(9904, 10_000), (0, 7), (7, 7), (1, 1), (500, 1000)])
def test_wilson_interval(cells, k, n):
    level = 2 * scipy.stats.norm.cdf(1.96) - 1
    expected = scipy.stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert cells["wilson_interval"](k, n) == pytest.approx(tuple(expected), abs=1e-12)


def test_share_is_a_percentage_with_its_interval(cells):
    assert cells["share"](torch.tensor([True] * 9 + [False] * 7)) == "56.2 % (33.2–76.9)"


# ------------------------------------------------------------------ inside


def test_principal_components(cells):
    features = cells["layer_output"](cells["model"], cells["test"].images[:600], "fc1").double()
    points, shares = cells["principal_components"](features, 4)
    other = sklearn.decomposition.PCA(4, svd_solver="full").fit(features.numpy())
    assert shares.numpy() == pytest.approx(other.explained_variance_ratio_, abs=1e-9)
    expected = other.transform(features.numpy())
    assert points.abs().numpy() == pytest.approx(np.abs(expected), abs=1e-6)  # signs are free


@pytest.mark.parametrize("name", ["conv1", "conv3", "fc1"])
def test_layer_output(cells, name):
    images, model = cells["test"].images[:501], cells["model"]  # more than utils.predict's piece
    layer = captum.attr.LayerActivation(model, model.get_submodule(name))
    found = cells["layer_output"](model, images, name)
    assert torch.allclose(found, layer.attribute(images), atol=1e-4)
    assert not model.get_submodule(name)._forward_hooks


# ------------------------------------------------------------ attributions


def test_black_is_the_background(cells):
    assert cells["test"].images.min() == pytest.approx(cells["BACKGROUND"], abs=1e-6)


@pytest.fixture(scope="module")
def some(cells):
    """Eight pictures read right and eight read wrong, with their guesses."""
    chosen = torch.cat([cells["right"].nonzero()[:8, 0], (~cells["right"]).nonzero()[:8, 0]])
    return cells["test"].images[chosen], cells["guesses"][chosen]


def test_input_gradient(cells, some):
    images, targets = some
    expected = captum.attr.Saliency(cells["model"]).attribute(
        images.clone().requires_grad_(), targets, abs=False
    )
    assert torch.allclose(cells["input_gradient"](cells["model"], *some), expected, atol=1e-5)


def test_integrated_gradients(cells, some):
    images, targets = some
    expected = captum.attr.IntegratedGradients(cells["model"]).attribute(
        images, cells["BACKGROUND"], targets, n_steps=50, method="riemann_middle"
    )
    found = cells["integrated_gradients"](cells["model"], *some)
    assert torch.allclose(found, expected.float(), atol=1e-3)


def test_occlusion(cells, some):
    images, targets = some
    expected = captum.attr.Occlusion(cells["model"]).attribute(
        images, (1, 5, 5), strides=(1, 1, 1), baselines=cells["BACKGROUND"], target=targets
    )
    assert torch.allclose(cells["occlusion"](cells["model"], *some), expected, atol=1e-3)


# ----------------------------------------------------------------- attacks


class FromPixels(torch.nn.Module):
    """The network with its normalisation in front, as captum's attacks want it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model((pixels - utils.MEAN) / utils.STD)


def each_loss(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("epsilon", [0.02, 0.2])
def test_fgsm(cells, epsilon):
    pixels, labels = cells["pixels"], cells["labels"][:64]
    attack = captum.robust.FGSM(
        FromPixels(cells["model"]), loss_func=each_loss, lower_bound=0, upper_bound=1
    )
    attack.zero_thresh = 0  # captum leaves a pixel alone where the gradient is small
    expected = attack.perturb(pixels.clone().requires_grad_(), epsilon, labels)
    found = cells["fgsm"](cells["model"], pixels, labels, epsilon)
    assert same_but_for_ties(found, expected)


@pytest.mark.parametrize("epsilon", [0.02, 0.2])
def test_pgd(cells, epsilon):
    pixels, labels = cells["pixels"], cells["labels"][:64]
    attack = captum.robust.PGD(
        FromPixels(cells["model"]), loss_func=each_loss, lower_bound=0, upper_bound=1
    )
    attack.fgsm.zero_thresh = 0
    expected = attack.perturb(
        pixels.clone(), epsilon, 2.5 * epsilon / 10, 10, labels, random_start=False, norm="Linf"
    )
    found = cells["pgd"](cells["model"], pixels, labels, epsilon, steps=10)
    assert same_but_for_ties(found, expected)
    moved = cells["pgd"](
        cells["model"], pixels, labels, epsilon, start=cells["random_start"](pixels)
    )
    assert (moved - pixels).abs().max() <= epsilon + 1e-6
    assert moved.min() >= 0 and moved.max() <= 1
    fooled = cells["read"](cells["model"], moved) != labels
    assert epsilon < 0.1 or fooled.double().mean() > 0.5


def same_but_for_ties(found, expected):
    """Where a gradient is zero but for rounding, its sign is a matter of chance."""
    return ((found - expected).abs() > 1e-5).double().mean() < 0.001


def test_changed_pictures_of_a_loader(cells):
    """Pixels from 0 to 1 go into the change, normalised pictures and their labels come out."""
    loader = utils.make_loader(cells["test"], 50)
    images, labels = next(iter(cells["changed"](loader, lambda x, y: x, "cpu")))
    assert torch.allclose(images, cells["test"].images[:50], atol=1e-5)
    assert torch.equal(labels, cells["labels"][:50])
    inverted, _ = next(iter(cells["changed"](loader, lambda x, y: 1 - x, "cpu")))
    assert inverted.max() == pytest.approx((1 - utils.MEAN) / utils.STD, abs=1e-5)


# ------------------------------------------------------------- corruptions


def test_move_is_the_usual_shift_rotation_and_scale(cells):
    pixels, move = cells["pixels"], cells["move"]
    images = pixels[:, 0].numpy()

    shifted = scipy.ndimage.shift(images, (0, 0, 3), order=1)
    assert move(pixels, right=3)[:, 0].numpy() == pytest.approx(shifted, abs=1e-5)

    turned = scipy.ndimage.rotate(images, -30, axes=(1, 2), reshape=False, order=1)
    assert np.abs(move(pixels, angle=30)[:, 0].numpy() - turned).mean() < 1e-3

    centre = np.array([13.5, 13.5])
    for factor in (0.5, 2.0):
        matrix = np.eye(2) / factor
        scaled = [
            scipy.ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1)
            for image in images
        ]
        assert np.abs(move(pixels, scale=factor)[:, 0].numpy() - scaled).mean() < 1e-3


def test_blur_noise_and_cover(cells):
    pixels = cells["pixels"]
    images = pixels[:, 0].numpy()
    smooth = scipy.ndimage.gaussian_filter(images, (0, 1, 1), radius=(0, 6, 6), mode="mirror")
    assert cells["blur"](pixels, 1)[:, 0].numpy() == pytest.approx(smooth, abs=1e-4)

    grey = torch.full((50, 1, 28, 28), 0.5)
    noisy = cells["add_noise"](grey, 0.1)
    assert float((noisy - grey).std()) == pytest.approx(0.1, rel=0.02)

    covered = cells["cover"](pixels, 8)
    assert covered[..., 10:18, 10:18].abs().max() == 0
    covered[..., 10:18, 10:18] = pixels[..., 10:18, 10:18]
    assert torch.equal(covered, pixels) and torch.equal(pixels[:, 0], torch.from_numpy(images))


# ------------------------------------------------------------- not a digit


def test_drawn_characters_have_the_size_and_place_of_mnist(cells):
    font = cells["ImageFont"].truetype(cells["font_manager"].findfont("DejaVu Sans"), 80)
    for character in "A1gW?8":
        ink = cells["draw"](character, font) > 0.02
        rows, columns = ink.any(dim=1).nonzero(), ink.any(dim=0).nonzero()
        sides = [int(where.max() - where.min() + 1) for where in (rows, columns)]
        assert max(sides) in (19, 20, 21) and ink.shape == (28, 28)
        assert abs(float(rows.double().mean()) - 13.5) <= 1
        assert abs(float(columns.double().mean()) - 13.5) <= 1


def test_auroc(cells):
    inside = cells["confidence"][cells["right"]][:2000]
    outside = torch.cat([cells["confidence"][~cells["right"]], inside[:5]])  # with ties
    truth = [1] * len(inside) + [0] * len(outside)
    expected = sklearn.metrics.roc_auc_score(truth, torch.cat([inside, outside]))
    assert cells["auroc"](inside, outside) == pytest.approx(expected, abs=1e-12)
