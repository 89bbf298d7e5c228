"""Procedural H&E-like tissue with known objects: the embedded data set, drawn from nothing but a seed.

Pictures are composed as stain is: densities of haematoxylin and eosin, then Beer-Lambert. Sizes are in pixels and do
not grow with the image: a larger image shows more tissue.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter, rotate

from data.sources.record import Archive, Record, Sample, Split
from utils.data_schema import DataConfig, PhantomConfig

# Optical density of a unit of stain in red, green and blue (Ruifrok & Johnston 2001).
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])


class Tissue:
    """The layers of one picture, all (size, size)."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.haematoxylin = np.zeros((size, size))
        self.eosin = np.zeros((size, size))
        self.glands = np.zeros((size, size), np.uint16)
        self.depth = np.full((size, size), np.inf)  # radius over border radius of the gland, 1 on its border
        self.lumina = np.zeros((size, size), bool)
        self.nuclei = np.zeros((size, size), np.uint16)
        self.nuclei_drawn = 0
        self.grid = np.mgrid[0:size, 0:size].astype(float)

    def noise(self, sigma: float | tuple[float, float], angle: float = 0.0) -> np.ndarray:
        """Filtered white noise of unit variance; a pair of sigmas and an angle give it a direction."""
        pad = self.size // 2
        white = self.rng.standard_normal((self.size + 2 * pad,) * 2)
        field = gaussian_filter(white, sigma)
        if angle:
            field = rotate(field, np.degrees(angle), reshape=False, order=1, mode="reflect")
        field = field[pad : pad + self.size, pad : pad + self.size]
        return (field - field.mean()) / (field.std() + 1e-9)


def _window(row: float, column: float, reach: int) -> tuple[slice, slice]:
    """The square around a point; what lies outside the picture is cut off by indexing."""
    top, left = int(row) - reach, int(column) - reach
    return slice(max(0, top), max(0, top + 2 * reach + 1)), slice(max(0, left), max(0, left + 2 * reach + 1))


def _outline(rng: np.random.Generator, angle: np.ndarray, radius: float) -> np.ndarray:
    """Border radius for each angle: an ellipse with a few low-frequency bumps."""
    aspect, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    border = radius * np.sqrt(aspect) / np.sqrt((aspect * np.cos(angle - turn)) ** 2 + np.sin(angle - turn) ** 2)
    for mode in (2, 3, 4, 5):
        border = border * (1 + rng.normal(0, 0.16 / mode) * np.cos(mode * angle + rng.uniform(0, 2 * np.pi)))
    return border


def _grow_glands(tissue: Tissue) -> list[tuple[float, float, float]]:
    """Place glands, some against each other, until a share of the picture is covered; returns (row, column, radius)."""
    rng, size = tissue.rng, tissue.size
    target = rng.uniform(0.22, 0.58)
    placed: list[tuple[float, float, float]] = []
    covered = 0
    for _ in range(int(60 * (size / 64) ** 2)):
        if placed and covered / size**2 > target:
            break
        row, column = rng.uniform(-2, size + 2, 2) if placed else rng.uniform(0.25 * size, 0.75 * size, 2)
        radius = rng.uniform(8.5, 17.0)
        gap = rng.choice([0.75, 0.95, 1.1])  # below 1 the two touch
        if any(np.hypot(row - r, column - c) < gap * (radius + other) for r, c, other in placed):
            continue
        window = _window(row, column, int(3 * radius))  # no outline bulges further
        dy, dx = tissue.grid[0][window] - row, tissue.grid[1][window] - column
        depth = np.hypot(dy, dx) / _outline(rng, np.arctan2(dy, dx), radius)
        inside = (depth < 1) & (tissue.glands[window] == 0)
        area = int(inside.sum())
        if (covered + area) / size**2 > 0.7 or area < 20:
            continue
        covered += area
        placed.append((row, column, radius))
        tissue.glands[window][inside] = len(placed)
        tissue.depth[window][inside] = depth[inside]
    return placed


