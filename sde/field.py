"""Noise of images too large to be held: any window of an endless field of normal numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from sde.noise import draw_seed

BLOCK = 128  # pixels each way that share a generator


class FieldNoise:
    """Standard normal noise of a window, a field of its own for each draw.

    What a pixel gets depends on the seed, the draw, the pixel's place in the image and the number of the call, not on
    the window: overlapping windows agree. Blocks of `block` x `block` pixels have a generator each.

    draws: (image_id, draw index) of every element of the batch. window: top, left, height, width in the image.
    antithetic: as in `DrawNoise`.
    """

    def __init__(
        self,
        seed: int,
        draws: Sequence[tuple[str, int]],
        channels: int,
        window: tuple[int, int, int, int],
        device: torch.device | str = "cpu",
        antithetic: bool = False,
        block: int = BLOCK,
    ) -> None:
        self._seed, self.draws, self._channels, self._window = seed, list(draws), channels, window
        self._block = block
        self._device = torch.device(device)
        self._mirrored = antithetic  # until the first noise is made
        top, left, height, width = window
        self._blocks = [
            (row, column)
            for row in range(top // block, (top + height - 1) // block + 1)
            for column in range(left // block, (left + width - 1) // block + 1)
        ]
        self._generators = [self._start(image_id, draw) for image_id, draw in self.draws]

    def __call__(self) -> Tensor:
        """The next N(0, I) of every draw, (B, channels, height, width) float32."""
        out = torch.empty((len(self.draws), self._channels, *self._window[2:]))
        for row, generators, (image_id, draw) in zip(out, self._generators, self.draws, strict=True):
            self._fill(row, generators)
            if self._mirrored and draw % 2:
                self._fill(row, self._start(image_id, draw - 1))
                row.neg_()
        self._mirrored = False
        return out.to(self._device)

    def _start(self, image_id: str, draw: int) -> list[torch.Generator]:
        base = draw_seed(self._seed, image_id, draw)
        return [torch.Generator().manual_seed(block_seed(base, row, column)) for row, column in self._blocks]

    def _fill(self, out: Tensor, generators: Sequence[torch.Generator]) -> None:
        """One field's numbers of the window into out (channels, height, width): whole blocks, and what lies within."""
        (top, left, height, width), side = self._window, self._block
        block = torch.empty(self._channels, side, side)
        for (row, column), generator in zip(self._blocks, generators, strict=True):
            block.normal_(generator=generator)
            y, x = row * side - top, column * side - left  # of the block's corner in the window
            rows = slice(max(0, y), min(height, y + side))
            columns = slice(max(0, x), min(width, x + side))
            out[:, rows, columns] = block[:, rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]


def block_seed(draw: int, row: int, column: int) -> int:
    """A 63-bit seed for one block of a draw's field; `draw` is the draw's own seed."""
    digest = hashlib.sha256(f"{draw}\0{row}\0{column}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
