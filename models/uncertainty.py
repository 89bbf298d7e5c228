"""Draws of a network with dropout, behind the interface of a denoiser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.baselines import OnePass
from models.denoiser import Denoiser, Draw, numbers_of

# SplitMix64 (Steele et al. 2014): its increment, and shifts and factors of its mixing function; int64 wraps around.
INCREMENT = 0x9E3779B97F4A7C15 - 2**64
MIXING = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def kept_units(
    seed: int, layer: int, corner: tuple[int, int], shape: Sequence[int], share: float, device: torch.device
) -> Tensor:
    """Which units (C, height, width) of a layer a draw keeps, bool, an expected share of them.

    A unit's fate follows from the seed, the layer, its channel and its place in the whole image, of which `corner` is
    the first row and column that are asked for: windows that overlap agree. Any element of SplitMix64's sequence can be
    had without those before; each is 16 bits for four channels.
    """
    channels, height, width = shape

    def count(start: int, number: int) -> Tensor:
        return torch.arange(start, start + number, device=device)

    place = (count(corner[0], height).view(-1, 1, 1) << 36) + (count(corner[1], width).view(-1, 1) << 16)
    x = (place + count(0, math.ceil(channels / 4)) + (layer << 56)).mul_(INCREMENT).add_(seed)
    for shift, factor in MIXING:
        x.bitwise_xor_((x >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(factor)
    x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))
    return (x.view(torch.int16) < round(share * 2**16) - 2**15)[..., :channels].permute(2, 0, 1)


@contextmanager
def dropped_units(model: nn.Module, draws: Sequence[Draw], size: Sequence[int]) -> Iterator[None]:
    """Dropout in a network in evaluation mode, of each draw's own units. Normalisation stays as in evaluation.

    draws: of every element of the batch. size: (H, W) of the images or tiles. At a layer of 1 / 2^i of that size a
    tile's corner is taken to the nearest unit.
    """

    active = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    layers = {module: layer for layer, module in enumerate(active)}

    def drop(module: nn.Dropout, inputs: Any, output: Tensor) -> Tensor:
        share, shape = 1.0 - module.p, output.shape[1:]
        scale = 2 ** max(0, math.ceil(math.log2(size[0] / shape[1])))
        corners = [(round(draw.top / scale), round(draw.left / scale)) for draw in draws]
        kept = [
            kept_units(draw.seed, layers[module], corner, shape, share, output.device)
            for draw, corner in zip(draws, corners, strict=True)
        ]
        return output * torch.stack(kept) / share

    handles = [module.register_forward_hook(drop) for module in active]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class DropoutDraws(OnePass):
    """Draws of the direct mean with dropout (Gal & Ghahramani 2016): each has one set of units left out, of which an
    image in tiles sees parts.

    denoiser: direct, in evaluation mode.
    """

    shared = 0

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.process, denoiser, denoiser.mask_channels, denoiser.sigma_data)
        self.denoiser = denoiser
        self.eval()

    def features(self, image: Tensor) -> list[Tensor]:
        """The images: dropout is in all layers, so nothing is shared by draws."""
        return [image]

    def of_draws(self, features: Sequence[Tensor], rows: Tensor, draws: Sequence[Draw]) -> list[Tensor]:
        """The images, and the draws as integers (B, 4)."""
        return [*super().of_draws(features, rows, draws), numbers_of(draws)]

    def known(self, t: Tensor, features: Sequence[Tensor]) -> Tensor | None:
        return None

    def moments(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """One draw (B, K, H, W) of the mean for each element, whatever z and t are."""
        image, draws = features
        with dropped_units(self.denoiser, [Draw(*row) for row in draws.tolist()], image.shape[-2:]):
            return self.denoiser.encode(image)[-1], None