def _paint_stroma(tissue: Tissue) -> None:
    rng = tissue.rng
    fibres = tissue.noise((1.0, 4.0), rng.uniform(0, np.pi))
    clouds = tissue.noise(6.0)
    tissue.eosin += rng.uniform(0.42, 0.62) + 0.13 * fibres + 0.08 * clouds
    tissue.haematoxylin += rng.uniform(0.10, 0.22) + 0.05 * fibres + 0.03 * clouds
    # Tears: as pale as a lumen, but outside glands.
    tears = tissue.noise((1.6, 4.0), rng.uniform(0, np.pi)) > rng.uniform(1.5, 2.4)
    pale = gaussian_filter(tears.astype(float), 0.6)
    tissue.eosin *= 1 - 0.9 * pale
    tissue.haematoxylin *= 1 - 0.9 * pale


def _paint_glands(tissue: Tissue, count: int) -> None:
    """Cytoplasm that is paler or darker than the stroma by image, and lumina of all sizes, some full of debris."""
    rng = tissue.rng
    cytoplasm_eosin, cytoplasm_haematoxylin = rng.uniform(0.20, 0.50), rng.uniform(0.16, 0.40)
    mucin = 0.06 * tissue.noise(1.2)
    for label in range(1, count + 1):
        inside = tissue.glands == label
        lumen = rng.choice([0.0, rng.uniform(0.25, 0.6)], p=[0.25, 0.75])
        content = rng.choice([0.04, rng.uniform(0.2, 0.5)], p=[0.7, 0.3])
        coverage = np.clip((lumen - tissue.depth) * 6 + 0.5, 0, 1) if lumen else np.zeros_like(tissue.eosin)
        tissue.lumina |= inside & (coverage > 0.5)
        eosin = (1 - coverage) * (cytoplasm_eosin + mucin) + coverage * content
        haematoxylin = (1 - coverage) * cytoplasm_haematoxylin + coverage * 0.5 * content
        tissue.eosin = np.where(inside, eosin, tissue.eosin)
        tissue.haematoxylin = np.where(inside, haematoxylin, tissue.haematoxylin)


def _paint_nucleus(tissue: Tissue, row: float, column: float, axes: tuple[float, float], angle: float) -> None:
    """An ellipse of chromatin with soft edges and a label of its own."""
    window = _window(row, column, int(np.ceil(max(axes))) + 2)
    dy, dx = tissue.grid[0][window] - row, tissue.grid[1][window] - column
    if dy.size == 0:
        return
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / axes[0]
    v = (-dx * np.sin(angle) + dy * np.cos(angle)) / axes[1]
    coverage = np.clip((1 - np.hypot(u, v)) * min(axes) + 0.5, 0, 1)
    density = tissue.rng.uniform(0.55, 1.05)
    tissue.haematoxylin[window] = np.maximum(tissue.haematoxylin[window], coverage * density)
    labels = tissue.nuclei[window]
    tissue.nuclei_drawn += 1
    labels[(coverage > 0.5) & (labels == 0)] = tissue.nuclei_drawn


def _paint_nuclei(tissue: Tissue, glands: list[tuple[float, float, float]]) -> None:
    rng, size = tissue.rng, tissue.size
    spacing = rng.uniform(2.6, 3.6)
    ring = (tissue.depth > 0.72) & (tissue.depth < 0.92) & (tissue.glands > 0)
    candidates = np.argwhere(ring)
    free = np.ones((size, size), bool)
    for point in rng.permutation(candidates):
        if free[tuple(point)]:
            window = _window(point[0], point[1], int(spacing) + 1)
            free[window] &= np.hypot(tissue.grid[0][window] - point[0], tissue.grid[1][window] - point[1]) > spacing
            row, column, _ = glands[tissue.glands[tuple(point)] - 1]
            outward = np.arctan2(point[0] - row, point[1] - column)
            axes = (rng.uniform(1.5, 2.3), rng.uniform(1.1, 1.6))
            y, x = point + rng.normal(0, 0.3, 2)
            _paint_nucleus(tissue, y, x, axes, outward + rng.normal(0, 0.2))
    area = (size / 64) ** 2
    for row, column in rng.uniform(0, size, (rng.poisson(rng.uniform(15, 55) * area), 2)):
        if tissue.glands[int(row), int(column)] == 0:  # spindle cells of the stroma
            _paint_nucleus(tissue, row, column, (rng.uniform(1.6, 3.0), rng.uniform(0.8, 1.4)), rng.uniform(0, np.pi))
    for row, column in rng.uniform(0, size, (rng.poisson(0.8 * area), 2)):  # clusters of lymphocytes
        for dy, dx in rng.normal(0, 3.5, (rng.integers(6, 16), 2)):
            y, x = np.clip([row + dy, column + dx], 0, size - 1)
            if tissue.glands[int(y), int(x)] == 0:
                radius = rng.uniform(1.3, 1.8)
                _paint_nucleus(tissue, y, x, (radius, radius), 0.0)


