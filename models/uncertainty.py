"""Draws of networks that regress: Monte Carlo dropout and deep ensembles, behind the interface of a denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.baselines import OnePass
from models.denoiser import Denoiser


def seeds_of(z: Tensor) -> list[int]:
    """A seed for each draw from the bits of its noise z (B, K, H, W), which no other draw has."""
    pairs = z.flatten(1)[:, :2].float().cpu().contiguous().view(torch.int32)
    return [(a << 31) ^ b for a, b in (pairs.long() & 0x7FFFFFFF).tolist()]


@contextmanager
def seeded_dropout(model: nn.Module, seeds: Sequence[int]) -> Iterator[None]:
    """Dropout in a network in evaluation mode, by a generator of its own for each element of the batch.

    The generators are the host's: the same numbers on every device. Normalisation stays as in evaluation.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept = 1.0 - float(module.p)  # type: ignore[arg-type]
        mask = torch.empty(output.shape)
        for row, generator in zip(mask, generators, strict=True):
            row.bernoulli_(kept, generator=generator)
        return output * mask.to(output.device, output.dtype) / kept

    active = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    handles = [module.register_forward_hook(drop) for module in active]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class DropoutDraws(OnePass):
    """Draws of the direct mean with dropout (Gal & Ghahramani 2016): each has units of its own left out.

    denoiser: direct, in evaluation mode. What is left out follows from the noise z of a draw, which has no other use.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.process, denoiser, denoiser.mask_channels, denoiser.sigma_data)
        self.denoiser = denoiser
        self.eval()

    def encode(self, image: Tensor) -> list[Tensor]:
        """The images: dropout is in all layers, so nothing is shared by draws."""
        return [image]

    def moments(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """One draw (B, K, H, W) of the mean for each z."""
        with seeded_dropout(self.denoiser, seeds_of(z)):
            return self.denoiser.encode(features[0])[-1], None


class DeepEnsemble(OnePass):
    """The direct means of networks that were trained apart (Lakshminarayanan et al. 2017).

    members: direct, of one process and representation, in evaluation mode. z, a constant 0, 1, ..., says whose mean.
    """

    def __init__(self, members: Sequence[Denoiser]) -> None:
        first = members[0]
        super().__init__(first.process, nn.ModuleList(members), first.mask_channels, first.sigma_data)
        self.members = list(members)
        self.eval()

    def encode(self, image: Tensor) -> list[Tensor]:
        """All members' means, (B, members * K, H, W)."""
        return [torch.cat([member.encode(image)[-1] for member in self.members], dim=1)]

    def moments(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The mean (B, K, H, W) of the member that each z (B, K, H, W) names."""
        number = z[:, 0, 0, 0].long()
        means = features[0].unflatten(1, (len(self.members), self.mask_channels))
        return means[torch.arange(len(number), device=number.device), number], None
