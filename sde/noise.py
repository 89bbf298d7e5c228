"""Random numbers that belong to a draw, not to a batch.

Every draw owns a generator seeded by (seed, image_id, draw index). Its numbers therefore do not depend on the
batch it is computed in, on the order of the images, on the device or on an interruption.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

DESIGNS = ("independent", "antithetic", "sobol")
LOW = 8  # frequencies each way that the Sobol design spreads evenly


def draw_seed(seed: int, image_id: str, draw: int) -> int:
    """A 63-bit seed for one draw of one image."""
    digest = hashlib.sha256(f"{seed}\0{image_id}\0{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def cosines(count: int, length: int) -> Tensor:
    """The first rows of the orthonormal DCT-II, (min(count, length), length)."""
    k = torch.arange(min(count, length))[:, None]
    rows = torch.cos(math.pi * (torch.arange(length) + 0.5) * k / length) * math.sqrt(2.0 / length)
    rows[0] /= math.sqrt(2.0)
    return rows


class DrawNoise:
    """Standard normal noise for a batch of draws, one generator each.

    draws: (image_id, draw index) of every element of the batch.
    shape: of one draw, for example (1, H, W).
    design: how the first noise of an image's draws is spread, so that fewer draws give the same mean; each by itself
    stays N(0, I). antithetic: draws 2 k and 2 k + 1 start from a noise and its negative. sobol: the lowest 8 x 8
    frequencies of draws 0, 1, 2, ... are the normal quantiles of a scrambled Sobol sequence (Owen 1995).
    Raises ValueError for another design.
    """

    def __init__(
        self,
        seed: int,
        draws: Sequence[tuple[str, int]],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        design: str = "independent",
    ) -> None:
        if design not in DESIGNS:
            raise ValueError(f"unknown design {design!r}; one of {', '.join(DESIGNS)}")
        # Host generators: the same numbers on every device.
        self._generators = [torch.Generator().manual_seed(draw_seed(seed, image_id, draw)) for image_id, draw in draws]
        self._seed, self.draws = seed, list(draws)
        self._shape = tuple(shape)
        self._device = torch.device(device)
        self._design: str | None = design  # None after the first noise

    def __call__(self) -> Tensor:
        """The next N(0, I) of every draw, (B, *shape) float32."""
        out = torch.empty((len(self._generators), *self._shape))
        for row, generator in zip(out, self._generators, strict=True):
            row.normal_(generator=generator)
        if self._design in ("antithetic", "sobol"):
            spread = self._mirror if self._design == "antithetic" else self._even
            for row, (image_id, draw) in zip(out, self.draws, strict=True):
                spread(row, image_id, draw)
        self._design = None
        return out.to(self._device)

    def _mirror(self, row: Tensor, image_id: str, draw: int) -> None:
        if draw % 2:
            row.normal_(generator=torch.Generator().manual_seed(draw_seed(self._seed, image_id, draw - 1))).neg_()

    def _even(self, row: Tensor, image_id: str, draw: int) -> None:
        rows, columns = cosines(LOW, self._shape[-2]), cosines(LOW, self._shape[-1])
        low = rows @ row @ columns.T
        engine = torch.quasirandom.SobolEngine(
            low.numel(), scramble=True, seed=draw_seed(self._seed, image_id, -1) % 2**31
        )
        point = engine.fast_forward(draw).draw(1, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        quantiles = math.sqrt(2.0) * torch.erfinv(2.0 * point - 1.0)
        row += rows.T @ (quantiles.view(low.shape).float() - low) @ columns
