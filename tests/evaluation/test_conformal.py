from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation.conformal import RiskCurve, central_ranks, interval_coverage, risk_control, risk_curve

GRID = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
FLAT = [RiskCurve([0.0] * 5, [0.0] * 5)]


def test_curve_by_hand() -> None:
    """Foreground scores .2, .5, .9: a pixel is in the set at a threshold that it equals."""
    score = np.array([[0.2, 0.5, 0.9, 0.1]])
    curve = risk_curve(score, np.array([[True, True, True, False]]), GRID)
    assert curve.missed == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert curve.size == pytest.approx([1, 2 / 4, 2 / 4, 1 / 4, 0])
    assert RiskCurve(**json.loads(json.dumps(asdict(curve)))) == curve


@given(arrays(np.float32, (3, 4), elements=st.floats(-1, 1, width=32)), arrays(np.bool_, (3, 4)))
def test_curve_is_that_of_the_sets(score: np.ndarray, truth: np.ndarray) -> None:
    thresholds = np.linspace(-1, 1, 9)
    curve = risk_curve(score, truth, thresholds)
    for threshold, missed, size in zip(thresholds, curve.missed, curve.size, strict=True):
        inside = score >= threshold
        assert size == pytest.approx(inside.mean())
        assert missed == pytest.approx((truth & ~inside).sum() / max(truth.sum(), 1))
    assert (np.diff(curve.missed) >= 0).all()


def test_threshold_by_hand() -> None:
    """Four images, alpha .4: the summed loss + 1 may be 2 at most. Mean losses: 0, .25, .25, .5, 1."""
    curves = [RiskCurve([0, 0, 0, 0, 1], [1, 0.5, 0.4, 0.2, 0])] * 2 + [
        RiskCurve([0, 0.5, 0.5, 1, 1], [1, 0.3, 0.2, 0.1, 0])
    ] * 2
    numbers = risk_control(curves, curves, 0.4, GRID)
    assert (numbers["threshold"], numbers["attainable"], numbers["validation_images"]) == (0.5, True, 4)
    assert numbers["missed"] == pytest.approx(0.25)
    assert numbers["missed_error"] == pytest.approx(np.sqrt(4 * 0.0625 / 3) / 2)
    assert numbers["images_over_alpha"] == pytest.approx(0.5)
    assert numbers["size"] == pytest.approx(0.3)
    assert risk_control(curves, curves, 0.39, GRID)["threshold"] == 0.0


def test_too_few_images_give_everything_and_say_so() -> None:
    """With a perfect model, 1 / (n + 1) <= alpha is needed: 9 images for 0.1."""
    perfect = [RiskCurve([0.0] * 5, [0.3] * 5)] * 9
    enough, few = (risk_control(own, perfect, 0.1, GRID) for own in (perfect, perfect[:8]))
    assert (enough["threshold"], enough["attainable"]) == (1.0, True)
    assert (few["threshold"], few["attainable"], few["missed"], few["size"]) == (None, False, 0, 1)
    json.dumps(few, allow_nan=False)


def test_enough_images_but_a_poor_model_give_everything_too() -> None:
    poor = [RiskCurve([1.0] * 5, [0.3] * 5)] * 50
    numbers = risk_control(poor, poor, 0.1, GRID)
    assert (numbers["threshold"], numbers["attainable"]) == (None, True)


def test_images_without_foreground_miss_nothing() -> None:
    curve = risk_curve(np.zeros((2, 2)), np.zeros((2, 2), bool), GRID)
    assert curve.missed == [0.0] * 5
    assert risk_control([curve] * 20, [curve], 0.1, GRID)["missed"] == 0


def images(count: int, seed: int) -> list[RiskCurve]:
    """Of 60 pixels each, half foreground; how well its scores are informed varies from image to image."""
    rng = np.random.default_rng(seed)
    truth = np.arange(60).reshape(6, 10) < 30
    thresholds = np.linspace(-3, 3, 601)
    shift = rng.normal(0, 0.7, count)
    return [risk_curve(rng.normal(size=truth.shape) + truth * (1 + own), truth, thresholds) for own in shift]


@pytest.mark.parametrize(("n", "alpha"), [(30, 0.1), (60, 0.2)])
def test_promise_holds_and_is_tight_over_random_splits(n: int, alpha: float) -> None:
    """Theorems 1 and 2: alpha - 2 / (n + 1) <= expected risk <= alpha. Its Monte Carlo error over 400 splits of a
    population of 1000 is about 0.04 / sqrt(400) = 0.002."""
    population, thresholds = images(1000, 0), np.linspace(-3, 3, 601)
    rng, risks = np.random.default_rng(1), []
    for _ in range(400):
        mixed = [population[i] for i in rng.permutation(len(population))]
        risks.append(risk_control(mixed[:n], mixed[n:], alpha, thresholds)["missed"] or 0.0)
    error = np.std(risks) / np.sqrt(len(risks))
    assert alpha - 2 / (n + 1) - 3 * error <= np.mean(risks) <= alpha + 3 * error


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_alpha_outside_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        risk_control(FLAT, FLAT, alpha, GRID)


