"""Stain normalisation of H&E images in optical density.

Vahadane et al. 2015 ("Structure-preserved color normalization for histological images"): a sparse non-negative
dictionary of two stains; Macenko et al. 2009: the extreme angles in the plane of the two main directions. Both then
keep each pixel's stain densities, scaled to a target's range, and exchange the stain colours for the target's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

METHODS = ("vahadane", "macenko")

GLASS = 1e-3  # share of tissue pixels below which a tile is empty
TISSUE_DENSITY = 0.15  # mean optical density of the three channels above which a pixel counts as tissue
LEAST_TISSUE = 0.01  # share of the picture
LEAST_PIXELS = 200
SAMPLE = 20_000  # tissue pixels the stains are learned from
SPARSITY = 0.1  # Vahadane's lambda
ROUNDS = 200  # at most; 15 to 60 on tissue
LEAST_ANGLE = np.cos(np.radians(6))  # two stains closer than this are one; tissue has 8 to 27 degrees


class StainError(ValueError):
    """The stains of an image cannot be told; the message says why."""


@dataclass(frozen=True)
class Stain:
    """What normalisation needs to know of an image.

    matrix: (2, 3) unit vectors of optical density in red, green and blue, haematoxylin first.
    strength: (2,) 99th percentile of the densities over tissue.
    """

    matrix: np.ndarray
    strength: np.ndarray

    @classmethod
    def noted(cls, target: Mapping[str, object] | None) -> Stain | None:
        """That of `utils.weights.StainTarget`."""
        return cls(np.array(target["matrix"]), np.array(target["strength"])) if target else None


def optical_density(image: np.ndarray) -> np.ndarray:
    """Beer-Lambert, base e: (..., 3) uint8 to float32 in [0, log 255]; black counts as 1."""
    table = -np.log(np.maximum(np.arange(256, dtype=np.float32), 1) / 255)
    return table[image]


def is_glass(image: np.ndarray) -> bool:
    """Whether a picture (H, W, C) uint8 in bright field is empty: less than a thousandth of its pixels are tissue."""
    return bool((optical_density(image).mean(axis=-1) > TISSUE_DENSITY).mean() < GLASS)


def tissue_density(image: np.ndarray) -> np.ndarray:
    """Optical density (N, 3) of the tissue pixels. Raises StainError if they are too few or have no colours."""
    if image.ndim != 3:
        raise StainError("a grey picture has no stains")
    if image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an RGB image of bytes is needed, not {image.dtype} of shape {image.shape}")
    density = optical_density(image).reshape(-1, 3)
    tissue = density[density.mean(axis=1) > TISSUE_DENSITY]
    if len(tissue) < max(LEAST_PIXELS, LEAST_TISSUE * len(density)):
        raise StainError(f"too little tissue ({len(tissue) / max(1, len(density)):.1%} of the pixels)")
    return tissue


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; shorter where they were all but 0."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)


def _vahadane(tissue: np.ndarray) -> np.ndarray:
    """The unit rows w >= 0 that, with densities c >= 0 of every pixel v, make |v - c w|^2 / 2 + SPARSITY |c|_1 least.

    By turns: the densities, which two stains have in closed form, and each stain given the other (hierarchical
    alternating least squares, Cichocki & Phan 2009). From the extreme angles on no stain is swapped or lost.
    """
    matrix = _macenko(tissue)
    for _ in range(ROUNDS):
        before = matrix.copy()
        c = stain_densities(tissue, matrix, SPARSITY)
        own, seen = c.T @ c, c.T @ tissue
        for k in [0, 1] * 5:  # small beside the densities
            matrix[k] = _unit(np.maximum(own[k, k] * matrix[k] + seen[k] - own[k] @ matrix, 0))
        if np.abs(matrix - before).max() < 1e-4:
            break
    return matrix


def _macenko(tissue: np.ndarray) -> np.ndarray:
    _, vectors = np.linalg.eigh(np.cov(tissue, rowvar=False))
    plane = vectors[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    projected = tissue @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    low, high = np.percentile(angles, [1, 99])
    return _unit(np.maximum(np.stack([plane @ [np.cos(a), np.sin(a)] for a in (low, high)]), 0))


def fit_stain(image: np.ndarray, method: str) -> Stain:
    """The stains of an RGB image (H, W, 3) uint8.

    Raises StainError where there is too little tissue or only one stain, ValueError for other arrays or methods.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; one of {', '.join(METHODS)}")
    tissue = tissue_density(image)
    # A seed of its own: the same picture gives the same stains.
    chosen = np.random.default_rng(0).choice(len(tissue), min(SAMPLE, len(tissue)), replace=False)
    matrix = (_vahadane if method == "vahadane" else _macenko)(tissue[chosen])
    if np.linalg.norm(matrix, axis=1).min() < 1 - 1e-6 or matrix[0] @ matrix[1] > LEAST_ANGLE:
        raise StainError("only one stain")
    if matrix[0, 0] < matrix[1, 0]:  # haematoxylin takes more of the red light
        matrix = matrix[::-1]
    matrix = np.ascontiguousarray(matrix)
    strength = np.percentile(stain_densities(tissue, matrix), 99, axis=0)
    if strength.min() < 1e-3:
        raise StainError("only one stain")
    return Stain(matrix, strength)


def stain_densities(density: np.ndarray, matrix: np.ndarray, sparsity: float = 0.0) -> np.ndarray:
    """Non-negative least squares of optical densities (..., 3) float32 on two unit stain vectors (2, 3): (..., 2).

    With two unknowns the solution is either the unconstrained one or lies on an axis. sparsity: of an L1 penalty.
    """
    overlap = float(matrix[0] @ matrix[1])
    b = density @ matrix.T.astype(np.float32) - np.float32(sparsity)
    c = (b - overlap * b[..., ::-1]) / np.float32(max(1 - overlap**2, 1e-6))
    alone = np.maximum(b, 0)
    c = np.where(c[..., ::-1] < 0, alone, c)  # the other one would be negative
    return np.maximum(c, 0)


def normalise(image: np.ndarray, source: Stain, target: Stain) -> np.ndarray:
    """The image (H, W, 3) uint8 in the target's stain colours and strengths; background stays white."""
    scale = (target.strength / source.strength).astype(np.float32)
    c = stain_densities(optical_density(image), source.matrix) * scale
    return np.rint(255 * np.exp(-(c @ target.matrix.astype(np.float32)))).clip(0, 255).astype(np.uint8)


def central_stain(stains: list[Stain]) -> int:
    """Which of several images is the most typical one: the least sum of distances of stain colours and strengths."""
    features = np.stack([np.concatenate([s.matrix.ravel(), s.strength]) for s in stains])
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    return int(distances.sum(axis=1).argmin())
