"""Draws against several raters.

scores = rater_scores(draws, raters)    # of one image; flat and JSON-friendly

draws: (S, H, W) bool, masks drawn for one image. raters: (R, H, W) bool, the masks of its raters. S, R >= 1, in no
order that means anything. Two empty masks have IoU and Dice 1. Functions of masks raise ValueError for other types and
shapes. Averages over pairs of masks of one set take a mask with itself too, so GED, diversity, HM-IoU and D_max
compare at an equal number of draws only; what is called fair leaves such pairs out, and compares at any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from evaluation.calibration import ProbabilityHistogram
from evaluation.metrics import count

COUNTS = (4, 16, 32)  # numbers of draws that papers report
BLOCK = 1 << 16  # pixels that are turned into floats at a time


def _expect_masks(*stacks: np.ndarray) -> None:
    for masks in stacks:
        if masks.dtype != np.bool_ or masks.ndim != 3 or not len(masks):
            raise ValueError(f"masks must be bool (N, H, W), N >= 1; these are {masks.dtype} {masks.shape}")
    if len({masks.shape[1:] for masks in stacks}) > 1:
        raise ValueError(f"masks differ in size: {' and '.join(str(masks.shape) for masks in stacks)}")


def iou_matrix(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU of every mask of (S, H, W) bool with every mask of (R, H, W) bool: (S, R); 1 where both are empty."""
    _expect_masks(one, two)
    a, b = one.reshape(len(one), -1), two.reshape(len(two), -1)
    both = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], BLOCK):  # float32 counts a block exactly
        both += a[:, start : start + BLOCK].astype(np.float32) @ b[:, start : start + BLOCK].astype(np.float32).T
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - both
    return np.where(either > 0, both / np.maximum(either, 1.0), 1.0)


