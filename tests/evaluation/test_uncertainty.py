from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from evaluation.uncertainty import (
    ErrorHistogram,
    aurc,
    equal_mass_bins,
    mutual_information,
    rank_correlation,
    risk_coverage_area,
    risk_coverage_curve,
)


def histogram(std: np.ndarray, error: np.ndarray, wrong: np.ndarray | None = None) -> ErrorHistogram:
    """Of an MMSE that is `error` where the true SDF is 0."""
    wrong = np.zeros(std.shape[-2:], bool) if wrong is None else wrong
    return ErrorHistogram.of(error, std, np.zeros_like(error), wrong)


def related(rho: float, spread: float, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal std and error around 0.05 whose logarithms are Gaussian with correlation rho."""
    a, b = np.random.default_rng(seed).normal(size=(2, *shape))
    std, error = np.exp(spread * a - 3), np.exp(spread * (rho * a + np.sqrt(1 - rho**2) * b) - 3)
    return std.astype(np.float32), error.clip(0, 2).astype(np.float32)


# AURC


def test_aurc_by_hand() -> None:
    """Surest first the risks are 0, 1, 0, 1; the means of the 1, 2, 3, 4 surest are 0, 1/2, 1/3, 1/2."""
    assert aurc(np.array([0.4, 0.1, 0.3, 0.2]), np.array([1.0, 0.0, 0.0, 1.0])) == pytest.approx(
        (1 / 2 + 1 / 3 + 1 / 2) / 4
    )
    assert aurc(np.array([0.1]), np.array([0.3])) == pytest.approx(0.3)
    assert aurc(np.empty(0), np.empty(0)) is None


def test_aurc_of_equal_uncertainty_is_the_mean_risk() -> None:
    risk = np.array([0.0, 0.2, 1.0, 0.4])
    assert aurc(np.ones(4), risk) == pytest.approx(0.4)


def test_ties_count_as_the_mean_over_their_orders() -> None:
    """The tied pair of the middle once as (0, 1), once as (1, 0)."""
    risk = np.array([0.0, 0.0, 1.0, 1.0])
    both = [aurc(np.array(order), risk) for order in ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0])]
    assert aurc(np.array([1.0, 2.0, 2.0, 4.0]), risk) == pytest.approx(np.mean(np.array(both, float)))


def test_best_aurc_of_an_error_rate() -> None:
    """All wrong pixels last: r + (1 - r) ln(1 - r) (Geifman et al. 2019) for many pixels."""
    area = risk_coverage_area(np.array([700_000, 300_000]), np.array([0, 300_000]))
    assert area == pytest.approx(0.3 + 0.7 * np.log(0.7), abs=1e-6)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30).flatmap(
        lambda risk: st.tuples(st.just(risk), st.permutations(risk))
    )
)
def test_aurc_lies_between_the_best_and_the_worst_order(pair: tuple[list[float], list[float]]) -> None:
    risk, order = np.array(pair[0]), np.array(pair[1])
    best, own, worst = (aurc(key, risk) or 0.0 for key in (risk, order, -risk))
    assert best - 1e-12 <= own <= worst + 1e-12
    assert best - 1e-12 <= risk.mean() <= worst + 1e-12


def test_curve_by_hand() -> None:
    """Two pixels of error 0, two of error 1: half of the rest is wrong, a third after a quarter of all is gone."""
    curve = risk_coverage_curve(np.array([2, 2]), np.array([0.0, 2.0]), np.array([1.0, 0.75, 0.5, 0.25]))
    np.testing.assert_allclose(curve, [1 / 2, 1 / 3, 0, 0])


@pytest.mark.parametrize("bad", [(np.zeros(2), np.zeros(3)), (np.zeros((2, 2)), np.zeros((2, 2)))])
def test_rows_of_other_shapes_are_refused(bad: tuple[np.ndarray, np.ndarray]) -> None:
    for function in (aurc, rank_correlation):
        with pytest.raises(ValueError, match="equal length"):
            function(*bad)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        rank_correlation(np.array([0.0, np.nan]), np.zeros(2))


# Sparsification


def test_sparsification_by_hand() -> None:
    """Errors .1 .2 .3 .4 of mean .25. Oracle: means of the k least are .1 .15 .2 .25, so its area is .175 / .25 = .7.
    The std's order .2 .1 .4 .3: .2 .15 .2333 .25 with the mean .20833, over .25."""
    error = np.array([[0.1, 0.2], [0.3, 0.4]])
    own = histogram(np.array([[0.02, 0.01], [0.04, 0.03]]), error)
    assert own.ause_random == pytest.approx(0.3)
    assert own.ause == pytest.approx((0.2 + 0.15 + 0.7 / 3 + 0.25) / 4 / 0.25 - 0.7)
    by_std, oracle = own.sparsification(np.array([0.0, 0.25, 0.5, 0.75]))
    np.testing.assert_allclose(by_std, [1, 0.7 / 3 / 0.25, 0.6, 0.8])
    np.testing.assert_allclose(oracle, [1, 0.8, 0.6, 0.4])


def test_perfect_order_has_no_ause_and_constant_std_that_of_chance() -> None:
    _, error = related(0.0, 1.0, (64, 64))
    assert histogram(error, error).ause == pytest.approx(0, abs=1e-12)
    constant = histogram(np.full_like(error, 0.2), error)
    assert constant.ause == pytest.approx(constant.ause_random)
    assert (constant.pearson, constant.spearman) == (None, None)
    assert constant.mutual_information == pytest.approx(0)


def test_unrelated_std_has_the_ause_of_chance() -> None:
    """The area of 16,384 unrelated pixels scatters by less than about 3 / sqrt(16,384)."""
    own = histogram(*related(0.0, 1.0, (128, 128)))
    assert own.ause == pytest.approx(own.ause_random, abs=0.025)


def test_no_error_has_no_sparsification() -> None:
    own = histogram(np.array([[0.1, 0.2]]), np.zeros((1, 2)))
    assert (own.ause, own.ause_random, own.pearson) == (None, None, None)
    assert own.sparsification(np.array([0.0]))[0].size == 0


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
def test_bins_cost_little_against_exact_sorting(rho: float, spread: float) -> None:
    """The narrow distribution falls into few bins and is the hardest."""
    std, error = related(rho, spread, (128, 128))
    wrong = np.random.default_rng(1).random(std.shape) < 0.3 * std.clip(0, 1)
    own, flat = histogram(std, error, wrong), error.ravel().astype(np.float64)
    by_std, oracle = (aurc(key.ravel(), flat) or 0 for key in (std, error))
    assert own.ause == pytest.approx((by_std - oracle) / flat.mean(), abs=2e-3)
    assert own.aurc == pytest.approx(aurc(std.ravel(), wrong.ravel().astype(float)), abs=5e-3 * float(wrong.mean()))
    assert own.pearson == pytest.approx(np.corrcoef(std.ravel().astype(np.float64), flat)[0, 1], abs=1e-9)
    assert own.spearman == pytest.approx(spearmanr(std.ravel(), flat).statistic, abs=2e-3)


def test_pixel_aurc_counts_wrong_labels() -> None:
    """Wrong is the second surest of four pixels: 0, 1/2, 1/3, 1/4."""
    std = np.array([[0.1, 0.2, 0.3, 0.4]])
    own = histogram(std, std, np.array([[False, True, False, False]]))
    assert own.aurc == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert own.aurc_best == pytest.approx(1 / 16)
    assert own.aurc_random == pytest.approx(1 / 4)


def test_classes_share_a_pixel() -> None:
    """Two classes: errors of both count, and a pixel is as unsure as its less sure class: 0.4, 0.2, 0.3."""
    std = np.array([[[0.1, 0.2, 0.3]], [[0.4, 0.1, 0.1]]])
    own = histogram(std, std, np.array([[False, False, True]]))
    assert own.joint.sum() == 6
    assert own.aurc == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_one_draw_or_one_pixel_is_no_failure() -> None:
    _, error = related(0.0, 1.0, (8, 8))
    single = histogram(np.zeros_like(error), error)
    assert single.pearson is None
    assert single.ause == pytest.approx(single.ause_random)
    pixel = histogram(np.full((1, 1), 0.1), np.full((1, 1), 0.2))
    assert (pixel.ause, pixel.ause_random, pixel.aurc) == (0, 0, 0)


def test_values_off_the_scale_are_kept() -> None:
    own = histogram(np.array([[5.0, 0.0]]), np.array([[3.0, 1e-9]]))
    assert own.moments[1] == pytest.approx(3.0)
    assert own.ause == pytest.approx(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": -np.ones((2, 2))}, "not negative"),
        ({"mmse": np.full((2, 2), np.nan)}, "finite"),
        ({"sdf": np.zeros((2, 3))}, "shapes"),
        ({"wrong": np.zeros((2, 3), bool)}, "shapes"),
        ({"wrong": np.zeros((2, 2))}, "bool"),
    ],
)
def test_bad_images_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    good = {"mmse": np.zeros((2, 2)), "std": np.zeros((2, 2)), "sdf": np.zeros((2, 2)), "wrong": np.zeros((2, 2), bool)}
    with pytest.raises(ValueError, match=message):
        ErrorHistogram.of(**{**good, **change})


