"""Stochastic segmentation networks (Monteiro et al. 2020): logits of a mask with a low-rank normal distribution.

eta = mu + P w + sqrt(d) eps, with w ~ N(0, I) of `rank` numbers for the whole image and eps ~ N(0, I) of each logit:
eta ~ N(mu, P P^T + diag(d)), over pixels and classes together (their eq. 5). Given eta, pixels are independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from models.baselines import StochasticBaseline, classes_of
from models.denoiser import Draw, rows_of
from models.layers import small_init
from models.segmentation import TrunkNetwork
from models.unet import Sizes, Trunk
from sde.field import FieldNoise
from sde.process import Process
from utils.devices import moved
from utils.share import WHOLE, Share

SAMPLES = 20  # of the logits for each image and step, as in the paper
LEAST = 1e-5  # variance of a logit, as in the released code


class LowRankNormal(NamedTuple):
    """mean, std (B, C, H, W) and factors (B, rank, C, H, W): N(mean, P P^T + diag(std^2)) over C, H and W."""

    mean: Tensor
    std: Tensor
    factors: Tensor

    def at(self, w: Tensor, eps: Tensor) -> Tensor:
        """mean + P w + std eps, (..., B, C, H, W). w: (..., B, rank). eps: (..., B, C, H, W)."""
        return self.mean + torch.einsum("...br,brchw->...bchw", w, self.factors) + self.std * eps


class SSN(StochasticBaseline):
    """A baseline whose logits have a normal distribution.

    encoder: images to C (2 + rank) maps: the mean of the C logits (1, or K + 1 with the background first), the
    logarithm of their own variances, and the rank factors.
    """

    def __init__(
        self, process: Process, network: nn.Module, stride: int, mask_channels: int, rank: int, sigma_data: float = 1.0
    ) -> None:
        super().__init__(process, network, stride, mask_channels, sigma_data)
        self.rank, self.logit_channels = rank, 1 if mask_channels == 1 else mask_channels + 1

    @property
    def floats_per_pixel(self) -> float:
        return self.logit_channels * (2 + self.rank) + self.mask_channels

    def normal(self, maps: Tensor) -> LowRankNormal:
        """The distribution that the network's output (B, C (2 + rank), H, W) stands for."""
        mean, log_variance, *factors = maps.split(self.logit_channels, dim=1)
        empty = maps.new_zeros((len(maps), 0, *mean.shape[1:]))
        return LowRankNormal(
            mean, (log_variance.exp() + LEAST).sqrt(), torch.stack(factors, dim=1) if factors else empty
        )

    def features(self, image: Tensor) -> list[Tensor]:
        """The network's output, and the map of the mean, of images (B, C, H, W) in [-1, 1]."""
        maps = self.logits(image)
        return [maps, self.map_of(maps[:, : self.logit_channels])]

    def sampled(self, features: Sequence[Tensor], rows: Tensor, draws: Sequence[Draw]) -> Tensor:
        """w is that of the draw, eps a field of the whole image, so that tiles which overlap agree."""
        normal = self.normal(rows_of(features[0], rows))
        w, eps = torch.empty(len(draws), self.rank), torch.empty(normal.mean.shape)
        for i, draw in enumerate(draws):
            w[i].normal_(generator=torch.Generator().manual_seed(draw.seed))
            window = (draw.top, draw.left, *eps.shape[-2:])
            eps[i] = FieldNoise(draw.seed, [("logits", 0)], self.logit_channels, window)()[0]
        return normal.at(moved(w, normal.mean.device), moved(eps, normal.mean.device))


def mask_likelihood_loss(
    normal: LowRankNormal, m: Tensor, noise: Generator, share: Share = WHOLE, samples: int = SAMPLES
) -> Tensor:
    """-log mean_s p(mask | eta_s) / pixels of each image, (B,), by `samples` reparametrised eta_s (the paper's eq. 8).

    m: (B, K, H, W), negative inside. noise: on the device. share: the part of a batch. Divided by the number of pixels,
    so that losses of images of any size are like cross entropies. There is no mask that leaves out pixels of the
    covariance, as the paper has for the outside of brains.
    """
    mean, factors, device = normal.mean, normal.factors, m.device
    w = share.normal((samples, *factors.shape[:2]), noise, device, dim=1)
    eps = share.normal((samples, *mean.shape), noise, device, dim=1)
    eta = normal.at(w, eps)
    if m.shape[1] == 1:
        pixels = F.logsigmoid(torch.where(m < 0, eta, -eta))[:, :, 0]
    else:
        truth = classes_of(m).expand(samples, -1, -1, -1)
        pixels = -F.cross_entropy(eta.flatten(0, 1), truth.flatten(0, 1), reduction="none").view(truth.shape)
    likelihood = pixels.flatten(2).sum(dim=2)  # of each sample and image, a logarithm
    return (math.log(samples) - likelihood.logsumexp(dim=0)) / pixels[0, 0].numel()


def build_ssn(
    process: Process, image_channels: int, mask_channels: int, sizes: Sizes, rank: int, sigma_data: float = 1.0
) -> SSN:
    """On the trunk of a residual U-Net, as `build_baseline` makes it."""
    outputs = 1 if mask_channels == 1 else mask_channels + 1
    network = TrunkNetwork(Trunk(image_channels, sizes), outputs * (2 + rank))
    # Means and variances begin at 0 and 1. Factors of 0 would stay there: their gradient is 0 on average.
    head = cast(nn.Conv2d, network.head[-1])
    small_init(head)
    nn.init.zeros_(head.weight[: 2 * outputs * sizes.unshuffle**2])
    return SSN(process, network, sizes.scales[-1], mask_channels, rank, sigma_data)
