"""Truncated signed distance functions of masks (paper, eq. 1)."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure


def boundary_pixels(mask: np.ndarray) -> np.ndarray:
    """Object pixels with a background pixel among their four neighbours; outside the image counts as object.

    mask: (H, W) bool. Returns (H, W) bool, a subset of the mask.
    """
    return mask & ~binary_erosion(mask, generate_binary_structure(2, 1), border_value=1)


def signed_distance(mask: np.ndarray, truncation: float) -> np.ndarray:
    """Eq. 1, divided by delta = `truncation` pixels: (H, W) float32 in [-1, 1].

    Negative inside, 0 on the boundary pixels, positive outside, so that `sdf <= 0` is the mask again. An empty mask
    is +1 everywhere and a full one -1: they have no boundary to be near to.
    Raises ValueError unless mask is a two-dimensional bool array and truncation > 0.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"mask must be a 2-d bool array, not {mask.dtype} of shape {mask.shape}")
    if not truncation > 0:
        raise ValueError(f"truncation must be positive, not {truncation}")
    boundary = boundary_pixels(mask)
    if not boundary.any():
        return np.where(mask, np.float32(-1), np.float32(1))
    distance = np.minimum(distance_transform_edt(~boundary), truncation) / truncation
    return np.where(mask, -distance, distance).astype(np.float32) + np.float32(0)  # + 0 turns -0 into 0
