"""Baselines that predict the mask in one pass, behind what samplers and drawers need of a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.denoiser import Denoiser, Draw, rows_of
from models.segmentation import FCN, GatedTrunk, TrunkNetwork, library_unet
from models.unet import Sizes, Trunk, pad_to_multiple
from sde.process import Process

SMOOTH = 1.0  # pixels added to both sides of Dice's fraction, so that two empty masks agree


class OnePass(Denoiser):
    """A mean of m that sees nothing but the image: `features` computes it, evaluations at any z and t hand it on.

    encoder: whatever `features` needs.
    """

    shared: int = 1

    def __init__(self, process: Process, encoder: nn.Module, mask_channels: int, sigma_data: float | Tensor) -> None:
        network = cast(Any, nn.Identity())  # nothing is left to do after `features`
        super().__init__(process, "x", encoder, network, mask_channels, float(sigma_data))

    @property
    def floats_per_pixel(self) -> float:
        return self.shared * self.mask_channels

    def size_of(self, features: Sequence[Tensor]) -> Sequence[int]:
        return features[-1].shape[-2:]

    def known(self, t: Tensor, features: Sequence[Tensor]) -> Tensor | None:
        return features[-1]


class Baseline(OnePass):
    """A network of logits, trained on the mask.

    encoder: images (B, C, H, W) in [-1, 1], sizes multiples of `stride`, to logits: of the foreground (B, 1, H, W), or,
    for K > 1 classes, of background and classes (B, K + 1, H, W). sigma_data: s of masks of -s inside and s outside.

    What it gives is s (p_background - p_class), (B, K, H, W); that is 1 - 2 p for one class and s = 1. The least one
    below 0 is the likeliest class.
    """

    def __init__(
        self, process: Process, network: nn.Module, stride: int, mask_channels: int, sigma_data: float = 1.0
    ) -> None:
        super().__init__(process, network, mask_channels, sigma_data)
        self.stride = stride

    def logits(self, image: Tensor) -> Tensor:
        """float32, of the image's size."""
        height, width = image.shape[-2:]
        return self.encoder(pad_to_multiple(image, self.stride))[..., :height, :width].float()

    def features(self, image: Tensor) -> list[Tensor]:
        """The map that all draws share, of images (B, C, H, W) in [-1, 1]."""
        return [self.map_of(self.logits(image))]

    def map_of(self, logits: Tensor) -> Tensor:
        """s (p_background - p_class), (B, K, H, W)."""
        if self.mask_channels == 1:
            return -self.sigma_data * torch.tanh(0.5 * logits)
        background, classes = logits.softmax(dim=1).split([1, self.mask_channels], dim=1)
        return self.sigma_data * (background - classes)


class StochasticBaseline(Baseline):
    """A baseline whose logits have a distribution.

    features: what `sampled` needs, and last the map of a mean. Draw i of an image is one sample of the logits, mapped
    as those of any baseline; it costs no evaluation. draws: whether `of_draws` gives these, or the map of the mean.
    """

    draws = True

    def of_draws(self, features: Sequence[Tensor], rows: Tensor, draws: Sequence[Draw]) -> list[Tensor]:
        """The map (B, K, H, W) of each draw."""
        return [self.map_of(self.sampled(features, rows, draws))] if self.draws else [rows_of(features[-1], rows)]

    def sampled(self, features: Sequence[Tensor], rows: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Logits of each draw, of the images `rows` of those that `features` gave."""
        raise NotImplementedError


def classes_of(m: Tensor) -> Tensor:
    """Class of each pixel, 0 for the background, (B, H, W), of m (B, K, H, W), negative inside."""
    least, first = m.min(dim=1)
    return torch.where(least < 0, first + 1, 0)


def dice_cross_entropy(logits: Tensor, m: Tensor) -> Tensor:
    """Cross entropy, a mean over pixels, and 1 - soft Dice, a mean over classes, of each image: their sum, (B,).

    logits: (B, 1, H, W), or (B, K + 1, H, W) with the background first. m: (B, K, H, W), negative inside. The soft Dice
    of an image is (2 sum p y + 1) / (sum p + sum y + 1) (Milletari et al. 2016, without squares).
    """
    inside = (m < 0).to(logits.dtype)
    if m.shape[1] == 1:
        entropy = F.binary_cross_entropy_with_logits(logits, inside, reduction="none")
        p = logits.sigmoid()
    else:
        entropy = F.cross_entropy(logits, classes_of(m), reduction="none")
        p = logits.softmax(dim=1)[:, 1:]
    both, either = (p * inside).sum(dim=(2, 3)), p.sum(dim=(2, 3)) + inside.sum(dim=(2, 3))
    dice = (2.0 * both + SMOOTH) / (either + SMOOTH)
    return entropy.flatten(1).mean(dim=1) + (1.0 - dice).mean(dim=1)


def build_baseline(
    process: Process,
    kind: str,
    image_channels: int,
    mask_channels: int,
    sizes: Sizes,
    backbone: str = "resnet34",
    sigma_data: float = 1.0,
) -> Baseline:
    """A baseline: resunet and attention_unet have all `sizes`, unet and unetplusplus those of `library_unet`.

    fcn has a backbone (resnet50 or resnet101) and dropout only. Raises ImportError where a library is absent,
    ValueError for an unknown kind.
    """
    outputs = 1 if mask_channels == 1 else mask_channels + 1
    stride = sizes.scales[-1]
    network: nn.Module
    if kind in ("unet", "unetplusplus"):
        network = library_unet(kind, backbone, image_channels, outputs, sizes)
        stride *= 2
    elif kind in ("resunet", "attention_unet"):
        network = TrunkNetwork((Trunk if kind == "resunet" else GatedTrunk)(image_channels, sizes), outputs)
    elif kind == "fcn":
        network, stride = FCN(backbone, image_channels, outputs, sizes.dropout), 8
    else:
        raise ValueError(f"unknown kind of baseline {kind!r}")
    return Baseline(process, network, stride, mask_channels, sigma_data)
