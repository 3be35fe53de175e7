"""Notebook 04's metrics, attributions and attacks against independent implementations.

The functions are taken from the notebook's own cells and run on the real predictions of
a trained network, so what is tested is what the reader sees.
"""

import captum.attr
import captum.robust
import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import scipy.stats
import sklearn.calibration
import sklearn.decomposition
import sklearn.metrics
import torch
import torchmetrics.classification

import utils
from tools.notebook_code import definitions

pytestmark = pytest.mark.slow  # it trains a network, unless one is there


@pytest.fixture(scope="module")
def cells(test):
    """What the notebook defines, by name, beside a trained network and its answers."""
    names = vars(definitions("04_evaluation"))
    model, _ = utils.trained_model("cpu")
    names |= {"device": torch.device("cpu"), "model": model, "test": test, "labels": test.labels}
    names["BLACK"] = test.images.min().item()
    names["logits"] = utils.predict(model, test.images).double()
    names["probabilities"] = names["logits"].softmax(dim=1)
    names["confidence"], names["guesses"] = names["probabilities"].max(dim=1)
    names["right"] = names["guesses"] == test.labels
    names["pixels"] = torch.from_numpy(test.pixels[:64]).unsqueeze(1) / 255
    return names


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize(("k", "n"), [(9904, 10_000), (0, 7), (7, 7), (1, 1), (500, 1000)])
def test_wilson_interval(cells, k, n):
    level = 2 * scipy.stats.norm.cdf(1.96) - 1
    expected = scipy.stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert cells["wilson_interval"](k, n) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_interval_always_contains_the_observed_share(cells):
    """Else the error bars of a figure would be negative, which Matplotlib refuses."""
    for n in range(1, 1200):
        for k in (0, 1, n - 1, n):
            low, high = cells["wilson_interval"](k, n)
            assert 0 <= low <= k / n <= high <= 1


@pytest.mark.parametrize(("a", "b", "n"), [(9904, 9869, 10_000), (5, 9, 12), (7, 7, 9)])
def test_unpaired(cells, a, b, n):
    """The z-test with pooled variance is the chi-squared test of the 2 by 2 table."""
    table = [[a, n - a], [b, n - b]]
    expected = scipy.stats.chi2_contingency(table, correction=False).pvalue
    assert cells["unpaired"](a, b, n) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [(131, 96), (71, 36), (0, 0), (5, 5), (0, 9), (300, 250)])
def test_mcnemar(cells, a, b):
    expected = scipy.stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert cells["mcnemar"](a, b) == pytest.approx(expected, rel=1e-9)


def test_confusion_precision_recall(cells):
    labels, guesses = cells["labels"], cells["guesses"]
    confusion = cells["confusion_matrix"](labels, guesses)
    assert np.array_equal(confusion, sklearn.metrics.confusion_matrix(labels, guesses))
    precision, recall, _, count = sklearn.metrics.precision_recall_fscore_support(labels, guesses)
    assert (confusion.diag() / confusion.sum(dim=0)).numpy() == pytest.approx(precision, abs=1e-6)
    assert (confusion.diag() / confusion.sum(dim=1)).numpy() == pytest.approx(recall, abs=1e-6)
    assert confusion.sum(dim=1).tolist() == count.tolist()


# ------------------------------------------------------------- calibration


@pytest.mark.parametrize("bins", [5, 15, 50])
def test_expected_calibration_error(cells, bins):
    # torchmetrics adds up in float32, which is exact enough for some hundred pictures, and
    # puts a confidence of exactly 1, as float32, into a bin of its own.
    kept = cells["confidence"].float() < 1
    kept &= ~cells["right"] | (torch.arange(10_000) < 500)
    metric = torchmetrics.classification.MulticlassCalibrationError(10, n_bins=bins, norm="l1")
    expected = metric(cells["probabilities"][kept].float(), cells["labels"][kept])
    found = cells["expected_calibration_error"](
        cells["confidence"][kept], cells["right"][kept], bins
    )
    assert kept.sum() > 200
    assert found == pytest.approx(float(expected), abs=2e-6)


def test_calibration_bins(cells):
    number, claimed, true = cells["calibration_bins"](cells["confidence"], cells["right"])
    shares, means = sklearn.calibration.calibration_curve(
        cells["right"], cells["confidence"], n_bins=15
    )
    assert true[number > 0].numpy() == pytest.approx(shares, abs=1e-9)
    assert claimed[number > 0].numpy() == pytest.approx(means, abs=1e-9)
    assert number.sum() == 10_000


