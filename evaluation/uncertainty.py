"""Does a large standard deviation go with a large error? Correlation, mutual information, sparsification, AURC.

Nothing here needs all pixels at once: histograms and sums add up over images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from scipy.special import digamma
from scipy.stats import rankdata

RESAMPLES = 2000
BINS = 256
# Even steps in the logarithm, 4 % wide: a std of 0.001 and one of 0.1 are told from their neighbours equally well. The
# first bin holds what is below 1e-4, the last what is beyond 2, the largest error of an SDF in [-1, 1].
EDGES = np.geomspace(1e-4, 2.0, BINS - 1)

Sums = TypeVar("Sums", bound="ArraySums")


class ArraySums:
    """A dataclass of arrays that add up over images; as a dict it is made of plain numbers and lists."""

    def _arrays(self) -> dict[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __add__(self: Sums, other: Sums) -> Sums:
        theirs = other._arrays()
        return type(self)(**{name: own + theirs[name] for name, own in self._arrays().items()})

    def to_dict(self) -> dict[str, dict[str, list[int] | list[float]]]:
        """By name of the array, the flat indices and the values of what is not zero."""
        arrays = {name: array.ravel() for name, array in self._arrays().items()}
        cells = {name: np.flatnonzero(array) for name, array in arrays.items()}
        return {name: {"cells": at.tolist(), "values": arrays[name][at].tolist()} for name, at in cells.items()}

    @classmethod
    def from_dict(cls: type[Sums], content: Mapping[str, Mapping[str, Any]]) -> Sums:
        """What `to_dict` wrote. Raises ValueError where an array or one of its cells is none of this class."""
        sums = cls()
        arrays = sums._arrays()
        if set(content) != set(arrays):
            raise ValueError(f"arrays {sorted(arrays)} are expected, not {sorted(content)}")
        for name, array in arrays.items():
            cells = np.asarray(content[name]["cells"], np.int64)
            if cells.size and (cells.min() < 0 or cells.max() >= array.size):
                raise ValueError(f"{name}: a cell beyond {array.size}")
            array.reshape(-1)[cells] = content[name]["values"]
        return sums


def equal_mass_bins(counts: np.ndarray, bins: int) -> np.ndarray:
    """For each of the ordered cells (C,) int with these counts, one of `bins` bins of about equal mass: (C,) int.

    A cell goes where its middle pixel belongs and is never divided, so equal values stay together; a heavy cell makes
    a heavy bin and may leave others empty.
    """
    counts = counts.astype(np.int64)
    middle = 2 * np.cumsum(counts) - counts  # twice the middle rank, in whole numbers
    return np.minimum(middle * bins // max(2 * int(counts.sum()), 1), bins - 1)


def mutual_information(counts: np.ndarray, bins: int = 32) -> float | None:
    """Mutual information in nats of the two variables of a joint histogram (A, B) of counts; None if it is empty.

    The cells are joined into `bins` x `bins` of about equal mass. The plug-in estimate of that table, with Miller
    and Madow's (1955) correction of each entropy, + (occupied cells - 1) / 2n. 0: independent (it can come out slightly
    below); Gaussians with correlation r have -ln(1 - r^2) / 2. Joining cells loses information: 32 bins give 3 % less
    than the truth for Gaussians, and never more than about ln(32). Neighbouring pixels resemble each other, so the
    correction, made for independent ones, is too small for few images.
    """
    total = int(counts.sum())
    if total == 0:
        return None
    table = np.zeros((bins, bins))
    rows, columns = equal_mass_bins(counts.sum(axis=1), bins), equal_mass_bins(counts.sum(axis=0), bins)
    np.add.at(table, (rows[:, None], columns[None, :]), counts)

    def entropy(masses: np.ndarray) -> float:
        share = masses[masses > 0] / total
        return float(-(share * np.log(share)).sum()) + (share.size - 1) / (2 * total)

    return entropy(table.sum(axis=1)) + entropy(table.sum(axis=0)) - entropy(table)


def risk_coverage_area(counts: np.ndarray, risks: np.ndarray) -> float | None:
    """AURC (Geifman & El-Yaniv 2017): the mean over k = 1 .. n of the mean risk of the k surest items. None for n = 0.

    counts, risks (G,): number of items and their summed risk, by group, the surest group first. The items of a group
    are equally sure; the result is the expected value over their orders, in closed form. 0 is best; an order that
    knows nothing gives the mean risk.
    """
    occupied = counts > 0
    counts, risks = counts[occupied].astype(np.float64), risks[occupied].astype(np.float64)
    if counts.size == 0:
        return None
    end = np.cumsum(counts)
    begin = end - counts
    slope = risks / counts
    # Inside a group the summed risk of the k first is base + slope k, so its mean is slope + base / k.
    base = np.cumsum(risks) - risks - slope * begin
    return float((risks + base * (digamma(end + 1) - digamma(begin + 1))).sum() / end[-1])


def risk_coverage_curve(counts: np.ndarray, risks: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Mean risk of the surest share `coverage` (C,) in (0, 1] of the items: (C,). Groups as in `risk_coverage_area`."""
    kept = coverage * counts.sum()
    ends, summed = (np.concatenate([[0.0], np.cumsum(values)]) for values in (counts, risks))
    return np.interp(kept, ends, summed) / kept


