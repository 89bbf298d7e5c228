"""Augmentation of image and SDF together, in batches and on their device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _coin(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    flags = torch.rand(count, generator=generator) < 0.5
    return flags.to(device).view(-1, 1, 1, 1)


def random_symmetry(
    image: Tensor, sdf: Tensor, generator: torch.Generator, *, flips: bool, rotations: bool
) -> tuple[Tensor, Tensor]:
    """Random flips and 90-degree turns, each pair alike: they are exact for an SDF.

    image (B, C, H, W) and sdf (B, 1, H, W); generator on the host. Turns need H = W.
    """
    count, device = image.shape[0], image.device
    moves: list[Callable[[Tensor], Tensor]] = []
    if flips:
        moves += [lambda x: x.flip(-1), lambda x: x.flip(-2)]
    if rotations:
        moves += [lambda x: x.rot90(1, (-2, -1)), lambda x: x.rot90(2, (-2, -1))]
    for move in moves:
        flag = _coin(count, generator, device)
        image, sdf = torch.where(flag, move(image), image), torch.where(flag, move(sdf), sdf)
    return image, sdf
