"""Notebook 04's statistics against independent implementations.

The functions are taken from the notebook's own cells and run on the real predictions of
a trained network, so what is tested is what the reader sees.
"""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.calibration
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
    names["labels"] = test.labels
    names["logits"] = utils.predict(model, test.images).double()
    names["probabilities"] = names["logits"].softmax(dim=1)
    names["confidence"], names["guesses"] = names["probabilities"].max(dim=1)
    names["right"] = names["guesses"] == test.labels
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


def test_share_names_the_interval_that_wilson_gives(cells):
    assert cells["share"](9904, 10_000) == "9,904 of 10,000 = 99.04% (98.83% to 99.21%)"
    assert cells["share"](8, 10) == "8 of 10 = 80% (49% to 94%)"


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


def test_bins_of_equal_mass(cells):
    """Scikit-learn cuts at quantiles, which are between two pictures where the bins divide them."""
    generator = torch.Generator().manual_seed(1)
    confidence = torch.rand(10_000, generator=generator, dtype=torch.float64)
    right = torch.rand(10_000, generator=generator) < confidence**2
    number, claimed, true = cells["calibration_bins"](confidence, right, 10, equal_mass=True)
    shares, means = sklearn.calibration.calibration_curve(
        right, confidence, n_bins=10, strategy="quantile"
    )
    assert number.tolist() == [1000] * 10
    assert claimed.numpy() == pytest.approx(means, abs=1e-9)
    assert true.numpy() == pytest.approx(shares, abs=1e-9)
    error = cells["expected_calibration_error"](confidence, right, 10, equal_mass=True)
    assert error == pytest.approx(np.abs(shares - means).mean(), abs=1e-9)


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
    table = cells["loss_table"](logits, labels)
    found = cells["fit_temperature"](table)
    assert found == pytest.approx(best, abs=0.006) and found > 1.2
    assert float(table.mean(dim=1).min()) == pytest.approx(loss(found), abs=1e-9)


def test_bootstrap_interval(cells):
    """Against SciPy's percentile bootstrap, within what 500 draws allow."""
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(400, 10, generator=generator, dtype=torch.float64)
    labels = (logits / 1.6).softmax(dim=1).multinomial(1, generator=generator)[:, 0]
    table = cells["loss_table"](logits, labels)
    expected = scipy.stats.bootstrap(
        (range(400),), lambda drawn: cells["fit_temperature"](table[:, drawn]), n_resamples=500,
        vectorized=False, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    found = cells["bootstrap_interval"](table, draws=500)
    assert found == pytest.approx(tuple(expected), abs=0.15 * (expected.high - expected.low))
    assert found[0] < cells["fit_temperature"](table) < found[1]


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


# --------------------------------------------------------------- promises


@pytest.mark.parametrize("wrong", [0, 1, 7, 60, 400])
@pytest.mark.parametrize(("n", "rate"), [(400, 0.001), (5000, 0.005), (20_000, 0.02)])
def test_binomial_tail(cells, wrong, n, rate):
    expected = scipy.stats.binom.cdf(wrong, n, rate)
    assert cells["binomial_tail"](wrong, n, rate) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("wrong", "wilson", "two_sided", "one_sided"),
    [(0, 3838, 3688, 2995), (1, 5662, 5570, 4742), (2, 7289, 7223, 6294)],
)
def test_answers_that_a_promise_of_999_needs(wrong, wilson, two_sided, one_sided):
    """The page's table: with so many answers SciPy's lower bound is above 99.9 %, with one
    less it is not."""

    def low(n, method, alternative):
        test = scipy.stats.binomtest(n - wrong, n, alternative=alternative)
        level = 2 * scipy.stats.norm.cdf(1.96) - 1 if method == "wilson" else 0.95
        return test.proportion_ci(level, method=method).low

    for n, *how in (
        (wilson, "wilson", "two-sided"),
        (two_sided, "exact", "two-sided"),
        (one_sided, "exact", "greater"),
    ):
        assert low(n, *how) > 0.999 >= low(n - 1, *how)


def test_searched_threshold(cells):
    confidence, right = cells["confidence"][:2000], cells["right"][:2000]
    right = right & (torch.arange(2000) % 50 > 0)  # more mistakes, also among the surest
    for target in (0.95, 0.98, 0.985):
        kept = [(t, right[confidence >= t].double().mean()) for t in confidence.tolist()]
        lowest = min((t for t, share in kept if share >= target), default=math.inf)
        assert cells["searched_threshold"](confidence, right, target) == lowest
    assert cells["searched_threshold"](confidence, torch.zeros(2000) > 0, 0.5) == math.inf


@pytest.mark.parametrize("target", [0.9, 0.97, 0.99, 0.995, 0.999])
def test_certified_threshold(cells, target):
    """Down to the one found, every exact p-value is at most 5 %; the next one is not."""
    confidence, right = cells["confidence"], cells["right"]
    p_values = {math.inf: 0.0}
    for t in cells["THRESHOLDS"]:
        hits, n = int(right[confidence >= t].sum()), int((confidence >= t).sum())
        test = scipy.stats.binomtest(hits, n, target, alternative="greater")
        p_values[t] = test.pvalue
    found = cells["certified_threshold"](confidence, right, target)
    passed = [t for t in p_values if t >= found]
    after = [t for t in p_values if t < found][:1]
    assert all(p_values[t] <= 0.05 for t in passed) and all(p_values[t] > 0.05 for t in after)
    assert list(cells["THRESHOLDS"]) == sorted(cells["THRESHOLDS"], reverse=True)


def test_certified_threshold_keeps_its_level(cells):
    """Where the accuracy is exactly the target at every threshold, 5 % at most pass any."""
    generator = torch.Generator().manual_seed(3)
    confidence = 1 - 10 ** (-9 * torch.rand(1000, generator=generator, dtype=torch.float64))
    passed = 0
    for _ in range(1000):
        right = torch.rand(1000, generator=generator) < 0.98
        passed += cells["certified_threshold"](confidence, right, 0.98) < math.inf
    assert 0 < passed < 70  # 50 expected at most, with a standard deviation of 7