def aurc(uncertainty: np.ndarray, risk: np.ndarray) -> float | None:
    """AURC of N items from their uncertainty and risk, both (N,); see `risk_coverage_area`. Ties are averaged."""
    _check_pair(uncertainty, risk)
    values, group = np.unique(uncertainty, return_inverse=True)
    return risk_coverage_area(np.bincount(group, minlength=values.size), np.bincount(group, risk, values.size))


def _check_pair(one: np.ndarray, two: np.ndarray) -> None:
    if one.ndim != 1 or one.shape != two.shape:
        raise ValueError(f"two rows of equal length are expected, not {one.shape} and {two.shape}")
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise ValueError("values must be finite")


def _rowwise_correlation(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of (R, N) with that of the other, for rows that vary."""
    one, two = (rows - rows.mean(axis=1, keepdims=True) for rows in (one, two))
    scale = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    return (one * two).sum(axis=1)[scale > 0] / scale[scale > 0]


def rank_correlation(one: np.ndarray, two: np.ndarray) -> tuple[float, float, float] | tuple[None, None, None]:
    """Spearman's rank correlation of two rows (N,), and the ends of its 95 % percentile bootstrap interval.

    1: the same order, 0: none, -1: the reverse; all None where a row does not vary. Resampling is seeded: the same
    input gives the same interval. Resamples in which one row does not vary are left out. Of fewer than about 20 items
    the interval is a rough guide.
    """
    _check_pair(one, two)
    whole = _rowwise_correlation(rankdata(one)[None], rankdata(two)[None]) if one.size else np.empty(0)
    if whole.size == 0:
        return None, None, None
    chosen = np.random.default_rng(0).integers(one.size, size=(RESAMPLES, one.size))
    again = _rowwise_correlation(rankdata(one[chosen], axis=1), rankdata(two[chosen], axis=1))
    low, high = np.quantile(again, [0.025, 0.975])
    return float(whole[0]), float(low), float(high)


def _correlation(n: float, moments: np.ndarray) -> float | None:
    """Pearson correlation from the sums of x, y, x^2, y^2, xy over n items; None where one does not vary."""
    if n == 0:
        return None
    x, y, xx, yy, xy = moments / n
    # What is left of a constant after rounding is no variance.
    if xx - x * x <= 1e-12 * xx or yy - y * y <= 1e-12 * yy:
        return None
    return float(np.clip((xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y)), -1.0, 1.0))


@dataclass(eq=False)
class ErrorHistogram(ArraySums):
    """Standard deviation over draws against the absolute error of the MMSE, pixel by pixel, in bounded memory (0.5 MB).

    The Pearson correlation is exact. What rests on the order of pixels takes those in one bin (4 % wide) for equally
    uncertain, or equally wrong: on log-normal errors AUSE and Spearman came within 0.002, AURC within 0.005 of the mean
    risk.
    """

    # values by bin of std and bin of error
    joint: np.ndarray = field(default_factory=lambda: np.zeros((BINS, BINS), np.int64))
    # summed error by bin of std, by bin of error
    error_by_std: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    error_by_error: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    # sums of std, error, std^2, error^2, std * error
    moments: np.ndarray = field(default_factory=lambda: np.zeros(5))
    # pixels by bin of their largest std over classes; of these, the wrongly labelled
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    wrong: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @classmethod
    def of(cls, mmse: np.ndarray, std: np.ndarray, sdf: np.ndarray, wrong: np.ndarray) -> ErrorHistogram:
        """One image: MMSE, standard deviation and true SDF, (H, W) or (K, H, W); `wrong` (H, W) bool, where the
        label is not the true one. Raises ValueError for other shapes or types, NaN and negative deviations."""
        if not mmse.shape == std.shape == sdf.shape or wrong.shape != mmse.shape[-2:] or mmse.ndim not in (2, 3):
            raise ValueError(f"shapes differ: {mmse.shape}, {std.shape}, {sdf.shape}, {wrong.shape}")
        if wrong.dtype != np.bool_:
            raise ValueError("wrong must be a bool array")
        error = np.abs(mmse.astype(np.float64) - sdf).ravel()
        deviation = std.astype(np.float64)
        if not (np.isfinite(error).all() and np.isfinite(deviation).all() and (deviation >= 0).all()):
            raise ValueError("MMSE, std and SDF must be finite, std not negative")
        largest = np.searchsorted(EDGES, deviation.reshape(-1, wrong.size).max(axis=0), side="right")
        deviation = deviation.ravel()
        i, j = (np.searchsorted(EDGES, values, side="right") for values in (deviation, error))
        # Not by `@`, whose last digits depend on the number of threads.
        moments = [v.sum() for v in (deviation, error, deviation**2, error**2, deviation * error)]
        return cls(
            np.bincount(i * BINS + j, minlength=BINS**2).reshape(BINS, BINS),
            np.bincount(i, error, BINS),
            np.bincount(j, error, BINS),
            np.array(moments),
            np.bincount(largest, minlength=BINS),
            np.bincount(largest[wrong.ravel()], minlength=BINS),
        )

    @property
    def pearson(self) -> float | None:
        """Linear correlation of std and error, in [-1, 1]; None where one does not vary."""
        return _correlation(int(self.joint.sum()), self.moments)

    @property
    def spearman(self) -> float | None:
        """Correlation of their ranks, in [-1, 1]; None where one does not vary."""
        total, by_std, by_error = int(self.joint.sum()), self.joint.sum(axis=1), self.joint.sum(axis=0)
        x, y = ((np.cumsum(counts) - counts / 2) / max(total, 1) for counts in (by_std, by_error))  # middle ranks
        moments = [by_std @ x, by_error @ y, by_std @ x**2, by_error @ y**2, x @ self.joint @ y]
        return _correlation(total, np.array(moments))

    @property
    def mutual_information(self) -> float | None:
        """Mutual information of std and error, in nats."""
        return mutual_information(self.joint)

    def _area(self, counts: np.ndarray, errors: np.ndarray) -> float | None:
        """Area under the sparsification curve in units of the mean error; None without any error."""
        area = risk_coverage_area(counts, errors)
        return None if area is None or errors.sum() == 0 else area * float(counts.sum() / errors.sum())

    @property
    def ause(self) -> float | None:
        """Area between the sparsification curve and its oracle (Ilg et al. 2018), in units of the mean error.

        0: std orders the pixels as the error does. An order that knows nothing gives `ause_random`. None where there is
        no error at all.
        """
        own, best = self._area(self.joint.sum(axis=1), self.error_by_std), self._oracle
        return None if own is None or best is None else own - best

    @property
    def ause_random(self) -> float | None:
        """AUSE of a random order: 1 - the area under the oracle's curve, in [0, 1)."""
        return None if self._oracle is None else 1.0 - self._oracle

    @property
    def _oracle(self) -> float | None:
        return self._area(self.joint.sum(axis=0), self.error_by_error)

    def sparsification(self, removed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean error, in units of that of all, after taking out the share `removed` (C,) in [0, 1) of the pixels of
        largest std, and of largest error (the oracle): two (C,), empty without any error. A random order gives 1."""
        kept, total = 1.0 - removed, self.moments[1]
        if total == 0:
            return np.empty(0), np.empty(0)
        by_std = risk_coverage_curve(self.joint.sum(axis=1), self.error_by_std, kept)
        by_error = risk_coverage_curve(self.joint.sum(axis=0), self.error_by_error, kept)
        scale = float(self.joint.sum() / total)
        return by_std * scale, by_error * scale

    def spread_skill(self, bins: int = 12, least: float = 1e-3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Root mean square of std and of error, and share of the values, in bins of std of one width; three (M,), which
        are empty where std is 0 everywhere. True draws have the same of both, but for the factor sqrt(1 + 1/n) and, of
        few draws, the chance in the std itself. Bins with less than the share `least` are left out."""
        values, counts = np.sqrt(EDGES[:-1] * EDGES[1:]), self.joint.sum(axis=1)
        values = np.array([0.0, *values, EDGES[-1]])
        total = max(int(counts.sum()), 1)
        beyond = np.cumsum(counts[::-1])[::-1] >= least * total
        top = values[np.flatnonzero(beyond)[-1]] if beyond.any() else 0.0
        if top == 0:
            return np.empty(0), np.empty(0), np.empty(0)
        chosen = np.minimum((values / top * bins).astype(np.int64), bins - 1)
        mass, *squares = (
            np.bincount(chosen, weights, bins) for weights in (counts, counts * values**2, self.joint @ values**2)
        )
        kept = mass >= least * total
        std, error = (np.sqrt(sums[kept] / mass[kept]) for sums in squares)
        return std, error, mass[kept] / total

    @property
    def aurc(self) -> float | None:
        """AURC of the labels: the risk is a wrongly labelled pixel, the most uncertain pixels are left out first. An
        order that knows nothing gives `aurc_random`, the best one `aurc_best`."""
        return risk_coverage_area(self.pixels, self.wrong)

    @property
    def aurc_best(self) -> float | None:
        """AURC if all wrong pixels were less sure than all right ones; r + (1 - r) ln(1 - r) for error rate r."""
        wrong = int(self.wrong.sum())
        return risk_coverage_area(np.array([int(self.pixels.sum()) - wrong, wrong]), np.array([0, wrong]))

    @property
    def aurc_random(self) -> float | None:
        """AURC of a random order: the share of wrongly labelled pixels."""
        return float(self.wrong.sum() / self.pixels.sum()) if self.pixels.any() else None
