"""Several runs side by side: their means, and paired differences against the first.

comparison = compare_runs([Run("heun", rows, summary), Run("pc", rows, summary)])
print(to_text(comparison)); to_csv(comparison); render_comparison(comparison)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, wilcoxon

SCORES = {"f1": "F1", "iou": "IoU", "single_f1": "F1 of single draws", "single_iou": "IoU of single draws"}
RATED = {"hm_iou_16": "HM-IoU 16"}  # of runs that have it
LEAST = {
    "fair_crps": "fair CRPS",
    "energy": "energy score",
    "mask_crps": "mask CRPS",
    "mask_energy": "mask energy",
    "fair_ged": "fair GED",
}  # less is better; as these
SPREAD = {
    "ssr": "SSR",
    "image_coverage": "image areas inside",
    "object_coverage": "object areas inside",
    "expected": "expected",
}
COSTS = {"draws": "draws", "nfe_per_draw": "NFE a draw", "seconds_per_image": "s an image"}
RESAMPLES = 9999
SAME = 1e-9  # scores that differ by less are equal: a CSV file does not keep the last bit


@dataclass(frozen=True)
class Run:
    """One sampling of a test set.

    rows: its metrics.csv, with image_id and the columns of SCORES, fractions in [0, 1], larger is better; and those of
    RATED and LEAST, and group (the patient, or what else stays together), if they are there.
    summary: its summary.json; draws, nfe_per_draw, seconds_per_image, device and spread are read if they are there.
    """

    name: str
    rows: pd.DataFrame
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A run's score minus that of the first, over the images that both have."""

    images: int
    groups: int  # that were resampled
    mean: float
    low: float | None  # 95 % bootstrap interval of the mean; None of a single group
    high: float | None
    better: float  # shares of the images, sum 1
    worse: float
    equal: float
    p: float | None  # Wilcoxon signed-rank, over groups' means, two-sided; None of a single group


@dataclass(frozen=True)
class Comparison:
    """names (K); scores: those of SCORES, RATED, LEAST that all runs have, with their titles; means, spread and costs
    by run; differences of the runs after the first, by score; images: a table indexed by image_id with columns (score,
    name), NaN where a run lacks the image."""

    names: list[str]
    scores: dict[str, str]
    counts: list[int]  # images of each run
    means: list[dict[str, float]]  # by score, over all images of the run
    spread: list[dict[str, float | None]]  # by name of SPREAD; empty where no summary has any
    costs: list[dict[str, Any]]  # by cost, None where the summary has none
    differences: list[dict[str, Difference]]  # K - 1, by score
    images: pd.DataFrame
    notes: list[str]  # what a reader must know, a sentence each


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    """The mean over images of groups, from the groups' sums and numbers of images."""
    return np.asarray(sums.sum(axis=axis) / counts.sum(axis=axis))


