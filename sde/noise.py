"""Random numbers that belong to a draw, not to a batch.

Every draw owns a generator seeded by (seed, image_id, draw index). Its numbers therefore do not depend on the
batch it is computed in, on the order of the images, on the device or on an interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def draw_seed(seed: int, image_id: str, draw: int) -> int:
    """A 63-bit seed for one draw of one image."""
    digest = hashlib.sha256(f"{seed}\0{image_id}\0{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class DrawNoise:
    """Standard normal noise for a batch of draws, one generator each.

    draws: (image_id, draw index) of every element of the batch.
    shape: of one draw, for example (1, H, W).
    antithetic: draws 2 k and 2 k + 1 start from a noise and its negative, so that fewer draws give the same mean.
    """

    def __init__(
        self,
        seed: int,
        draws: Sequence[tuple[str, int]],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        antithetic: bool = False,
    ) -> None:
        # Host generators: the same numbers on every device.
        self._generators = [torch.Generator().manual_seed(draw_seed(seed, image_id, draw)) for image_id, draw in draws]
        self._seed, self.draws = seed, list(draws)
        self._shape = tuple(shape)
        self._device = torch.device(device)
        self._mirrored = antithetic  # until the first noise is made

    def __call__(self) -> Tensor:
        """The next N(0, I) of every draw, (B, *shape) float32."""
        # Pinned, so that the host does not wait for the work that a GPU still has.
        out = torch.empty((len(self._generators), *self._shape), pin_memory=self._device.type == "cuda")
        for row, generator, (image_id, draw) in zip(out, self._generators, self.draws, strict=True):
            row.normal_(generator=generator)
            if self._mirrored and draw % 2:
                row.normal_(generator=torch.Generator().manual_seed(draw_seed(self._seed, image_id, draw - 1))).neg_()
        self._mirrored = False
        return out.to(self._device, non_blocking=self._device.type not in ("cpu", "mps"))
