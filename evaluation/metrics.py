"""Overlap of two masks, per image and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np


@dataclass(frozen=True)
class Counts:
    """Pixels of a predicted mask against the truth; counts add up over images."""

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), in [0, 1]; 1 where prediction and truth are both empty."""
        total = 2 * self.true_positive + self.false_positive + self.false_negative
        return 2 * self.true_positive / total if total else 1.0

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), in [0, 1]; 1 where prediction and truth are both empty."""
        total = self.true_positive + self.false_positive + self.false_negative
        return self.true_positive / total if total else 1.0


def count(prediction: np.ndarray, truth: np.ndarray) -> Counts:
    """Counts of two bool masks of one shape. Raises ValueError for other types or shapes."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape}, truth {truth.shape}")
    if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ValueError("masks must be bool arrays")
    pixels = prediction & truth, prediction & ~truth, ~prediction & truth
    return Counts(*(int(np.count_nonzero(own)) for own in pixels))


def count_classes(prediction: np.ndarray, truth: np.ndarray, classes: int) -> list[Counts]:
    """Counts of each class 1 .. classes in two label maps of one shape."""
    return [count(prediction == k, truth == k) for k in range(1, classes + 1)]


def mean_f1(counts: Sequence[Counts]) -> float:
    """F1, as a mean over classes."""
    return float(np.mean([c.f1 for c in counts]))


def mean_iou(counts: Sequence[Counts]) -> float:
    """IoU, as a mean over classes."""
    return float(np.mean([c.iou for c in counts]))
