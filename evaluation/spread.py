"""Are the draws true: is the annotation like one more draw? Numbers of one image, and of a run.

record = measure_draws(draws, truths, raters, threshold)    # of each image; dataclasses.asdict(record) is JSON
numbers = summary(records, drawn, true)               # for summary.json

Where an image has several raters, each is a truth, and scores are means over them. Areas are ranked among those of the
draws: a rank is uniform where truth and draws have one distribution (Hamill 2001, "Interpretation of rank histograms").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import chi2

from evaluation.conformal import interval_coverage, ranks_of
from evaluation.proper import energy_score, fair_crps, gaussian_crps, spread_skill
from evaluation.raters import fair_ged, ged, iou_matrices

JITTER = np.geomspace(0.01, 1.0, 31)  # stds of the reference, SDF units
STRIP = 1 << 22  # values of all draws that are scored at a time
RANKS = 10  # bins of a rank histogram at most; each expects EXPECTED cases at least
EXPECTED = 5
CELLS = 1024  # of an error of 1, for the reference
SCORES = ("fair_crps_band", "energy", "mask_crps", "mask_energy", "ged", "fair_ged")  # of an image, not always known

Draws = Sequence[np.ndarray] | np.ndarray


@dataclass(frozen=True)
class SpreadRecord:
    """Scores of one image's draws; means over pixels, classes and raters, in SDF units. Plain numbers for JSON.

    draws: n, their number; 0 where a mean and a std stand for them. variance: of the draws, times 1 + 1/n.
    squared_error: of their mean. fair_crps: per pixel. fair_crps_band: of the pixels with |true SDF| < 1, None without
    any. jitter: CRPS of the draws' mean with normal noise of each std of JITTER. energy: fair energy score. mask_crps,
    mask_energy: the same of the SDFs of the draws' masks, which compare whatever draws are, logits or blurred SDFs too.
    ged, fair_ged: squared, see `evaluation.raters`. areas, true_areas: foreground pixels in each draw, and of each
    rater.
    """

    draws: int
    variance: float
    squared_error: float
    fair_crps: float
    fair_crps_band: float | None
    jitter: list[float]
    energy: float | None
    ged: float | None
    fair_ged: float | None
    areas: list[int]
    true_areas: list[int]
    pixels: int
    mask_crps: float | None = None  # not in files of before it was measured
    mask_energy: float | None = None


class _Sums:
    """Of the pixels of one image, strip by strip; errors of the mean, |e|, in cells of 1 / CELLS with their sums, for
    the CRPS of normal noise about it: nearly linear within a cell, and linear beyond 4, the last one."""

    def __init__(self) -> None:
        self.values = self.band = 0
        self.variance = self.squared_error = self.fair_crps = self.fair_crps_band = 0.0
        self.cells, self.errors = np.zeros(4 * CELLS + 1), np.zeros(4 * CELLS + 1)

    def add(self, variance: np.ndarray, mean: np.ndarray, crps: np.ndarray, truth: np.ndarray) -> None:
        """All of one shape."""
        error, band = np.abs(mean - truth).ravel(), np.abs(truth) < 1
        self.values += truth.size
        self.variance += float(variance.sum())
        self.squared_error += float((error**2).sum())
        self.fair_crps += float(crps.sum())
        self.fair_crps_band += float(crps[band].sum())
        self.band += int(band.sum())
        cell = np.minimum(error * CELLS, 4 * CELLS).astype(np.int64)
        self.cells += np.bincount(cell, minlength=4 * CELLS + 1)
        self.errors += np.bincount(cell, error, 4 * CELLS + 1)

    def means(self) -> dict[str, Any]:
        """Those of a `SpreadRecord`."""
        used = self.cells > 0
        share, error = self.cells[used] / self.values, self.errors[used] / self.cells[used]
        return {
            **{name: getattr(self, name) / self.values for name in ("variance", "squared_error", "fair_crps")},
            "fair_crps_band": self.fair_crps_band / self.band if self.band else None,
            "jitter": [float(share @ gaussian_crps(error, std)) for std in JITTER],
        }


def _strips(draws: Draws, truths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A few rows of all draws (n, K, h, W), and of the truths (R, K, h, W), at a time."""
    classes, height, width = truths.shape[1:]
    step = max(1, STRIP // (len(draws) * classes * width))
    for top in range(0, height, step):
        rows = slice(top, top + step)
        yield np.stack([draw[:, rows] for draw in draws]), truths[:, :, rows]


def _energy(draws: Draws, truths: np.ndarray) -> float:
    return float(np.mean([energy_score(draws, truth) for truth in truths]))


def measure_draws(
    draws: Draws, truths: np.ndarray, raters: np.ndarray, threshold: float, exact: Draws | None = None
) -> SpreadRecord:
    """The record of one image.

    draws: n >= 1 of (K, H, W), which do not depend on each other. truths: (R, K, H, W), the SDF of each rater. raters:
    (R, H, W) bool, their foreground. threshold: a pixel of a draw is foreground where an SDF is below it. exact: SDFs
    of the draws' masks, of the draws' shapes; `draws` itself where that is what draws are. Raises ValueError for other
    shapes. Memory beyond both is bounded.
    """
    if {draw.shape for draw in draws} != {truths.shape[1:]} or raters.shape[1:] != truths.shape[2:]:
        raise ValueError(f"draws, SDFs {truths.shape} and masks {raters.shape} of one size are expected")
    sums, n = _Sums(), len(draws)
    for strip, own in _strips(draws, truths):
        mean = strip.mean(axis=0, dtype=np.float64)
        variance = (1 + 1 / n) * strip.var(axis=0, ddof=min(1, n - 1), dtype=np.float64)
        for truth in own:
            sums.add(variance, mean, fair_crps(strip, truth), truth)
    masks = np.stack([draw.min(axis=0) < threshold for draw in draws])
    matrices = iou_matrices(masks, raters)
    record = SpreadRecord(
        draws=n,
        **sums.means(),
        energy=_energy(draws, truths),
        ged=ged(*matrices),
        fair_ged=fair_ged(*matrices),
        areas=masks.sum(axis=(1, 2)).tolist(),
        true_areas=raters.sum(axis=(1, 2)).tolist(),
        pixels=masks[0].size,
    )
    if exact is None:
        return record
    if exact is draws:
        return replace(record, mask_crps=record.fair_crps, mask_energy=record.energy)
    crps = sum(fair_crps(strip, truth).sum() for strip, own in _strips(exact, truths) for truth in own)
    return replace(record, mask_crps=float(crps / truths.size), mask_energy=_energy(exact, truths))


def measure_moments(mean: np.ndarray, std: np.ndarray, truths: np.ndarray) -> SpreadRecord:
    """The same of a normal distribution at every pixel, mean and std (K, H, W), in the place of draws: what needs whole
    draws is None or empty. truths: as in `measure_draws`."""
    sums = _Sums()
    for truth in truths:
        crps = gaussian_crps(np.abs(mean.astype(np.float64) - truth), std)
        sums.add(std.astype(np.float64) ** 2, mean.astype(np.float64), crps, truth)
    return SpreadRecord(
        0, **sums.means(), energy=None, ged=None, fair_ged=None, areas=[], true_areas=[], pixels=truths[0, 0].size
    )


def rank_histogram(drawn: Sequence[np.ndarray], true: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Where the truth stands among its draws, and Pearson's chi-square statistic of how uneven that is.

    drawn: for each of N cases its values in the draws, (n,). true: N values. ranks: cases in each of M equal parts of
    the ranks 0 .. n, from a truth below most draws to one above; M = min(RANKS, n + 1, N / EXPECTED). Tied ranks, and
    ranks that lie in two parts, are told apart at random, by the seed. degrees_of_freedom: M - 1. p: chance of a larger
    chi_square if all ranks are equally likely and cases do not depend on each other, which objects of one image do: for
    these p comes out too small. Where M < 2 ranks is empty and the others are None.
    """
    parts = min([RANKS, len(drawn) // EXPECTED, *(len(values) + 1 for values in drawn)])
    if parts < 2:
        return {"ranks": [], "chi_square": None, "degrees_of_freedom": None, "p": None}
    random = np.random.default_rng(seed)
    own = [ranks_of(values, truth) for values, truth in zip(drawn, true, strict=True)]
    first, count = np.array([(ranks.start, len(ranks)) for ranks in own]).T
    numbers = np.array([len(values) for values in drawn])
    position = (first - 1 + count * random.random(len(drawn))) / (numbers + 1)  # uniform in [0, 1) if all is right
    ranks = np.bincount((position * parts).astype(np.int64), minlength=parts)
    statistic = float(((ranks - ranks.mean()) ** 2).sum() / ranks.mean())
    return {
        "ranks": ranks.tolist(),
        "chi_square": statistic,
        "degrees_of_freedom": parts - 1,
        "p": float(chi2.sf(statistic, parts - 1)),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def area_scores(drawn: Sequence[np.ndarray], true: Sequence[float]) -> dict[str, Any]:
    """Of N areas in n draws, (n,) each, against the true ones: `interval_coverage` at 90 %, which up to 38 draws is the
    range of the draws, so that (n - 1) / (n + 1) is expected; `rank_histogram`; crps, the mean fair CRPS in the areas'
    unit. None where there are no cases, or single draws."""
    several = [values for values in drawn if len(values) > 1]
    known = several if len(several) == len(drawn) else []
    interval = interval_coverage(known, true if known else [])
    return {
        "cases": len(drawn),
        "coverage": interval["coverage"],
        "expected": interval["expected"],
        "crps": _mean([float(fair_crps(x, np.asarray(y))) for x, y in zip(drawn, true, strict=True)]),
        **rank_histogram(known, true if known else []),
    }


def jitter_scores(records: Sequence[SpreadRecord]) -> np.ndarray:
    """CRPS of the reference at each std of JITTER, mean over images."""
    return np.mean([record.jitter for record in records], axis=0)


def summary(
    records: Sequence[SpreadRecord],
    drawn: Sequence[np.ndarray],
    true: Sequence[float],
    validation: Sequence[SpreadRecord] = (),
) -> dict[str, Any]:
    """All numbers of a run, means over images; None where one is not defined.

    drawn: for each object its area in each draw, (n,), 0 where a draw has no match for it, since it is missing there or
    one with its neighbour. true: their true areas. validation: records of the same run's draws of other images.

    ssr                      adjusted spread-skill ratio of the SDF (`spread_skill`); 1 is right, less is too alike
    image_area, object_area  `area_scores`, of images in shares of their pixels, of objects in pixels; lost: share of
                             matches that objects have no area in
    fair_crps and SCORES     see `SpreadRecord`; least is best
    skill                    1 - CRPS / CRPS of the reference: the draws' mean with normal noise of one std everywhere,
                             `jitter`, the best one of the validation images (`jitter_of`: validation) or, without
                             them, of these images. 0: the draws say no more than that
    """
    count = len(records)
    n = 0 if any(record.draws == 0 for record in records) else min(record.draws for record in records)
    variance, error = (float(np.sum([getattr(r, name) for r in records])) for name in ("variance", "squared_error"))
    areas = [(np.array(r.areas) / r.pixels, area / r.pixels) for r in records for area in r.true_areas]
    own = jitter_scores(records)
    best = int(np.argmin(jitter_scores(validation) if validation else own))

    crps = float(np.mean([record.fair_crps for record in records]))
    return {
        "images": count,
        "ssr": None if n == 1 else spread_skill(variance, error),
        "image_area": area_scores([values for values, _ in areas], [area for _, area in areas]),
        "object_area": {**area_scores(drawn, true), "lost": _mean([float((values == 0).mean()) for values in drawn])},
        "fair_crps": crps,
        **{name: _mean([getattr(r, name) for r in records]) for name in SCORES},
        "skill": 1 - crps / float(own[best]) if own[best] > 0 else None,
        "jitter": float(JITTER[best]),
        "jitter_of": "validation" if validation else "these images",
    }