def test_brier_score_and_log_likelihood(cells):
    labels, probabilities = cells["labels"], cells["probabilities"]
    expected = sklearn.metrics.brier_score_loss(labels, probabilities, scale_by_half=False)
    assert cells["brier_score"](probabilities, labels) == pytest.approx(expected, abs=1e-9)
    error, loss = cells["report"]("test", cells["logits"], labels)
    assert loss == pytest.approx(sklearn.metrics.log_loss(labels, probabilities), abs=1e-9)
    assert error == cells["expected_calibration_error"](cells["confidence"], cells["right"])


def test_temperature(cells):
    labels, logits = cells["labels"], 1.7 * cells["logits"]  # overconfident on purpose

    def loss(t):
        return sklearn.metrics.log_loss(labels, (logits / t).softmax(dim=1))

    best = scipy.optimize.minimize_scalar(loss, bounds=(0.5, 4), method="bounded").x
    found, losses = cells["fit_temperature"](logits, labels)
    assert found == pytest.approx(best, abs=0.006) and found > 1.2
    assert float(losses.min()) == pytest.approx(loss(found), abs=1e-9)


# ---------------------------------------------------------------- coverage


def test_accuracy_by_coverage(cells):
    confidence, labels, guesses = cells["confidence"], cells["labels"], cells["guesses"]
    curve = cells["accuracy_by_coverage"](confidence, cells["right"])
    for threshold in (0.3, 0.6, 0.9, 0.99, 0.999):
        kept = confidence >= threshold
        expected = sklearn.metrics.accuracy_score(labels[kept], guesses[kept])
        assert float(curve[int(kept.sum()) - 1]) == pytest.approx(expected, abs=1e-12)
    answered = cells["answered_at"](curve, 0.999)
    assert curve[answered - 1] >= 0.999 > curve[answered:].max()
    assert cells["answered_at"](curve, 1.1) == 0


def test_auroc(cells):
    inside = cells["confidence"][cells["right"]][:2000]
    outside = torch.cat([cells["confidence"][~cells["right"]], inside[:5]])  # with ties
    truth = [1] * len(inside) + [0] * len(outside)
    expected = sklearn.metrics.roc_auc_score(truth, torch.cat([inside, outside]))
    assert cells["auroc"](inside, outside) == pytest.approx(expected, abs=1e-12)


# ------------------------------------------------------------------ inside


def test_principal_components(cells):
    features = cells["layer_outputs"](cells["model"], cells["test"].images[:500], ["fc1"])["fc1"]
    points, shares = cells["principal_components"](features.double(), 4)
    other = sklearn.decomposition.PCA(4, svd_solver="full").fit(features.double().numpy())
    assert shares.numpy() == pytest.approx(other.explained_variance_ratio_, abs=1e-9)
    expected = other.transform(features.double().numpy())
    assert points.abs().numpy() == pytest.approx(np.abs(expected), abs=1e-6)  # signs are free


def test_layer_outputs(cells):
    images, model = cells["test"].images[:9], cells["model"]
    for name, found in cells["layer_outputs"](model, images, ["conv1", "conv3", "fc1"]).items():
        layer = captum.attr.LayerActivation(model, model.get_submodule(name))
        assert torch.allclose(found, layer.attribute(images), atol=1e-5)


# ------------------------------------------------------------ attributions


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
        images, cells["BLACK"], targets, n_steps=100, method="riemann_middle"
    )
    found = cells["integrated_gradients"](cells["model"], *some)
    assert torch.allclose(found, expected.float(), atol=1e-3)


def test_occlusion(cells, some):
    images, targets = some
    expected = captum.attr.Occlusion(cells["model"]).attribute(
        images, (1, 5, 5), strides=(1, 1, 1), baselines=cells["BLACK"], target=targets
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
    start = epsilon * (2 * torch.rand(pixels.shape) - 1)
    moved = cells["pgd"](cells["model"], pixels, labels, epsilon, start=start)
    assert (moved - pixels).abs().max() <= epsilon + 1e-6
    assert moved.min() >= 0 and moved.max() <= 1
    fooled = cells["read"](moved, cells["model"]) != labels
    assert epsilon < 0.1 or fooled.double().mean() > 0.5


def same_but_for_ties(found, expected):
    """Where a gradient is zero but for rounding, its sign is a matter of chance."""
    return ((found - expected).abs() > 1e-5).double().mean() < 0.001


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


def test_drawn_characters_have_the_size_and_place_of_mnist(cells):
    font = cells["ImageFont"].truetype(cells["font_manager"].findfont("DejaVu Sans"), 80)
    for character in "A1gW?8":
        ink = cells["draw"](character, font) > 0.02
        rows, columns = ink.any(dim=1).nonzero(), ink.any(dim=0).nonzero()
        sides = [int(where.max() - where.min() + 1) for where in (rows, columns)]
        assert max(sides) in (19, 20, 21) and ink.shape == (28, 28)
        assert abs(float(rows.double().mean()) - 13.5) <= 1
        assert abs(float(columns.double().mean()) - 13.5) <= 1
