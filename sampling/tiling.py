"""Tiles of a whole image: cut in an even grid that overlaps, blended by ramps that leave no seam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from data.patches import Window, even_starts


def ramp(length: int) -> Tensor:
    """sin^2 from near 0 to near 1 at `length` pixel centres, float64: it and its mirror image sum to 1."""
    return torch.sin((torch.arange(length, dtype=torch.float64) + 0.5) * (0.5 * math.pi / max(1, length))) ** 2


def blending_weights(starts: Sequence[int], length: int) -> Tensor:
    """(tiles, length) float64 along one axis for tiles of `length` at `starts`: positive, 1 in sum at every pixel.

    A tile's share rises over all of its overlap with the tile before and falls over that with the one after, slowly at
    its very edge, where a network knows least of what is around.
    """
    weights = torch.ones(len(starts), length, dtype=torch.float64)
    for i in range(1, len(starts)):
        shared = starts[i - 1] + length - starts[i]
        rise = ramp(shared)
        weights[i, :shared] *= rise
        weights[i - 1, length - shared :] *= rise.flip(0)
    total = torch.zeros(starts[-1] + length, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + length] += weight
    return torch.stack([w / total[s : s + length] for s, w in zip(starts, weights, strict=True)])


@dataclass(frozen=True)
class Tiling:
    """Tiles of one size (height, width) at every pair of `tops` and `lefts`, both from 0 on, row by row."""

    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.tops[-1] + self.size[0], self.lefts[-1] + self.size[1]

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        return tuple(Window(top, left, *self.size) for top in self.tops for left in self.lefts)

    def rows(self, first: int, last: int) -> Tiling:
        """The tiling of the part of the image under tile rows first to last."""
        return Tiling(self.size, tuple(top - self.tops[first] for top in self.tops[first : last + 1]), self.lefts)

    @cached_property
    def weights(self) -> Tensor:
        """Share of every tile in its pixels, (T, height, width) float32 on the host."""
        rows, columns = blending_weights(self.tops, self.size[0]), blending_weights(self.lefts, self.size[1])
        return (rows[:, None, :, None] * columns[:, None, :]).flatten(0, 1).float()

    def cut(self, x: Tensor) -> Tensor:
        """Tiles (T, ..., height, width) of x (..., H, W)."""
        return torch.stack([x[(..., *window.slices)] for window in self.windows])

    def blend(self, tiles: Tensor) -> Tensor:
        """One (..., H, W) from tiles (T, ..., height, width): at every pixel the mean by `weights`, in their dtype."""
        whole = tiles.new_zeros((*tiles.shape[1:-2], *self.shape))
        for window, weight, tile in zip(self.windows, self.weights.to(tiles), tiles, strict=True):
            whole[(..., *window.slices)] += weight * tile
        return whole


def tiling_of(shape: tuple[int, int], tile: int, overlap: float) -> Tiling:
    """Square tiles, evenly spaced over (height, width) pixels, neighbours sharing at least `overlap` of a tile.

    An axis shorter than a tile has one tile of its own length. Raises ValueError for an empty image, tile < 1 or an
    overlap outside [0, 0.5].
    """
    if min(shape) < 1 or tile < 1 or not 0 <= overlap <= 0.5:
        raise ValueError(f"no tiles of {tile} pixels with overlap {overlap} over {shape[0]} x {shape[1]} pixels")
    stride = max(1, tile - math.ceil(tile * overlap))
    size = min(tile, shape[0]), min(tile, shape[1])
    tops, lefts = (tuple(even_starts(shape[i], size[i], stride)) for i in (0, 1))
    return Tiling(size, tops, lefts)


def split_rows(rows: int, most: int) -> list[tuple[int, int]]:
    """(first, last) of groups of at most `most` >= 2 of `rows` tile rows, as even as can be.

    A group begins with the row that the one before it ends with: about the middle of a shared row, both know what is
    around.
    """
    groups = max(1, math.ceil((rows - 1) / (most - 1)))
    ends = [round(i * (rows - 1) / groups) for i in range(groups + 1)]
    return list(pairwise(ends))