def test_bad_input_is_refused() -> None:
    mask, score = np.ones((2, 2), bool), np.zeros((2, 2))
    with pytest.raises(ValueError, match="rise"):
        risk_curve(score, mask, GRID[::-1])
    with pytest.raises(ValueError, match="bool"):
        risk_curve(score, score, GRID)
    with pytest.raises(ValueError, match="finite"):
        risk_curve(score * np.nan, mask, GRID)
    with pytest.raises(ValueError, match="curve"):
        risk_control([], FLAT, 0.1, GRID)
    with pytest.raises(ValueError, match="curve"):
        risk_control([RiskCurve([0.0], [0.0])], FLAT, 0.1, GRID)
    with pytest.raises(ValueError, match="fall"):
        risk_control([RiskCurve([1.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 5)], FLAT, 0.1, GRID)
    with pytest.raises(ValueError, match="test images"):
        risk_control(FLAT, [], 0.6, GRID)


# Intervals of areas


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        (1, (1, 1, 0.0)),
        (4, (1, 4, 3 / 5)),
        (19, (1, 19, 0.9)),
        (20, (1, 20, 19 / 21)),
        (39, (2, 38, 0.9)),
        (128, (6, 123, 117 / 129)),
    ],
)
def test_central_ranks_by_hand(draws: int, expected: tuple[int, int, float]) -> None:
    assert central_ranks(draws, 0.9) == pytest.approx(expected)


@given(st.integers(1, 300), st.floats(0.01, 0.99))
def test_central_ranks_are_in_range_and_enough_or_the_widest(draws: int, level: float) -> None:
    low, high, expected = central_ranks(draws, level)
    assert 1 <= low <= high <= draws
    assert expected == pytest.approx((high - low) / (draws + 1))
    assert expected >= level - 1e-8 or low == 1


def test_coverage_by_hand() -> None:
    """Draws 1 .. 4: 3.5 is inside, 5 is not, 4 has rank 4 or 5 and is half inside; one of five equal areas has any
    rank, of which 2, 3 and 4 are inside."""
    draws = [np.array([3, 1, 4, 2])] * 3 + [np.array([7, 7, 7, 7])]
    numbers = interval_coverage(draws, [3.5, 5, 4, 7])
    assert numbers["coverage"] == pytest.approx((1 + 0 + 1 / 2 + 3 / 5) / 4)
    assert numbers["expected"] == pytest.approx(3 / 5)
    assert numbers["width"] == pytest.approx((3 + 3 + 3 + 0) / 19.5)
    assert numbers["objects"] == 4


@pytest.mark.parametrize("draws", [2, 8, 50])
def test_exchangeable_draws_are_covered_as_often_as_expected(draws: int) -> None:
    """4000 objects: a standard error of 0.008 at most."""
    rng = np.random.default_rng(draws)
    areas = rng.gamma(4, 50, (4000, 1)) + 20 * rng.normal(size=(4000, draws + 1))
    numbers = interval_coverage(list(areas[:, 1:]), list(areas[:, 0]))
    assert numbers["coverage"] == pytest.approx(numbers["expected"], abs=0.025)
    narrow = interval_coverage(list(areas[:, 1:].mean(1, keepdims=True) + (areas[:, 1:] * 0.1)), list(areas[:, 0]))
    assert (narrow["coverage"] or 0) < (numbers["coverage"] or 0)


@pytest.mark.parametrize("empty", [0.3, 0.8])
def test_areas_that_are_often_empty_are_covered_as_often_as_expected(empty: float) -> None:
    """Raters and draws that mark nothing in a share of the images: equal areas must not pass for calibration, nor for
    draws that are too wide. Standard error .005."""
    rng = np.random.default_rng(0)
    areas = rng.integers(1, 20, (4000, 17)) * (rng.random((4000, 17)) >= empty)
    numbers = interval_coverage(list(areas[:, 1:]), list(areas[:, 0]))
    assert numbers["coverage"] == pytest.approx(15 / 17, abs=0.02)


def test_no_objects_and_bad_objects() -> None:
    assert interval_coverage([], []) == {"objects": 0, "level": 0.9, "coverage": None, "expected": None, "width": None}
    with pytest.raises(ValueError, match="objects"):
        interval_coverage([np.ones(3)], [])
    with pytest.raises(ValueError, match="finite"):
        interval_coverage([np.array([1.0, np.nan])], [1.0])
    with pytest.raises(ValueError, match="draw"):
        interval_coverage([np.empty(0)], [1.0])
    with pytest.raises(ValueError, match="level"):
        interval_coverage([np.ones(3)], [1.0], level=1.0)
