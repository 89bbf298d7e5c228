"""Draws against several raters."""

from __future__ import annotations

import numpy as np


def iou_matrix(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU of every mask of (S, H, W) bool with every mask of (R, H, W) bool: (S, R); 1 where both are empty."""
    a, b = (masks.reshape(len(masks), -1).astype(np.float64) for masks in (one, two))
    both = a @ b.T
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - both
    return np.where(either > 0, both / np.maximum(either, 1.0), 1.0)


def ged(draws: np.ndarray, raters: np.ndarray) -> float:
    """Squared generalised energy distance with d = 1 - IoU (Kohl et al. 2018), over all pairs, a mask with itself too.

    draws (S, H, W), raters (R, H, W) bool. Comparable at equal S only; two empty masks have IoU 1.
    """
    between, own, theirs = (
        1.0 - iou_matrix(a, b).mean() for a, b in ((draws, raters), (draws, draws), (raters, raters))
    )
    return float(2.0 * between - own - theirs)
