"""Calibration of single images and of whole runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.calibration import ImageRecord, ProbabilityHistogram, measure, summary
from tests.pages import image_record


def histogram(probability: Any, truth: Any) -> ProbabilityHistogram:
    return ProbabilityHistogram.of(np.atleast_2d(np.asarray(probability, np.float32)), np.atleast_2d(truth) > 0)


def test_ece_and_brier_by_hand() -> None:
    """Bins [0, .5) and [.5, 1]: mean p .1 and .75, frequency 1/3 and 1/2, shares 3/5 and 2/5."""
    own = histogram([0.0, 0.1, 0.2, 0.6, 0.9], [0, 0, 1, 0, 1])
    diagram = own.reliability(2)
    np.testing.assert_allclose(diagram.probability, [0.1, 0.75], rtol=1e-6)
    np.testing.assert_allclose(diagram.frequency, [1 / 3, 1 / 2])
    np.testing.assert_allclose(diagram.share, [0.6, 0.4])
    assert own.ece(2) == pytest.approx(0.6 * (1 / 3 - 0.1) + 0.4 * 0.25)
    assert own.brier == pytest.approx((0.01 + 0.64 + 0.36 + 0.01) / 5)
    assert own.brier_parts() == pytest.approx(((0.01 + 0.64 + 0.36 + 0.01) / 5, 0.24, 0.24))


def test_extremes() -> None:
    """Certain and right, certain and wrong, and the share of foreground everywhere."""
    truth = np.array([0, 0, 0, 1])
    for p, ece, brier in ((truth, 0, 0), (1 - truth, 1, 1), (np.full(4, 0.25), 0, 0.25 * 0.75)):
        own = histogram(p, truth)
        assert [own.ece(), own.ece(equal_mass=True), own.brier] == pytest.approx([ece, ece, brier])


def test_adaptive_ece_by_hand() -> None:
    """Two bins of two: |.15 - 1/2| and |.6 - 1/2|."""
    own = histogram([0.1, 0.2, 0.4, 0.8], [0, 1, 0, 1])
    assert own.ece(2, equal_mass=True) == pytest.approx((0.35 + 0.1) / 2)


def test_equal_probabilities_stay_together() -> None:
    """Six zeros of eight pixels, their middle at 3 of 8: the second of four bins, .6 and .8 fall in the last."""
    diagram = histogram([0, 0, 0, 0, 0, 0, 0.6, 0.8], [0, 0, 1, 0, 0, 0, 1, 1]).reliability(4, equal_mass=True)
    np.testing.assert_allclose(diagram.share, [6 / 8, 2 / 8])
    np.testing.assert_allclose(diagram.frequency, [1 / 6, 1])


@pytest.mark.parametrize("draws", [1, 3, 5, 10, 16, 100, 128, 1000])
def test_shares_of_draws_are_told_apart_and_edges_belong_above(draws: int) -> None:
    """k / draws as float32 against bins of tenths reckoned in whole numbers."""
    k = np.arange(draws + 1)
    own = histogram(k / draws, k % 2)
    assert np.count_nonzero(own.pixels) == draws + 1
    expected = np.bincount(np.minimum(k * 10 // draws, 9), minlength=10)
    np.testing.assert_allclose(own.reliability(10).share, expected[expected > 0] / (draws + 1))


def test_order_of_pixels_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    p, truth, order = rng.integers(0, 9, 500) / 8, rng.integers(0, 2, 500), rng.permutation(500)
    one, two = histogram(p, truth), histogram(p[order], truth[order])
    assert one.ece() == pytest.approx(two.ece())
    assert one.ece(equal_mass=True) == pytest.approx(two.ece(equal_mass=True))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40))
def test_brier_is_reliability_minus_resolution_plus_uncertainty(pixels: list[tuple[int, bool]]) -> None:
    k, truth = np.array(pixels).T
    own = histogram(k / 8, truth)
    parts = own.brier_parts()
    assert parts is not None
    assert own.brier == pytest.approx(np.mean((k / 8 - truth) ** 2))
    assert own.brier == pytest.approx(parts[0] - parts[1] + parts[2])


@pytest.mark.parametrize("draws", [1, 4, 16])
def test_ideal_draws_have_the_ece_and_brier_score_of_their_number(draws: int) -> None:
    """Pixel probabilities even in [0, 1], truth and draws from them: k is even on 0 .. K and E[truth | k] =
    (k + 1) / (K + 2); the Brier score is (1 + 1/K) / 6."""
    rng = np.random.default_rng(draws)
    p = rng.random((300, 300))
    own = histogram(rng.binomial(draws, p) / draws, rng.random(p.shape) < p)
    k = np.arange(draws + 1)
    assert own.ece(draws + 1) == pytest.approx(np.abs(k / draws - (k + 1) / (draws + 2)).mean(), abs=0.008)
    assert own.brier == pytest.approx((1 + 1 / draws) / 6, abs=0.004)


@pytest.mark.parametrize("bins", [10, 15])
def test_ece_is_that_of_torchmetrics(bins: int) -> None:
    """Away from bin edges; the histogram's cells straddle an edge for one pixel in 1024 / bins."""
    torch, classification = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    p = rng.random(20_000).astype(np.float32)
    truth = rng.random(20_000) < p**2
    theirs = classification.binary_calibration_error(torch.tensor(p), torch.tensor(truth).int(), n_bins=bins)
    assert histogram(p, truth).ece(bins) == pytest.approx(float(theirs), abs=1e-3)