@settings(max_examples=30)
@given(arrays(np.float32, (4, 2, 3), elements=st.floats(0, 2, width=32)))
def test_sums_are_those_of_all_pixels_and_survive_json(values: np.ndarray) -> None:
    parts = [histogram(std[None], error[None]) for std, error in values.transpose(0, 1, 2)]
    merged = sum(parts[1:], parts[0])
    whole = histogram(values[:, 0], values[:, 1])
    np.testing.assert_array_equal(merged.joint, whole.joint)
    np.testing.assert_allclose(merged.error_by_std, whole.error_by_std)
    np.testing.assert_allclose(merged.moments, whole.moments)
    again = ErrorHistogram.from_dict(json.loads(json.dumps(merged.to_dict())))
    for name, array in merged._arrays().items():
        np.testing.assert_array_equal(getattr(again, name), array)
        assert getattr(again, name).dtype == array.dtype


def test_foreign_dicts_are_refused() -> None:
    content = ErrorHistogram().to_dict()
    with pytest.raises(ValueError, match="arrays"):
        ErrorHistogram.from_dict({"joint": content["joint"]})
    with pytest.raises(ValueError, match="beyond"):
        ErrorHistogram.from_dict({**content, "moments": {"cells": [5], "values": [1.0]}})


# Mutual information