def iou_matrices(draws: np.ndarray, raters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU of draws and raters (S, R), of draws (S, S) and of raters (R, R), a mask with itself included."""
    return iou_matrix(draws, raters), iou_matrix(draws, draws), iou_matrix(raters, raters)


def diversity(own: np.ndarray) -> float:
    """Mean 1 - IoU over all pairs of N masks, a mask with itself too, from their IoU (N, N); in [0, 1 - 1/N]."""
    return 1.0 - float(own.mean())


def fair_diversity(own: np.ndarray) -> float | None:
    """Mean 1 - IoU of two different masks out of N, from their IoU (N, N), in [0, 1]; None of a single mask."""
    n = len(own)
    return n / (n - 1) * diversity(own) if n > 1 else None


def diversity_ratio(scores: Sequence[Mapping[str, float | None]]) -> float | None:
    """How much draws differ, in units of how much raters do: mean `fair_diversity` over mean `fair_rater_diversity` of
    the images that have both. 1 is right where the network knows as much as raters do; if it knows less, calibrated
    draws differ more: as much as one differs from a rater (`distance`). A ratio of means, since raters of an image may
    all agree. scores: of images, from `rater_scores`. None if no image has both, or all raters agree everywhere."""
    pairs = [(row.get("fair_diversity"), row.get("fair_rater_diversity")) for row in scores]
    known = [(draws, raters) for draws, raters in pairs if draws is not None and raters is not None]
    whole = sum(raters for _, raters in known)
    return sum(draws for draws, _ in known) / whole if whole > 0 else None


def ged(between: np.ndarray, own: np.ndarray, theirs: np.ndarray) -> float:
    """Squared generalised energy distance with d = 1 - IoU (Kohl et al. 2018, "A Probabilistic U-Net"), 0 is best.

    2 E d(draw, rater) - E d(draw, draw') - E d(rater, rater'), from `iou_matrices`.
    """
    return 2.0 * (1.0 - float(between.mean())) - diversity(own) - diversity(theirs)


def fair_ged(between: np.ndarray, own: np.ndarray, theirs: np.ndarray) -> float:
    """`ged` without pairs of a mask with itself, so that it does not depend on the number of draws on average, and
    does not reward alike ones; a little below 0 now and then. A single draw or rater counts with diversity 0."""
    return 2.0 * (1.0 - float(between.mean())) - (fair_diversity(own) or 0.0) - (fair_diversity(theirs) or 0.0)


def hm_iou(between: np.ndarray) -> float:
    """Hungarian-matched IoU (Kohl et al. 2019, "A Hierarchical Probabilistic U-Net") from the IoU (S, R), in [0, 1], 1
    is best. Both sets are replicated to the least common multiple of S and R, and matched one to one for the largest
    mean IoU."""
    draws, raters = between.shape
    size = math.lcm(draws, raters)
    replicated = between.repeat(size // draws, axis=0).repeat(size // raters, axis=1)
    return float(replicated[linear_sum_assignment(replicated, maximize=True)].mean())


def d_max(between: np.ndarray) -> float:
    """Maximum Dice matching (Rahman et al. 2023) from the IoU (S, R): the best Dice of any draw, mean over raters; in
    [0, 1]."""
    best = between.max(axis=0)  # Dice = 2 IoU / (1 + IoU) grows with IoU
    return float((2.0 * best / (1.0 + best)).mean())


def ncc(draws: np.ndarray, raters: np.ndarray) -> float | None:
    """Normalised cross-correlation of spread and error maps (Baumgartner et al. 2019, PHiSeg, S_NCC), in [-1, 1].

    E_y NCC(E_s CE(mean s, s), E_s CE(y, s)), y over raters, s over draws, NCC over all pixels. Draws are masks, so with
    p the fraction of draws that are foreground, the maps are 2 p (1 - p) and |y - p| up to the factor -log(epsilon),
    which NCC does not see: no clipping is needed. None where p (1 - p) is the same everywhere, as for equal draws.
    """
    _expect_masks(draws, raters)
    foreground = draws.sum(axis=0, dtype=np.int64).ravel()
    spread = foreground * (len(draws) - foreground)  # whole numbers, so that a constant map is exactly constant
    if np.ptp(spread) == 0:
        return None
    values = [np.corrcoef(spread, np.abs(len(draws) * y.ravel() - foreground))[0, 1] for y in raters]
    return float(np.mean(values))


def consensus_dice(mask: np.ndarray, raters: np.ndarray) -> float | None:
    """Dice of a mask (H, W) bool on the pixels where all raters agree, as in CURVAS (Riera-Marín et al. 2024).

    Truth is what all raters call foreground; pixels that they dispute are left out. 1 where both are empty there
    (CURVAS leaves out such an image); None if no pixel is agreed on.
    """
    _expect_masks(mask[None], raters)
    foreground = raters.all(axis=0)
    disputed = raters.any(axis=0) & ~foreground
    return None if disputed.all() else count(mask & ~disputed, np.asarray(foreground)).f1


def rater_ece(draws: np.ndarray, raters: np.ndarray, bins: int = 15) -> list[float]:
    """Expected calibration error of the fraction of draws that are foreground, against each rater; R values in [0, 1].

    Bins of the foreground probability; CURVAS bins the confidence of the winning class, in five.
    """
    _expect_masks(draws, raters)
    probability = draws.mean(axis=0)
    errors = (ProbabilityHistogram.of(probability, rater).ece(bins) for rater in raters)
    return [0.0 if error is None else error for error in errors]  # None: without any pixel


def volume_crps(draws: np.ndarray, raters: np.ndarray) -> float:
    """Continuous ranked probability score of the foreground's volume in pixels, mean over raters; 0 is best.

    E|x - y| - E|x - x'| / 2 for volumes x, x' of draws and y of the rater (Gneiting and Raftery 2007), x = x'
    included. It is least, half the raters' own mean difference, where draws and raters have the same volumes. CURVAS
    turns it around: a Gaussian fitted to the raters' volumes against one predicted volume, the sum of probabilities.
    """
    _expect_masks(draws, raters)
    x, y = (masks.sum(axis=(1, 2)).astype(np.float64) for masks in (draws, raters))
    return float(np.abs(x[:, None] - y).mean() - np.abs(x[:, None] - x).mean() / 2.0)


def rater_scores(draws: np.ndarray, raters: np.ndarray, counts: Sequence[int] = COUNTS) -> dict[str, float | None]:
    """All scores of one image; None where one is not defined. For a run, take the mean over images that have it.

    draws (S, H, W) and raters (R, H, W) bool. counts: numbers of draws at which the scores are taken that depend on it,
    beside S itself; those above S are left out. Scores at n draws are means over the whole groups of n draws in a row:
    what n draws give on average, with less chance than the first n have. Draws left over at the end play no part.

    ged_n, hm_iou_n, d_max_n, diversity_n    at n draws
    distance, rater_diversity                mean 1 - IoU of draws and raters; of the raters among themselves
    fair_diversity, fair_rater_diversity     of two different draws; of two different raters. Draws that depend on each
                                             other, as antithetic pairs do, shift the first
    ncc, volume_crps (pixels)                of all draws
    consensus_dice                           of the mask that more than half of the draws call foreground
    ece_rater_1 .., ece_raters               of the fraction of draws, against each rater, and their mean
    """
    if any(n < 1 for n in counts):
        raise ValueError(f"numbers of draws must be positive: {list(counts)}")
    between, own, theirs = iou_matrices(draws, raters)
    total = len(draws)
    scores: dict[str, float | None] = {}
    for n in sorted({n for n in counts if n < total} | {total}):
        groups = [slice(start, start + n) for start in range(0, total - n + 1, n)]
        scores[f"ged_{n}"] = float(np.mean([ged(between[g], own[g, g], theirs) for g in groups]))
        scores[f"hm_iou_{n}"] = float(np.mean([hm_iou(between[g]) for g in groups]))
        scores[f"d_max_{n}"] = float(np.mean([d_max(between[g]) for g in groups]))
        scores[f"diversity_{n}"] = float(np.mean([diversity(own[g, g]) for g in groups]))
    scores["distance"] = 1.0 - float(between.mean())
    scores["rater_diversity"] = diversity(theirs)
    scores["fair_diversity"] = fair_diversity(own)
    scores["fair_rater_diversity"] = fair_diversity(theirs)
    scores["ncc"] = ncc(draws, raters)
    scores["volume_crps"] = volume_crps(draws, raters)
    scores["consensus_dice"] = consensus_dice(2 * draws.sum(axis=0) > total, raters)
    errors = rater_ece(draws, raters)
    scores |= {f"ece_rater_{k}": error for k, error in enumerate(errors, start=1)}
    scores["ece_raters"] = float(np.mean(errors))
    return scores