def test_bins_of_equal_mass_are_those_of_sorting() -> None:
    """Continuous probabilities: cells of 1/1024 against exact equal parts."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.8, 0.8, 20_000).astype(np.float32)
    truth = rng.random(20_000) < p**2
    parts = zip(*(np.array_split(a[np.argsort(p)], 15) for a in (p.astype(float), truth)), strict=True)
    exact = sum(abs(a.mean() - b.mean()) * len(a) for a, b in parts) / 20_000
    assert histogram(p, truth).ece(equal_mass=True) == pytest.approx(exact, abs=2e-3)


def test_no_pixels_no_numbers() -> None:
    own = ProbabilityHistogram()
    assert (own.ece(), own.ece(equal_mass=True), own.brier, own.brier_parts()) == (None, None, None, None)


@pytest.mark.parametrize("p", [np.full((2, 2), 1.1), np.full((2, 2), -0.1), np.full((2, 2), np.nan), np.zeros((2, 3))])
def test_bad_probabilities_are_refused(p: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probability"):
        ProbabilityHistogram.of(p, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="bool"):
        ProbabilityHistogram.of(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="bin"):
        ProbabilityHistogram().reliability(0)


@pytest.mark.parametrize("classes", [1, 3])
def test_records_survive_json_without_a_change(classes: int) -> None:
    records = [image_record(seed, classes) for seed in range(4)]
    again = [ImageRecord.from_dict(json.loads(json.dumps(r.to_dict()))) for r in records]
    numbers = summary(records)
    assert summary(again) == numbers
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert (numbers["images"], numbers["pixels"]) == (4, 4 * 120)


def test_summary_pools_pixels_and_averages_images() -> None:
    one, two = image_record(0), image_record(1)
    numbers = summary([one, two])
    pooled = one.errors + two.errors
    assert numbers["ause"] == pooled.ause
    assert numbers["brier"] == (one.probabilities + two.probabilities).brier
    assert numbers["mean_ause"] == pytest.approx(np.mean([one.errors.ause or 0, two.errors.ause or 0]))
    curve = numbers["sparsification_std"]
    assert isinstance(curve, list)
    # The area under the drawn curve and that in closed form are the same thing.
    assert np.mean(curve) == pytest.approx((pooled.ause or 0) + 1 - (pooled.ause_random or 0), abs=0.02)


def test_summary_says_which_images_to_check() -> None:
    """Mean std and 1 - F1 in the same order: the best AURC; in reverse order, not."""
    base = image_record(0)
    good = [ImageRecord(base.errors, base.probabilities, std, 1 - std) for std in (0.1, 0.2, 0.4)]
    numbers = summary(good)
    assert numbers["image_rank_correlation"] == pytest.approx(1)
    assert numbers["image_aurc"] == pytest.approx(numbers["image_aurc_best"])
    assert numbers["image_aurc"] == pytest.approx((0.1 + 0.15 + 0.7 / 3) / 3)
    assert numbers["image_aurc_random"] == pytest.approx(0.7 / 3)
    bad = summary([ImageRecord(base.errors, base.probabilities, std, std) for std in (0.1, 0.2, 0.4)])
    assert bad["image_rank_correlation"] == pytest.approx(-1)


@pytest.mark.filterwarnings("error")
def test_perfect_empty_and_full_images_have_numbers_or_none() -> None:
    for full in (False, True):
        truth = np.full((4, 4), full)
        sdf = np.where(truth, -1.0, 1.0)
        own = measure(sdf, np.zeros((4, 4)), sdf, truth.astype(float), truth, truth)
        numbers = summary([own, own])
        assert own.f1 == 1
        assert (numbers["ece"], numbers["brier"], numbers["aurc"]) == (0, 0, 0)
        for name in ("pearson", "ause", "mean_ause", "image_rank_correlation", "image_rank_correlation_low"):
            assert numbers[name] is None
        assert numbers["sparsification_std"] == []


@pytest.mark.filterwarnings("error")
def test_no_images() -> None:
    numbers = summary([])
    assert numbers["images"] == 0
    assert numbers["ece"] is None
    assert numbers["image_aurc"] is None


def test_other_shapes_are_refused() -> None:
    good = np.zeros((2, 2))
    with pytest.raises(ValueError, match="labels"):
        measure(good, good, good, good, np.zeros((2, 3), bool), np.zeros((2, 2), bool))