def gaussian_counts(rho: float, n: int) -> np.ndarray:
    a, b = np.random.default_rng(0).normal(size=(2, n))
    return np.histogram2d(a, rho * a + np.sqrt(1 - rho**2) * b, bins=256)[0].astype(np.int64)


@pytest.mark.parametrize("rho", [0.5, 0.8, -0.9])
def test_mutual_information_of_gaussians(rho: float) -> None:
    """Bins lose some of it, 3 % here, and never add: the sampling error at n = 200,000 is about 0.002."""
    expected = -0.5 * np.log(1 - rho**2)
    assert 0.95 * expected <= (mutual_information(gaussian_counts(rho, 200_000)) or 0) <= expected + 0.005


def test_mutual_information_of_independent_values_is_corrected_to_zero() -> None:
    """Plug-in alone is off by (31 x 31) / 2n = 0.024; its scatter is about sqrt(2 x 961) / 2n = 0.0011."""
    assert mutual_information(gaussian_counts(0.0, 20_000)) == pytest.approx(0, abs=0.004)


def test_mutual_information_of_equal_values_is_their_entropy() -> None:
    """Four equal cells on the diagonal: ln 4, and (3 + 3 - 3) / 2n of Miller and Madow."""
    assert mutual_information(np.diag([50] * 4)) == pytest.approx(np.log(4) + 3 / 400)
    assert mutual_information(np.zeros((4, 4), int)) is None


