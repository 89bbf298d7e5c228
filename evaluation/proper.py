"""Scores of draws that alike draws cannot fool: fair CRPS and energy score, and spread against skill.

Fair scores have an expectation that does not depend on the number of draws (Ferro 2014, "Fair scores for ensemble
forecasts"): pairs of a draw with itself are left out. They are least, on average, where draws and truth have the same
distribution; so draws that are too alike lose as those do that differ too much. All sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

BLOCK = 1 << 16  # pixels whose draws are sorted at a time


def fair_crps(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Fair continuous ranked probability score of each element, (...) float64 in the draws' units; least is best.

    E |x - y| - E |x - x'| / 2 over draws x != x' (Ferro 2014, eq. 4); below 0 now and then. With one draw |x - y|.
    draws: (n, ...), n >= 1. truth: (...). Raises ValueError for other shapes. Elements are taken in blocks: memory
    beyond the draws is 24 bytes for a block's values and 8 for each element.
    """
    if draws.ndim < 1 or not len(draws) or draws.shape[1:] != truth.shape:
        raise ValueError(f"draws {draws.shape} of a truth {truth.shape}: (n, ...) and (...) are expected, n >= 1")
    n = len(draws)
    # Sum over pairs of |x - x'| / 2 / (n (n - 1)) of sorted values: the k-th is added k - 1 times, taken off n - k.
    weights = (2.0 * np.arange(1, n + 1) - n - 1) / max(1, n * (n - 1))
    flat, own = draws.reshape(n, -1), truth.reshape(-1)
    scores = np.empty(own.size)
    for start in range(0, own.size, BLOCK):
        block = slice(start, start + BLOCK)
        errors = flat[:, block].astype(np.float64) - own[block]
        errors.sort(axis=0)
        scores[block] = np.abs(errors).mean(axis=0) - weights @ errors
    return scores.reshape(truth.shape)


def gaussian_crps(error: np.ndarray, std: np.ndarray | float) -> np.ndarray:
    """CRPS of normal distributions (Gneiting et al. 2005, eq. 5) whose means are off by `error`, of any sign; |error|
    where std is 0. Both in one unit, of shapes that broadcast."""
    width = np.maximum(np.asarray(std, np.float64), 1e-12)
    z = np.abs(np.asarray(error, np.float64)) / width
    density = np.exp(-0.5 * np.minimum(z, 40.0) ** 2) / math.sqrt(2 * math.pi)
    return width * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))


def _areas(size: int, cells: int) -> np.ndarray:
    """Weights (cells, size) of the means over equal parts of a line of pixels, which may cut through a pixel."""
    edges, pixels = np.linspace(0.0, size, cells + 1)[:, None], np.arange(size)
    covered = np.clip(edges[1:] - pixels, 0.0, 1.0) - np.clip(edges[:-1] - pixels, 0.0, 1.0)
    return covered * (cells / size)


def pooled(sdf: np.ndarray, cells: int = 8) -> np.ndarray:
    """Means over cells x cells equal areas of maps (..., H, W): (..., min(cells, H), min(cells, W)) float64. Areas cut
    through pixels where the size is not divisible, so that the mean of the means is that of the map."""
    height, width = sdf.shape[-2:]
    return _areas(height, min(cells, height)) @ sdf @ _areas(width, min(cells, width)).T


def energy_score(draws: Sequence[np.ndarray] | np.ndarray, truth: np.ndarray, cells: int = 8) -> float:
    """Fair energy score of pooled SDFs (Gneiting and Raftery 2007, eq. 22, without pairs of a draw with itself).

    E |x - y| - E |x - x'| / 2 over draws x != x', the norm Euclidean over all classes and cells: it sees how draws go
    together over the image, which scores of single pixels do not. With one draw |x - y|. draws: n >= 1 of
    (K, H, W). truth: (K, H, W). Raises ValueError for other shapes.
    """
    if truth.ndim != 3 or {draw.shape for draw in draws} != {truth.shape}:
        raise ValueError(f"at least one draw of the truth's shape is expected, which is (K, H, W), not {truth.shape}")
    points = np.stack([pooled(draw, cells).ravel() for draw in draws])
    n = len(points)
    error = np.linalg.norm(points - pooled(truth, cells).ravel(), axis=1).mean()
    between = sum(np.linalg.norm(points[k + 1 :] - points[k], axis=1).sum() for k in range(n - 1))
    return float(error - between / max(1, n * (n - 1)))


def spread_skill(variance_sum: float, squared_error_sum: float, n: float = math.inf) -> float | None:
    """Adjusted spread-skill ratio: 1 for true draws, less where they are too alike, more where they differ too much.

    sqrt((n + 1) / n * mean variance / mean squared error of the mean) (Fortin et al. 2014, eq. 15), which is 1 on
    average for n draws of the truth's distribution. variance_sum: of the variances with n - 1 in the denominator, over
    pixels and images. squared_error_sum: of the squared errors of the mean of n draws, over the same. Without n the
    variance is that of the distribution itself. None for a single draw, which has no spread, and without any error.
    """
    if n < 2 or squared_error_sum <= 0:
        return None
    return math.sqrt((1 + 1 / n) * variance_sum / squared_error_sum)
