"""Statistics of draws as they stream by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation import ensemble
from evaluation.ensemble import Ensemble, FirstDraws, Moments, StandardError, mask_std


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 3), st.just(3), st.just(2)),
        elements=st.floats(-1, 1, width=32),
    )
)
def test_streaming_statistics_are_those_of_the_stack(draws: np.ndarray) -> None:
    ensemble = Ensemble(draws.shape[1:], threshold=0.05)
    labels = np.stack([ensemble.add(draw) for draw in draws])
    masks = labels > 0
    np.testing.assert_array_equal(masks, (draws < 0.05).any(axis=1))
    values = np.take_along_axis(draws, np.maximum(labels, 1)[:, None] - 1, axis=1)[:, 0]
    np.testing.assert_array_equal(values[masks], draws.min(axis=1)[masks])
    np.testing.assert_allclose(ensemble.mmse, draws.mean(0, dtype=np.float64), atol=1e-6)
    expected = draws.std(0, ddof=1, dtype=np.float64) if len(draws) > 1 else np.zeros(draws.shape[1:])
    np.testing.assert_allclose(ensemble.std, expected, atol=1e-6)
    np.testing.assert_allclose(ensemble.probability, masks.mean(0), atol=1e-6)
    np.testing.assert_allclose(mask_std(ensemble.probability), masks.std(0), atol=1e-3)
    np.testing.assert_array_equal(ensemble.labels > 0, ensemble.mmse.min(axis=0) < 0.05)


def test_no_draws_no_statistics() -> None:
    with pytest.raises(ValueError, match="no draws"):
        _ = Ensemble((1, 2, 2), 0.0).mmse


def test_moments_give_the_maps_of_a_normal_distribution() -> None:
    mean, std = np.array([[[-1.0, 0.03, 0.13]]], np.float32), np.array([[[0.0, 0.2, 0.1]]], np.float32)
    moments = Moments(mean, std, 0.03)
    assert moments.labels.tolist() == [[1, 0, 0]]
    np.testing.assert_allclose(moments.probability, [[1.0, 0.5, 0.158655]], atol=1e-5)
    np.testing.assert_allclose(mask_std(moments.probability), [[0.0, 0.5, 0.365353]], atol=1e-5)


def test_moments_of_two_classes_are_foreground_of_either() -> None:
    moments = Moments(np.full((2, 1, 1), 0.0, np.float32), np.full((2, 1, 1), 1.0, np.float32), 0.0)
    assert moments.probability == pytest.approx(0.75)


def test_moments_agree_with_many_normal_draws() -> None:
    rng = np.random.default_rng(0)
    mean, std = rng.normal(0, 0.3, (1, 4, 5)).astype(np.float32), rng.uniform(0.05, 0.4, (1, 4, 5)).astype(np.float32)
    ensemble, moments = Ensemble((1, 4, 5), 0.03), Moments(mean, std, 0.03)
    for _ in range(4000):
        ensemble.add((mean + std * rng.normal(size=mean.shape)).astype(np.float32))
    np.testing.assert_allclose(ensemble.probability, moments.probability, atol=0.04)
    np.testing.assert_allclose(mask_std(ensemble.probability), mask_std(moments.probability), atol=0.04)


def test_first_draws_are_at_most_ten_fewer_of_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(count: int) -> np.ndarray | None:
        first = FirstDraws()
        for k in range(count):
            first.add(np.full((2, 3), k, np.uint8))
        return first.labels

    assert kept(0) is None
    assert kept(1) is None
    for count, seen in ((2, 2), (10, 10), (30, 10)):
        labels = kept(count)
        assert labels is not None
        assert labels[:, 0, 0].tolist() == list(range(seen))
    monkeypatch.setattr(ensemble, "FIRST_PIXELS", 18)
    assert len(kept(30)) == 3  # type: ignore[arg-type]


def test_standard_error_by_hand() -> None:
    error = StandardError()
    assert error.value == np.inf
    for value in (0.0, 2.0, 4.0):  # variance 4, of the mean 4 / 3
        error.add(np.full((1, 2, 2), value))
    assert error.value == pytest.approx((4 / 3) ** 0.5)


def test_standard_error_of_pairs_counts_pairs() -> None:
    """Antithetic pairs whose means are equal leave no error, whatever their spread."""
    error = StandardError(group=2)
    for value in (-3.0, 3.0, -1.0, 1.0, 5.0):
        error.add(np.full((1, 2, 2), value))
    assert (error.groups, error.value) == (2, 0.0)


@pytest.mark.parametrize("count", [4, 64])
def test_standard_error_is_the_error_of_the_mean(count: int) -> None:
    rng, estimates, errors = np.random.default_rng(0), [], []
    for _ in range(60):
        draws = rng.normal(size=(count, 40))
        error = StandardError()
        for draw in draws:
            error.add(draw)
        estimates.append(error.value**2)
        errors.append(np.mean(draws.mean(axis=0) ** 2))
    assert np.mean(estimates) == pytest.approx(np.mean(errors), rel=0.1)
