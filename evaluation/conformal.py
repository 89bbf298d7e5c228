"""Statements that hold for any model if images are exchangeable: a bound on missed foreground, and what share of true
areas an interval over draws should hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RISK_THRESHOLDS = np.linspace(-1.2, 1.2, 241)  # of minus the MMSE SDF, for risk control


@dataclass(frozen=True)
class RiskCurve:
    """One image's set of pixels with score >= threshold, at each of T rising thresholds.

    missed: share of the true foreground that is not in the set, in [0, 1]; 0 where there is none.
    size: share of the image that is in the set.
    Plain lists: `dataclasses.asdict` makes JSON of them, `RiskCurve(**content)` reads it back.
    """

    missed: list[float]
    size: list[float]


def risk_curve(score: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> RiskCurve:
    """Loss and size over thresholds of one image.

    score: (H, W), larger = rather foreground; the probability, say, or the MMSE SDF with its sign turned. truth: (H, W)
    bool. thresholds: (T,) rising, the same for all images and chosen without looking at them. Raises ValueError for
    other shapes, types or orders.
    """
    if score.shape != truth.shape or truth.dtype != np.bool_ or truth.size == 0:
        raise ValueError(f"score {score.shape} and a bool truth of its shape are expected, not {truth.shape}")
    _check_thresholds(thresholds)
    if not np.isfinite(score).all():
        raise ValueError("scores must be finite")
    passed = np.searchsorted(thresholds, score.astype(np.float64), side="right")  # sets that the pixel is in

    def share_outside(pixels: np.ndarray) -> np.ndarray:
        return np.cumsum(np.bincount(pixels, minlength=thresholds.size + 1))[:-1] / max(pixels.size, 1)

    return RiskCurve(share_outside(passed[truth]).tolist(), (1.0 - share_outside(passed.ravel())).tolist())


def _check_thresholds(thresholds: np.ndarray) -> None:
    if thresholds.ndim != 1 or thresholds.size == 0 or not (np.diff(thresholds) > 0).all():
        raise ValueError("thresholds must rise")


def risk_control(
    validation: Sequence[RiskCurve], curves: Sequence[RiskCurve], alpha: float, thresholds: np.ndarray = RISK_THRESHOLDS
) -> dict[str, float | int | bool | None]:
    """Conformal risk control (Angelopoulos et al. 2024, Theorem 1) of the missed share of the foreground: a threshold
    from the curves of validation images, and what it does on test images, `curves`; flat numbers for the report.

    The largest threshold, so the smallest set, with n / (n + 1) R(threshold) + B / (n + 1) <= alpha: R is the mean
    missed share of the n validation images, B = 1 its largest value. Images without foreground count, and miss nothing.
    The promise, an expected missed share <= alpha over validation and test images, needs validation images that are
    exchangeable with the test images (whole images, not patches) and were not used to train or choose the model. One
    test set scatters about it. Raises ValueError for an alpha outside (0, 1), no curves, or those of another length.

    threshold: None means all pixels, which keeps the promise by saying nothing. attainable: False where
    n < 1 / alpha - 1 validation images are too few for any other set, whatever the model. missed: mean missed share, to
    compare with alpha; missed_error: its standard error over images, None for one. images_over_alpha: share of images
    that miss more than alpha; risk control bounds the mean, not this. size: mean share of the image that is in the set;
    1 says nothing, the share of true foreground is the least that can do.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected between 0 and 1")
    _check_thresholds(thresholds)
    if not validation or any(len(curve.missed) != thresholds.size for curve in validation):
        raise ValueError(f"at least one curve is needed, each of {thresholds.size} thresholds")
    if not curves:
        raise ValueError("no test images")
    sure = np.array([curve.missed for curve in validation])
    if (np.diff(sure, axis=1) < 0).any():
        raise ValueError("a missed share may not fall where the threshold rises")
    # Times n + 1; the small number is for rounding where both sides are equal.
    most = alpha * (len(validation) + 1) + 1e-9
    fitting = np.flatnonzero(sure.sum(axis=0) + 1.0 <= most)
    k = int(fitting[-1]) if fitting.size else None
    missed = np.array([0.0 if k is None else curve.missed[k] for curve in curves])
    return {
        "alpha": alpha,
        "threshold": None if k is None else float(thresholds[k]),
        "attainable": most >= 1.0,
        "validation_images": len(validation),
        "test_images": len(curves),
        "missed": float(missed.mean()),
        "missed_error": float(missed.std(ddof=1) / np.sqrt(missed.size)) if missed.size > 1 else None,
        "images_over_alpha": float((missed > alpha).mean()),
        "size": float(np.mean([1.0 if k is None else curve.size[k] for curve in curves])),
    }


def central_ranks(draws: int, level: float) -> tuple[int, int, float]:
    """Ranks l and u = draws + 1 - l, counted from 1, of the central interval [x_(l), x_(u)], and its expected coverage.

    If truth and draws are exchangeable without ties, the truth's rank among them is uniform on 1 .. draws + 1, so the
    coverage is (u - l) / (draws + 1). The narrowest such interval with at least `level` is taken; below
    2 / (1 - level) - 1 draws (19 for 0.9) even that from least to largest has less: (draws - 1) / (draws + 1).
    """
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"{draws} draws, level {level}: at least one draw and a level between 0 and 1 are needed")
    low = max(1, int((1 - level) / 2 * (draws + 1) + 1e-9))
    return low, draws + 1 - low, (draws + 1 - 2 * low) / (draws + 1)


def ranks_of(draws: np.ndarray, truth: float) -> range:
    """The ranks, from 1 to n + 1, that the truth may have among n draws, (n,), and itself: several where draws equal
    it, each as likely (Hamill & Colucci 1998)."""
    first = int((draws < truth).sum()) + 1
    return range(first, first + int((draws == truth).sum()) + 1)


def interval_coverage(
    draws: Sequence[np.ndarray], truth: Sequence[float], level: float = 0.9
) -> dict[str, float | int | None]:
    """How often the central interval of an object's areas over draws holds its true area; flat numbers.

    draws: for each of N objects its area in each draw, (S,), 0 where a draw lacks it. truth: N true areas, same unit.
    coverage: share of the intervals that hold the truth. Compare with `expected`, the mean of `central_ranks`: less
    means that draws are too alike, more that they differ too much. A truth that draws are equal to counts by the share
    of its ranks (`ranks_of`) that lies inside: where draws and truth are often empty, closed intervals would hold it
    too often. width: mean width over mean true area. Objects taken from the truth only (none for a false object) are
    not quite exchangeable with draws: expect a little less. Raises ValueError for other lengths or NaN. Numbers are
    None without objects.
    """
    if len(draws) != len(truth):
        raise ValueError(f"{len(draws)} objects with draws, {len(truth)} with a true area")
    inside, expected, widths = [], [], []
    for areas, own in zip(draws, truth, strict=True):
        values = np.sort(np.asarray(areas, np.float64))
        if values.ndim != 1 or not (np.isfinite(values).all() and np.isfinite(own)):
            raise ValueError("areas must be finite, a row for each object")
        low, high, share = central_ranks(values.size, level)
        inside.append(float(np.mean([low < rank <= high for rank in ranks_of(values, own)])))
        widths.append(float(values[high - 1] - values[low - 1]))
        expected.append(share)
    total = float(np.sum(truth))
    return {
        "objects": len(inside),
        "level": level,
        "coverage": float(np.mean(inside)) if inside else None,
        "expected": float(np.mean(expected)) if inside else None,
        "width": float(np.sum(widths) / total) if total > 0 else None,
    }