def _photograph(tissue: Tissue) -> np.ndarray:
    """Stain, light, lens and sensor of this image: (size, size, 3) uint8."""
    rng = tissue.rng
    stains = np.stack([HAEMATOXYLIN, EOSIN]) + rng.normal(0, 0.05, (2, 3))
    stains = np.maximum(stains, 0.02) / np.linalg.norm(np.maximum(stains, 0.02), axis=1, keepdims=True)
    strength = rng.uniform(0.75, 1.45, 2)
    texture = 1 + 0.10 * tissue.noise(0.7)
    densities = np.stack([tissue.haematoxylin, tissue.eosin], axis=-1) * strength
    layers = densities.clip(0) * texture[..., None]
    light = rng.uniform(0.86, 0.98, 3) * (1 + 0.05 * tissue.noise(tissue.size / 4)[..., None]).clip(0.8, 1.02)
    sharp = light * np.exp(-1.1 * layers @ stains)
    blurred = gaussian_filter(sharp, (rng.uniform(0.7, 1.4),) * 2 + (0,))
    focus = np.clip(rng.uniform(-0.4, 0.7) + 0.4 * tissue.noise(tissue.size / 5), 0, 1)[..., None]
    image = focus * blurred + (1 - focus) * sharp + rng.normal(0, rng.uniform(0.008, 0.025), sharp.shape)
    return (255 * image.clip(0, 1)).round().astype(np.uint8)


def _annotate(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One annotator's mask: contours a little in or out, wandering, and small objects missed now and then."""
    bias, carelessness = rng.normal(0, 0.6), rng.uniform(0.05, 0.35)
    wander = gaussian_filter(rng.standard_normal(labels.shape), 3.0)
    wander *= rng.uniform(0.4, 0.9) / (wander.std() + 1e-9)
    mask = np.zeros(labels.shape, bool)
    for label, box in enumerate(find_objects(labels), start=1):
        if box is None:
            continue
        window = tuple(slice(max(0, side.start - 12), side.stop + 12) for side in box)  # contours move less than that
        inside = labels[window] == label
        area = inside.sum()
        if rng.random() < carelessness * np.exp(-area / 60.0):
            continue
        scale = min(1.0, np.sqrt(area) / 12.0)  # small objects are drawn with a finer hand
        signed = distance_transform_edt(~inside) - distance_transform_edt(inside)
        mask[window] |= signed < scale * (bias + wander[window])
    return mask


def draw_sample(options: PhantomConfig, index: int) -> Sample:
    """Picture `index` of the set: it depends on the seed and the index only, not on the number of raters."""
    rng = np.random.default_rng([options.seed, index])
    tissue = Tissue(options.size, rng)
    glands = _grow_glands(tissue)
    _paint_stroma(tissue)
    _paint_glands(tissue, len(glands))
    _paint_nuclei(tissue, glands)
    image = _photograph(tissue)
    labels = tissue.nuclei if options.objects == "nuclei" else tissue.glands
    raters = (np.random.default_rng([options.seed, index, 1 + k]) for k in range(options.raters))
    classes = (labels > 0).astype(np.uint8) + tissue.lumina if options.objects == "glands_and_lumina" else None
    return Sample(image, labels > 0, labels, tuple(_annotate(labels, rater) for rater in raters), classes)


def records(data: DataConfig) -> Archive:
    """One record per image, numbered through train, val and test."""
    options = data.phantom
    counts: dict[Split, int] = {"train": options.train, "val": options.val, "test": options.test}
    splits = [split for split, count in counts.items() for _ in range(count)]
    named = [(f"phantom_{i:04d}", split, partial(draw_sample, options, i)) for i, split in enumerate(splits)]
    return Archive([Record(name, split, name, read) for name, split, read in named])
