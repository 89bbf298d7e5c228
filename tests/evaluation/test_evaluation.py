from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from evaluation.ensemble import Ensemble, Moments, StandardError
from evaluation.metrics import Counts, count
from report import figures


def test_f1_and_iou_by_hand() -> None:
    truth = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
    prediction = np.array([[0, 1, 1, 1], [1, 0, 0, 0]], bool)
    counts = count(prediction, truth)
    assert counts == Counts(true_positive=2, false_positive=2, false_negative=1)
    assert counts.f1 == pytest.approx(4 / 7)
    assert counts.iou == pytest.approx(2 / 5)
    pooled = counts + Counts(8, 0, 1)
    assert [pooled.f1, pooled.iou] == pytest.approx([20 / 24, 10 / 14])


def test_empty_masks() -> None:
    empty, some = np.zeros((2, 2), bool), np.eye(2, dtype=bool)
    assert (count(empty, empty).f1, count(empty, empty).iou) == (1.0, 1.0)
    assert (count(some, empty).f1, count(empty, some).iou) == (0.0, 0.0)


def test_counts_refuse_other_shapes_and_types() -> None:
    with pytest.raises(ValueError, match="truth"):
        count(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="bool"):
        count(np.zeros((2, 2)), np.zeros((2, 2), bool))


PAIRS = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


@given(PAIRS)
def test_f1_is_two_iou_over_one_plus_iou(pair: tuple[np.ndarray, np.ndarray]) -> None:
    counts = count(*pair)
    assert 0 <= counts.iou <= counts.f1 <= 1
    assert counts.f1 == pytest.approx(2 * counts.iou / (1 + counts.iou))
    assert counts.f1 == count(*pair[::-1]).f1


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
    np.testing.assert_allclose(ensemble.mask_std, masks.std(0), atol=1e-3)
    np.testing.assert_array_equal(ensemble.labels > 0, ensemble.mmse.min(axis=0) < 0.05)


def test_no_draws_no_statistics() -> None:
    with pytest.raises(ValueError, match="no draws"):
        _ = Ensemble((1, 2, 2), 0.0).mmse


def test_color_map_colors_and_size() -> None:
    values = np.array([[-1.0, 1.0]])
    picture = np.asarray(figures.mmse_map(values, zoom=4))
    inside, outside = picture[figures.TITLE + 2, figures.MARGIN + 1], picture[figures.TITLE + 2, figures.MARGIN + 5]
    assert inside[0] > inside[2]  # red inside
    assert outside[2] > outside[0]  # blue outside


def test_overlay_draws_both_contours_where_they_are() -> None:
    image = np.zeros((8, 8), np.uint8)
    truth, mask = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    truth[2:4, 2:4] = True
    mask[5:7, 5:7] = True
    picture = np.asarray(figures.overlay(image, truth, mask, zoom=8))
    white = np.argwhere((picture == figures.TRUTH_COLOR).all(-1)).mean(0)
    yellow = np.argwhere((picture == figures.CLASS_COLORS[0]).all(-1)).mean(0)
    np.testing.assert_allclose(white, [24, 24], atol=1.5)
    np.testing.assert_allclose(yellow, [48, 48], atol=1.5)


def test_trajectory_is_an_animation(tmp_path: Path) -> None:
    frames = [(1.0 / n, np.full((6, 6), 1.0 / n)) for n in range(1, 61)]
    figures.trajectory(frames, 0.0, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert 2 <= gif.n_frames <= 40  # type: ignore[attr-defined]


def test_moments_give_the_maps_of_a_normal_distribution() -> None:
    mean, std = np.array([[[-1.0, 0.03, 0.13]]], np.float32), np.array([[[0.0, 0.2, 0.1]]], np.float32)
    moments = Moments(mean, std, 0.03)
    assert moments.labels.tolist() == [[1, 0, 0]]
    np.testing.assert_allclose(moments.probability, [[1.0, 0.5, 0.158655]], atol=1e-5)
    np.testing.assert_allclose(moments.mask_std, [[0.0, 0.5, 0.365353]], atol=1e-5)


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
    np.testing.assert_allclose(ensemble.mask_std, moments.mask_std, atol=0.04)


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
