"""Maps of large images in several resolutions, made row by row while they are computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIDE = 256  # rows that are handed on together: of a tile of a file
LEAST = 512  # longest side of the coarsest resolution, at most


def halved(rows: np.ndarray, averaged: bool) -> np.ndarray:
    """(K, n, W) to (K, n / 2, W / 2), rounded up: means of four pixels, or every second one, for labels."""
    if not averaged:
        return rows[:, ::2, ::2]
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2), (0, rows.shape[2] % 2)), mode="edge").astype(np.float32)
    means = (padded[:, ::2, ::2] + padded[:, 1::2, ::2] + padded[:, ::2, 1::2] + padded[:, 1::2, 1::2]) / 4
    return (means if rows.dtype.kind == "f" else np.rint(means)).astype(rows.dtype)


class Pyramid:
    """Takes rows (K, n, W) of one image from the top as they come, and stores them in all `levels`.

    shape: (K, H, W). averaged: whether coarser pixels are means of finer ones, or, for labels, one of them. levels:
    shapes (h, w) from the whole resolution down, each half of the one before.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: type[np.generic], averaged: bool) -> None:
        self.path, self.shape, self.dtype, self.averaged = path, shape, np.dtype(dtype), averaged
        self.levels = [shape[1:]]
        while max(self.levels[-1]) > LEAST:
            height, width = self.levels[-1]
            self.levels.append(((height + 1) // 2, (width + 1) // 2))
        self._waiting = [np.empty((shape[0], 0, width), self.dtype) for _, width in self.levels]
        self._stored = [0] * len(self.levels)  # rows
        self._taken = 0

    def add(self, rows: np.ndarray) -> None:
        """Take the next rows. Raises ValueError for others than these."""
        channels, height, width = self.shape
        if (rows.shape[0], rows.shape[2]) != (channels, width) or self._taken + rows.shape[1] > height:
            raise ValueError(f"{self.path}: rows of shape {rows.shape} after {self._taken} of {self.shape}")
        self._taken += rows.shape[1]
        self._pass_on(0, rows.astype(self.dtype))

    def finish(self) -> None:
        """After the last row. Raises ValueError where rows are missing, OSError where the disk does."""
        if self._taken < self.shape[1]:
            raise ValueError(f"{self.path}: {self._taken} of {self.shape[1]} rows")

    def close(self) -> None:
        """In any case, at the end."""

    def _pass_on(self, level: int, rows: np.ndarray) -> None:
        waiting = np.concatenate([self._waiting[level], rows], axis=1)
        while waiting.shape[1] and waiting.shape[1] >= min(SIDE, self.levels[level][0] - self._stored[level]):
            block, waiting = waiting[:, :SIDE], waiting[:, SIDE:]
            self.store(level, self._stored[level], block)
            self._stored[level] += block.shape[1]
            if level + 1 < len(self.levels):
                self._pass_on(level + 1, halved(block, self.averaged))
        self._waiting[level] = waiting.copy()

    def store(self, level: int, top: int, block: np.ndarray) -> None:
        """Keep the rows (K, SIDE or fewer at the end, w) of a level from `top` on."""
        raise NotImplementedError
