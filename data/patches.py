"""Windows: overlapping ones to train on, even parts to test on, and one at random."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def even_starts(length: int, part: int, stride: int) -> list[int]:
    """Evenly spaced starts from 0 to length - part, no further apart than stride."""
    count = math.ceil((length - part) / stride) + 1
    return [round(i * (length - part) / max(1, count - 1)) for i in range(count)]


def overlapping(shape: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> list[Window]:
    """Windows of size `patch` that cover the picture, evenly spaced, at most `stride` apart.

    Raises ValueError if the picture is smaller than a patch.
    """
    if shape[0] < patch[0] or shape[1] < patch[1]:
        raise ValueError(f"{shape[0]} x {shape[1]} pixels, smaller than a patch of {patch[0]} x {patch[1]}")
    rows, columns = (even_starts(shape[i], patch[i], stride[i]) for i in (0, 1))
    return [Window(top, left, *patch) for top in rows for left in columns]


def even_parts(shape: tuple[int, int], most: tuple[int, int]) -> list[Window]:
    """As few equal windows as cover the picture with none larger than `most`; they overlap by a pixel or so where
    the picture cannot be divided evenly."""
    counts = [math.ceil(shape[i] / most[i]) for i in (0, 1)]
    size = math.ceil(shape[0] / counts[0]), math.ceil(shape[1] / counts[1])
    return overlapping(shape, size, size)


def random_window(shape: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator) -> Window:
    """One window, uniform over all places. Raises ValueError if the picture is smaller."""
    if shape[0] < crop[0] or shape[1] < crop[1]:
        raise ValueError(f"{shape[0]} x {shape[1]} pixels, smaller than a crop of {crop[0]} x {crop[1]}")
    return Window(int(rng.integers(shape[0] - crop[0] + 1)), int(rng.integers(shape[1] - crop[1] + 1)), *crop)
