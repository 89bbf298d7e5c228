"""Objects of an image of any size, block by block in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from evaluation.instances import ObjectRecord, in_larger_pixels, plain_objects, split_objects

PIXELS = 3_000_000  # of a block with its margins, about 350 bytes each

Read = Callable[[int, int, int, int], np.ndarray]  # (height, width) of a window by its top, left, height and width


@dataclass(frozen=True, eq=False)
class Block:
    """Objects of one block: labels (h, w) int32 of a window from (top, left) on, 1 .. n; `before` are those of earlier
    blocks."""

    top: int
    left: int
    before: int
    labels: np.ndarray


def split_large(
    read: Read,
    shape: tuple[int, int],
    threshold: float,
    depth: float | None,
    minimum_area: int,
    found: Callable[[Block], object],
    margin: int = 200,
    most: int = PIXELS,
) -> Iterator[np.ndarray]:
    """Yield the rows (n, W) of `split_objects` of an image (H, W), from the top; together they are all, int32.

    An object belongs to the block that its centroid lies in; blocks reach `margin` pixels beyond their own, so objects
    larger than that can be cut. read: gives the SDF. found: is told of each block with objects. most: pixels of a
    block with its margins.
    """
    (height, width), count = shape, 0
    core = max(margin, math.isqrt(most) - 2 * margin)
    start, kept = 0, np.zeros((0, width), np.int32)  # rows from `start` on, which the next blocks may add to
    for top in range(0, height, core):
        last = min(height, top + core + margin)
        rows = np.concatenate([kept, np.zeros((last - start - len(kept), width), np.int32)])
        for left in range(0, width, core):
            first, right = max(0, left - margin), min(width, left + core + margin)
            sdf = read(start, first, last - start, right - first)
            part = rows[:, first:right]
            labels = split_objects(sdf, threshold, depth, minimum_area) if (sdf < threshold).any() else part * 0
            own = _centred(labels, (top - start, left - first), core)
            free = np.where(part == 0, (np.cumsum(own) * own).astype(np.int32)[labels], 0)
            if own.any():
                found(Block(start, first, count, free))
                part += np.where(free > 0, free + count, 0)
                count += int(own.sum())
        end = height if top + core >= height else max(0, top + core - margin)
        yield rows[: end - start]
        start, kept = end, rows[end - start :]


def _centred(labels: np.ndarray, corner: tuple[int, int], side: int) -> np.ndarray:
    """Which labels, 0 .. n, have their centroid in the square of `side` pixels from `corner` on."""
    flat, (height, width) = labels.ravel(), labels.shape
    inside, sizes = np.ones(int(flat.max()) + 1, bool), np.maximum(1, np.bincount(flat))
    for indices, first in zip(np.ogrid[:height, :width], corner, strict=True):
        weights = np.broadcast_to(indices, labels.shape).ravel()
        centroids = np.bincount(flat, weights=weights) / sizes
        inside &= (centroids >= first) & (centroids < first + side)
    inside[0] = False
    return inside


def block_objects(block: Block, std: np.ndarray, factors: tuple[float, float]) -> list[ObjectRecord]:
    """What is known of the objects of a block without draws; std: (h, w) of its window. factors: see
    `in_larger_pixels`."""
    records = plain_objects(block.labels, std)
    return [in_larger_pixels(record, factors, (block.top, block.left), block.before) for record in records]
