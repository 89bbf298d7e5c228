"""Does the uncertainty mean anything? Calibration of the foreground probability, and all numbers of a run.

record = measure(mmse, std, sdf, probability, labels, truth)    # of each image; record.to_dict() is JSON
numbers = summary(records)                                      # for the report, curves included
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.metrics import count_classes, mean_f1
from evaluation.uncertainty import ArraySums, ErrorHistogram, aurc, equal_mass_bins, rank_correlation

CELLS = 1024
ERRORS = ("pearson", "spearman", "mutual_information", "ause", "ause_random", "aurc", "aurc_best", "aurc_random")
REMOVED = np.arange(100) / 100  # shares of pixels taken out, for the sparsification curve


@dataclass(frozen=True)
class Reliability:
    """Bins of a reliability diagram, those without pixels left out; (M,) each."""

    probability: np.ndarray  # mean probability of foreground
    frequency: np.ndarray  # share that is foreground
    share: np.ndarray  # of all pixels


@dataclass(eq=False)
class ProbabilityHistogram(ArraySums):
    """Probability of foreground against truth, pixel by pixel, in bounded memory.

    A cell holds the probabilities that round to the same k / 1024. Shares of up to 1024 draws have a cell each, so what
    follows is exact for them. Other probabilities are exact in their sums; a cell at a bin's edge counts by its mean.
    """

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(CELLS + 1, np.int64))
    foreground: np.ndarray = field(default_factory=lambda: np.zeros(CELLS + 1, np.int64))
    summed: np.ndarray = field(default_factory=lambda: np.zeros(CELLS + 1))  # probabilities
    squared: np.ndarray = field(default_factory=lambda: np.zeros(1))  # sum of (probability - truth)^2

    @classmethod
    def of(cls, probability: np.ndarray, truth: np.ndarray) -> ProbabilityHistogram:
        """One image: probability (H, W) in [0, 1], truth (H, W) bool. Raises ValueError for anything else."""
        if probability.shape != truth.shape or truth.dtype != np.bool_:
            raise ValueError(f"probability is {probability.shape}, truth {truth.shape} {truth.dtype}, expected bool")
        p = probability.astype(np.float64).ravel()
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError("a probability outside [0, 1]")
        cell, inside = np.rint(p * CELLS).astype(np.int64), truth.ravel()
        return cls(
            np.bincount(cell, minlength=CELLS + 1),
            np.bincount(cell[inside], minlength=CELLS + 1),
            np.bincount(cell, p, CELLS + 1),
            np.array([((p - inside) ** 2).sum()]),
        )

    def reliability(self, bins: int = 15, equal_mass: bool = False) -> Reliability:
        """The reliability diagram in bins of equal width, [a, b), the last one closed; or of about equal mass.

        Probabilities of few draws are tied, and 0 alone holds most pixels. Equal values stay in one bin, the one
        that their middle pixel falls in, so bins of equal mass can be fewer and heavier than asked for.
        """
        if bins < 1:
            raise ValueError("at least one bin is needed")
        occupied = np.flatnonzero(self.pixels)
        pixels = self.pixels[occupied]
        if equal_mass:
            chosen = equal_mass_bins(pixels, bins)
        else:  # a float32 share of draws can lie just below the edge that it means
            chosen = np.minimum((self.summed[occupied] / pixels * bins + 1e-6 * bins).astype(np.int64), bins - 1)
        mass = np.bincount(chosen, pixels, bins)
        summed, positive = (np.bincount(chosen, a[occupied], bins)[mass > 0] for a in (self.summed, self.foreground))
        mass = mass[mass > 0]
        return Reliability(summed / mass, positive / mass, mass / max(mass.sum(), 1))

    def ece(self, bins: int = 15, equal_mass: bool = False) -> float | None:
        """Expected calibration error of the foreground probability, bins of equal width (Guo et al. 2017) or of about
        equal mass (Nguyen & O'Connor 2015). None without pixels.

        In [0, 1], 0 best. Certain background weighs most: a model that is sure and right there has a small ECE,
        whatever it does at borders. Shares of K draws scatter about the model's probability, which alone gives an ECE:
        with all probabilities equally frequent, 1/3 for one draw, 0.1 for 4, 0.03 for 16. With fewer draws than bins
        both kinds mostly have a bin for each share of draws, and agree.
        """
        own = self.reliability(bins, equal_mass)
        return float((own.share * np.abs(own.probability - own.frequency)).sum()) if own.share.size else None

    @property
    def brier(self) -> float | None:
        """Mean (probability - truth)^2, in [0, 1], 0 best. Always saying the share f of foreground gives f (1 - f); K
        draws from the true distribution give (1 + 1/K) times the mean of p (1 - p)."""
        return float(self.squared[0] / self.pixels.sum()) if self.pixels.any() else None

    def brier_parts(self) -> tuple[float, float, float] | None:
        """Murphy's (1973) reliability (0 best), resolution (large is good) and uncertainty f (1 - f) of the data.

        Brier score = reliability - resolution + uncertainty, up to the spread of probabilities inside cells. None
        without pixels.
        """
        total = int(self.pixels.sum())
        if total == 0:
            return None
        occupied = self.pixels > 0
        share = self.pixels[occupied] / total
        frequency = self.foreground[occupied] / self.pixels[occupied]
        base = float(self.foreground.sum() / total)
        reliability = float((share * (self.summed[occupied] / self.pixels[occupied] - frequency) ** 2).sum())
        return reliability, float((share * (frequency - base) ** 2).sum()), base * (1.0 - base)


@dataclass(frozen=True)
class ImageRecord:
    """What one image adds to a run's numbers: 0.5 MB in memory; as JSON at most some ten characters a pixel."""

    errors: ErrorHistogram
    probabilities: ProbabilityHistogram
    mean_std: float
    f1: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts, ready for JSON; nothing is rounded."""
        parts = {"errors": self.errors.to_dict(), "probabilities": self.probabilities.to_dict()}
        return {**parts, "mean_std": self.mean_std, "f1": self.f1}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ImageRecord:
        errors = ErrorHistogram.from_dict(content["errors"])
        probabilities = ProbabilityHistogram.from_dict(content["probabilities"])
        return cls(errors, probabilities, float(content["mean_std"]), float(content["f1"]))


def measure(
    mmse: np.ndarray, std: np.ndarray, sdf: np.ndarray, probability: np.ndarray, labels: np.ndarray, truth: np.ndarray
) -> ImageRecord:
    """The record of one image.

    mmse, std, sdf (the true one): (H, W) or (K, H, W) for K classes. probability: (H, W), share of draws that call the
    pixel foreground of any class. labels, truth: (H, W), bool or classes 1 .. K with 0 = background; labels are
    those of the MMSE. Raises ValueError for other shapes, NaN or probabilities outside [0, 1].
    """
    if labels.shape != truth.shape:
        raise ValueError(f"labels are {labels.shape}, truth {truth.shape}")
    classes = len(mmse) if mmse.ndim == 3 else 1
    return ImageRecord(
        ErrorHistogram.of(mmse, std, sdf, labels != truth),
        ProbabilityHistogram.of(probability, truth > 0),
        float(std.mean(dtype=np.float64)),
        mean_f1(count_classes(labels, truth, classes)),
    )


def _scores(errors: ErrorHistogram, probabilities: ProbabilityHistogram) -> dict[str, float | None]:
    """The numbers of one image, or of all pixels pooled."""
    reliability, resolution, uncertainty = probabilities.brier_parts() or (None, None, None)
    return {
        **{name: getattr(errors, name) for name in ERRORS},
        "ece": probabilities.ece(),
        "ece_adaptive": probabilities.ece(equal_mass=True),
        "brier": probabilities.brier,
        "brier_reliability": reliability,
        "brier_resolution": resolution,
        "brier_uncertainty": uncertainty,
    }


def _image_scores(stds: np.ndarray, f1s: np.ndarray) -> dict[str, float | None]:
    """Does the mean std say which images a person should check?"""
    risk = 1.0 - f1s
    rho, low, high = rank_correlation(stds, risk)
    return {
        "image_rank_correlation": rho,
        "image_rank_correlation_low": low,
        "image_rank_correlation_high": high,
        "image_aurc": aurc(stds, risk),
        "image_aurc_best": aurc(risk, risk),
        "image_aurc_random": float(risk.mean()) if risk.size else None,
    }


def summary(records: Iterable[ImageRecord], draws: float = math.inf) -> dict[str, float | int | list[float] | None]:
    """All numbers of a run, one record in memory at a time. None where a number has no meaning (no error, say).

    draws: number that std and mean were taken of; infinity where they are exact.

    Over all pixels:
      pearson, spearman      std against |MMSE - truth|: 1 together, 0 unrelated
      mutual_information     the same, nats; 0 unrelated
      ause                   0: std orders pixels as their error does; ause_random: it knows nothing. In mean errors
      aurc                   share of wrong pixels among the surest; aurc_best, aurc_random (the share in all)
      ece, ece_adaptive      |probability - frequency|, 15 bins of equal width, of equal mass; 0 best
      brier                  0 best; = brier_reliability (0 best) - brier_resolution + brier_uncertainty (of the data)
    Over images:
      mean_NAME              mean of NAME over the images that have it
      image_rank_correlation Spearman of an image's mean std with 1 - F1, _low and _high its 95 % bootstrap interval
      image_aurc             mean 1 - F1 of the surest images; image_aurc_best, image_aurc_random
    Curves (lists): sparsification_removed, _std, _oracle (empty without error; a random order stays at 1);
    reliability_probability, _frequency, _share; spread_std, _error, _share (`ErrorHistogram.spread_skill`, std times
    sqrt(1 + 1/draws), so that true draws have the same std and error; empty where std is 0).
    """
    errors, probabilities = ErrorHistogram(), ProbabilityHistogram()
    stds, f1s, own = [], [], []
    for record in records:
        errors, probabilities = errors + record.errors, probabilities + record.probabilities
        stds.append(record.mean_std)
        f1s.append(record.f1)
        own.append(_scores(record.errors, record.probabilities))
    pooled = _scores(errors, probabilities)
    known = {name: [value for scores in own if (value := scores[name]) is not None] for name in pooled}
    by_std, by_error = errors.sparsification(REMOVED)
    diagram = vars(probabilities.reliability())
    std, error, share = errors.spread_skill()
    return {
        "images": len(own),
        "pixels": int(probabilities.pixels.sum()),
        **pooled,
        **{f"mean_{name}": float(np.mean(values)) if values else None for name, values in known.items()},
        **_image_scores(np.array(stds), np.array(f1s)),
        "sparsification_removed": REMOVED[: by_std.size].tolist(),
        "sparsification_std": by_std.tolist(),
        "sparsification_oracle": by_error.tolist(),
        **{f"reliability_{name}": values.tolist() for name, values in diagram.items()},
        "spread_std": (math.sqrt(1 + 1 / draws) * std).tolist(),
        "spread_error": error.tolist(),
        "spread_share": share.tolist(),
    }