def paired_difference(
    first: np.ndarray, second: np.ndarray, least: bool = False, groups: np.ndarray | None = None
) -> Difference:
    """second - first, scores (N,) of the same N >= 1 images. Raises ValueError for other shapes or non-finite scores.
    least: less is better. groups: (N,) names of what images belong to, a patient's or a slide's; by default each image
    stands alone.

    The interval is the bias-corrected and accelerated bootstrap (Efron 1987), with a fixed seed, over whole groups:
    images of one patient err alike, and resampling them one by one makes the interval too narrow (Field & Welsh 2007).
    The Wilcoxon test is of the groups' means. Equal ones are ranked and then dropped (Pratt 1959); with ties scipy
    takes all sign changes of up to 13, the tie-corrected normal approximation of more. Without any difference p is 1.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"scores must be paired, (N,), N >= 1; these are {first.shape} and {second.shape}")
    change = np.asarray(second, np.float64) - first
    if not np.isfinite(change).all():
        raise ValueError("scores must be finite")
    change = np.where(np.abs(change) < SAME, 0.0, change)
    mean = float(change.mean())
    better, worse, equal = (float(images.mean()) for images in (change > 0, change < 0, change == 0))
    if least:
        better, worse = worse, better
    place = np.arange(change.size) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(place, change), np.bincount(place)
    if sums.size == 1:
        return Difference(change.size, 1, mean, None, None, better, worse, equal, None)
    means = sums / counts
    low, high, p = mean, mean, 1.0
    if np.ptp(means) >= SAME:
        generator = np.random.default_rng(0)
        found = bootstrap(
            (sums, counts), _ratio, n_resamples=RESAMPLES, batch=1000, method="BCa", rng=generator, paired=True
        )
        low, high = (float(bound) for bound in found.confidence_interval)
    if means.any():
        p = float(wilcoxon(np.round(means, 9), zero_method="pratt").pvalue)
    return Difference(change.size, sums.size, mean, low, high, better, worse, equal, p)


def _scores_of(run: Run) -> pd.DataFrame:
    """The scores of a run, indexed by image_id as text; of RATED and LEAST those that are there for all images. Raises
    ValueError if its rows are no good."""
    missing = [column for column in ("image_id", *SCORES) if column not in run.rows]
    if missing:
        raise ValueError(f"{run.name}: its metrics have no column {', '.join(missing)}")
    scores = run.rows.set_index(run.rows["image_id"].astype(str))[list(SCORES)].astype(np.float64)
    if scores.empty:
        raise ValueError(f"{run.name}: no images")
    double = scores.index[scores.index.duplicated()]
    if len(double):
        raise ValueError(f"{run.name}: image {double[0]} is there twice")
    for image, row in zip(scores.index, np.isfinite(scores.to_numpy()), strict=True):
        if not row.all():
            raise ValueError(f"{run.name}: image {image} has no {scores.columns[row.argmin()]}")
    for name in (RATED.keys() | LEAST.keys()) & set(run.rows):
        values = pd.to_numeric(run.rows[name], errors="coerce").to_numpy(np.float64)
        if np.isfinite(values).all():
            scores[name] = values
    return scores


def _groups_of(run: Run) -> pd.Series:
    """The group of each image, indexed as `_scores_of`; the image itself where no group is known."""
    images = run.rows["image_id"].astype(str)
    groups = run.rows["group"].fillna(run.rows["image_id"]) if "group" in run.rows else images
    return pd.Series(groups.astype(str).to_numpy(), index=images)


def spread_of(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The `spread` of a summary.json in one level, None for what is not known."""
    own = summary.get("spread") or {}
    image, objects = own.get("image_area", {}), own.get("object_area", {})
    return {
        **{name: own.get(name) for name in ("ssr", *LEAST, "skill")},
        "image_coverage": image.get("coverage"),
        "object_coverage": objects.get("coverage"),
        "expected": image.get("expected"),
        "lost": objects.get("lost"),
    }


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Means of every run, and paired differences of all others against the first.

    Raises ValueError for fewer than two runs, equal names, missing columns or scores, an image twice in a run, or a
    run without any image of the first.
    """
    names = [run.name for run in runs]
    if len(runs) < 2:
        raise ValueError("a comparison needs two runs or more")
    if len(set(names)) < len(names):
        raise ValueError(f"two runs have the same name: {', '.join(names)}")
    tables = [_scores_of(run) for run in runs]
    scores = {name: title for name, title in (SCORES | RATED | LEAST).items() if all(name in table for table in tables)}
    measured = any(run.summary.get("spread") for run in runs)
    differences, notes = [], []
    groups = _groups_of(runs[0])
    for run, table in zip(runs[1:], tables[1:], strict=True):
        shared = tables[0].index.intersection(table.index)
        if shared.empty:
            raise ValueError(f"{run.name} and {runs[0].name} have no image in common")
        if len(shared) < max(len(table), len(tables[0])):
            notes.append(
                f"{run.name} has {len(table)} images and {runs[0].name} has {len(tables[0])}; "
                f"{len(shared)} are in both, and differences are over those. The means are over all images of each run."
            )
        pairs = {score: (tables[0].loc[shared, score], table.loc[shared, score]) for score in scores}
        own = groups.loc[shared].to_numpy()
        differences.append(
            {
                score: paired_difference(a.to_numpy(), b.to_numpy(), score in LEAST, own)
                for score, (a, b) in pairs.items()
            }
        )
    if groups.nunique() < len(groups):
        notes.append(
            f"{len(groups)} images of {groups.nunique()} patients or groups: intervals and p are over whole groups, "
            "since images of one patient are not independent."
        )
    devices = list(dict.fromkeys(str(run.summary["device"]) for run in runs if "device" in run.summary))
    if len(devices) > 1:
        notes.append(f"Seconds were taken on different devices and do not compare: {'; '.join(devices)}.")
    images = pd.concat(dict(zip(names, tables, strict=True)), axis=1, names=["run", "score"]).swaplevel(axis=1)
    return Comparison(
        names=names,
        scores=scores,
        counts=[len(table) for table in tables],
        means=[{score: float(table[score].mean()) for score in scores} for table in tables],
        spread=[{name: spread_of(run.summary)[name] for name in SPREAD} if measured else {} for run in runs],
        costs=[{cost: run.summary.get(cost) for cost in COSTS} for run in runs],
        differences=differences,
        images=images,
        notes=notes,
    )
