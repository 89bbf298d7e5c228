"""Which part of a whole is this process's: of a batch that is trained on, of images that are sampled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Share:
    """The equal part `rank` of `count`, counted from 0, of consecutive elements."""

    rank: int = 0
    count: int = 1

    def of(self, whole: Tensor, dim: int = 0) -> Tensor:
        """Of something that all processes have as a whole."""
        return whole if self.count == 1 else whole.chunk(self.count, dim)[self.rank]

    def normal(self, shape: Sequence[int], generator: Generator, device: torch.device, dim: int = 0) -> Tensor:
        """N(0, I) of `shape`: this part, along `dim`, of the numbers that one process would draw for the whole."""
        whole = [length * (self.count if d == dim else 1) for d, length in enumerate(shape)]
        return self.of(torch.randn(whole, generator=generator, device=device), dim)


WHOLE = Share()


def torchrun_share() -> Share:
    """This process's among those that torchrun has started; else the whole."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return WHOLE
    return Share(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