def test_mutual_information_of_std_and_error() -> None:
    """Rising functions of Gaussians share what the Gaussians share."""
    own = histogram(*related(0.8, 0.8, (400, 400)))
    assert own.mutual_information == pytest.approx(-0.5 * np.log(1 - 0.64), rel=0.05)


@given(arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 1000)), st.integers(1, 12))
def test_equal_mass_bins_rise_and_exceed_their_mass_by_one_cell_at_most(counts: np.ndarray, bins: int) -> None:
    chosen = equal_mass_bins(counts, bins)
    assert (np.diff(chosen) >= 0).all()
    assert chosen.min() >= 0
    assert chosen.max() < bins
    mass = np.bincount(chosen, counts, bins)
    assert mass.max() <= counts.sum() / bins + counts.max() + 1e-9


def test_equal_mass_bins_of_single_items() -> None:
    np.testing.assert_array_equal(equal_mass_bins(np.ones(6, int), 3), [0, 0, 1, 1, 2, 2])


# Rank correlation over images


def test_rank_correlation_is_that_of_scipy_ties_included() -> None:
    rng = np.random.default_rng(3)
    one, two = rng.integers(0, 12, 60), rng.integers(0, 5, 60)
    assert rank_correlation(one, two)[0] == pytest.approx(spearmanr(one, two).statistic)


def test_rank_correlation_of_the_same_and_the_reverse_order() -> None:
    std = np.array([0.1, 0.3, 0.2, 0.9])
    assert rank_correlation(std, std**3)[0] == pytest.approx(1)
    assert rank_correlation(std, -std)[0] == pytest.approx(-1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [0, 1, 5])
def test_rank_correlation_needs_two_that_vary(size: int) -> None:
    assert rank_correlation(np.arange(size, dtype=float), np.ones(size)) == (None, None, None)


def test_interval_is_about_fishers() -> None:
    """For n = 200 and rho near 0.6: atanh(rho) +- 1.96 sqrt(1.06 / (n - 3)) (Fieller et al. 1957)."""
    a, b = np.random.default_rng(5).normal(size=(2, 200))
    rho, low, high = rank_correlation(a, 0.62 * a + np.sqrt(1 - 0.62**2) * b)
    assert rho is not None
    half = 1.96 * np.sqrt(1.06 / 197)
    expected = np.tanh([np.arctanh(rho) - half, np.arctanh(rho) + half])
    assert [low, high] == pytest.approx(list(expected), abs=0.03)
    assert rank_correlation(a, 0.62 * a + np.sqrt(1 - 0.62**2) * b) == (rho, low, high)


# Spread against skill


def test_error_is_as_large_as_the_std_where_it_should_be() -> None:
    random = np.random.default_rng(3)
    std = random.uniform(0.05, 0.5, (200, 200))
    error = std * random.standard_normal(std.shape)
    spread, skill, share = histogram(std, error).spread_skill()
    assert len(spread) > 8
    assert skill == pytest.approx(spread, rel=0.1)
    assert share.sum() == pytest.approx(1, abs=0.02)
    _, twice, _ = histogram(std / 2, error).spread_skill()
    assert twice == pytest.approx(skill, rel=0.02)
    assert [a.size for a in histogram(np.zeros((4, 4)), np.ones((4, 4))).spread_skill()] == [0, 0, 0]


def test_spread_and_skill_by_hand() -> None:
    std, error = np.array([[0.1, 0.1, 0.4, 0.4]]), np.array([[0.3, -0.4, 0.0, 0.2]])
    spread, skill, share = histogram(std, error).spread_skill(bins=2)
    assert spread == pytest.approx([0.1, 0.4], rel=0.02)
    assert skill == pytest.approx([np.sqrt(0.25 / 2), np.sqrt(0.04 / 2)], rel=0.02)
    assert share.tolist() == [0.5, 0.5]
