"""The probabilistic U-Net (Kohl et al. 2018): a U-Net and a conditional variational autoencoder of the masks.

A prior net sees the image, a posterior net the image and one rater's mask; each gives z, a few numbers for the whole
image, a normal distribution with a diagonal covariance. Training takes z from the posterior, draws take it from the
prior; the last layers see it beside the U-Net's maps. Given z, pixels are independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from models.baselines import StochasticBaseline, classes_of
from models.denoiser import Draw, rows_of
from models.layers import ResidualBlock, SelfAttention, group_norm, small_init
from models.unet import Entry, Sizes, Trunk, pad_to_multiple
from sde.process import Process
from utils.devices import moved
from utils.share import WHOLE, Share


class DiagonalNormal(NamedTuple):
    """mean and log_variance, (B, latent, 1, 1) both."""

    mean: Tensor
    log_variance: Tensor

    def at(self, eps: Tensor) -> Tensor:
        """mean + std eps."""
        return self.mean + (0.5 * self.log_variance).exp() * eps


def kl_divergence(q: DiagonalNormal, p: DiagonalNormal) -> Tensor:
    """KL(q || p) of each image in nats, (B,)."""
    squares = (q.log_variance - p.log_variance).exp() + (q.mean - p.mean).square() * (-p.log_variance).exp()
    return 0.5 * (squares - 1.0 + p.log_variance - q.log_variance).flatten(1).sum(dim=1)


class LatentNet(nn.Module):
    """A trunk's way down from (B, in_channels, H, W), the mean over all positions, and a distribution of z."""

    def __init__(self, in_channels: int, sizes: Sizes, latent: int) -> None:
        super().__init__()
        widths = [sizes.channels * m for m in sizes.multipliers]
        layers: list[nn.Module] = [Entry(in_channels, widths[0], sizes.unshuffle)]
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(ResidualBlock(widths[i - 1], width, resample="down", dropout=sizes.dropout))
            for _ in range(sizes.blocks):
                layers.append(ResidualBlock(width, width, dropout=sizes.dropout))
                if 2**i in sizes.attention:
                    layers.append(SelfAttention(width))
        self.way_down = nn.Sequential(*layers, group_norm(widths[-1]), nn.SiLU())
        self.head = small_init(nn.Conv2d(widths[-1], 2 * latent, 1))
        nn.init.zeros_(cast(Tensor, self.head.bias))  # prior and posterior begin near N(0, I)

    def forward(self, x: Tensor) -> DiagonalNormal:
        maps = self.way_down(x).mean(dim=(2, 3), keepdim=True)
        return DiagonalNormal(*self.head(maps).float().chunk(2, dim=1))


class LatentUNet(nn.Module):
    """The networks of a probabilistic U-Net, on images (B, C, H, W) whose sizes are multiples of the trunk's stride.

    combine: three 1x1 convolutions of the trunk's maps and z to `outputs` logits (the paper's f_comb). The first is
    the sum of one of the maps and one of z, which is the same at all pixels: so the maps' is computed once per image.
    """

    def __init__(self, image_channels: int, mask_channels: int, outputs: int, sizes: Sizes, latent: int) -> None:
        super().__init__()
        self.trunk = Trunk(image_channels, sizes)
        self.prior = LatentNet(image_channels, sizes, latent)
        self.posterior = LatentNet(image_channels + mask_channels, sizes, latent)
        width = self.trunk.widths[0]
        self.of_maps = nn.Sequential(group_norm(width), nn.SiLU(), nn.Conv2d(width, width, 1))
        self.of_z = nn.Conv2d(latent, width, 1, bias=False)
        last = nn.Conv2d(width, outputs * sizes.unshuffle**2, 1)
        self.last = nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(), last)

    def forward(self, image: Tensor) -> Tensor:
        """What `combine` needs of the image, the trunk's finest map."""
        return self.of_maps(self.trunk(image)[0])

    def combine(self, maps: Tensor, z: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (B, outputs, H, W) float32. maps: what `forward` gave. z: (B, latent, 1, 1). size: (H, W)."""
        logits = F.pixel_shuffle(self.last(maps.float() + self.of_z(z)).float(), self.trunk.scales[0])
        return logits[..., : size[0], : size[1]]


class ProbUNet(StochasticBaseline):
    """A baseline whose logits depend on a latent z of the whole image.

    Draw i of an image is the map of z = mean + std eps with the prior's moments and the draw's own eps, (latent,); it
    costs three 1x1 convolutions and no evaluation. The mean of the draws is not known: sampler mean takes the prior's
    mean of z. The tiles of a large image have a prior each, and the same eps in a draw: what z means is learned on
    images of a tile's size, and neighbours whose priors are alike agree.

    latent: numbers in z. beta: see `evidence_loss`.
    """

    encoder: LatentUNet

    def __init__(
        self,
        process: Process,
        network: LatentUNet,
        stride: int,
        mask_channels: int,
        beta: float = 10.0,
        sigma_data: float = 1.0,
    ) -> None:
        super().__init__(process, network, stride, mask_channels, sigma_data)
        self.beta, self.latent = beta, network.of_z.in_channels

    @property
    def floats_per_pixel(self) -> float:
        trunk = self.encoder.trunk
        return trunk.widths[0] / trunk.scales[0] ** 2 + self.mask_channels

    def logits(self, image: Tensor) -> Tensor:
        """At the prior's mean of z."""
        maps, prior = self._seen(image)
        return self.encoder.combine(maps, prior.mean, image.shape[-2:])

    def reconstructed(self, image: Tensor, m: Tensor, noise: Generator, share: Share = WHOLE) -> tuple[Tensor, Tensor]:
        """Logits of images (B, C, H, W) at a z from the posterior of their masks m (B, K, H, W), and KL(q || p), (B,).

        The posterior sees masks of -1 inside and 1 outside. noise: on the device. share: the part of a batch.
        """
        maps, prior = self._seen(image)
        mask = torch.where(m < 0, -1.0, 1.0).to(image.dtype)
        posterior = self.encoder.posterior(pad_to_multiple(torch.cat([image, mask], dim=1), self.stride))
        eps = share.normal(posterior.mean.shape, noise, m.device)
        return self.encoder.combine(maps, posterior.at(eps), image.shape[-2:]), kl_divergence(posterior, prior)

    def features(self, image: Tensor) -> list[Tensor]:
        """Maps of the trunk, mean and log-variance of the prior, and the map of its mean, of images (B, C, H, W)."""
        maps, prior = self._seen(image)
        return [maps, *prior, self.map_of(self.encoder.combine(maps, prior.mean, image.shape[-2:]))]

    def sampled(self, features: Sequence[Tensor], rows: Tensor, draws: Sequence[Draw]) -> Tensor:
        maps, *moments = (rows_of(feature, rows) for feature in features[:3])
        eps = torch.empty(len(draws), self.latent, 1, 1)
        for own, draw in zip(eps, draws, strict=True):
            own.normal_(generator=Generator().manual_seed(draw.seed))
        z = DiagonalNormal(*moments).at(moved(eps, maps.device))
        return self.encoder.combine(maps, z, features[-1].shape[-2:])

    def _seen(self, image: Tensor) -> tuple[Tensor, DiagonalNormal]:
        padded = pad_to_multiple(image, self.stride)
        return self.encoder(padded), self.encoder.prior(padded)


def evidence_loss(logits: Tensor, m: Tensor, kl: Tensor, beta: float) -> Tensor:
    """(cross entropy summed over pixels + beta KL(q || p)) / pixels of each image, (B,): the paper's eq. 4.

    logits: at one z from the posterior, (B, 1, H, W), or (B, K + 1, H, W) with the background first. m: (B, K, H, W),
    negative inside. kl: (B,). Divided by the number of pixels, so that losses of images of any size are like cross
    entropies. beta is that of the sum over one image: 1 is the evidence's bound. The released code has 1, for
    Cityscapes; its usual port to PyTorch has 10, for LIDC, against a sum over the whole batch: less for one image.
    """
    if m.shape[1] == 1:
        entropy = F.binary_cross_entropy_with_logits(logits, (m < 0).to(logits.dtype), reduction="none")
    else:
        entropy = F.cross_entropy(logits, classes_of(m), reduction="none")
    return entropy.flatten(1).mean(dim=1) + beta * kl / m[0, 0].numel()


def build_prob_unet(
    process: Process,
    image_channels: int,
    mask_channels: int,
    sizes: Sizes,
    latent: int = 6,
    beta: float = 10.0,
    sigma_data: float = 1.0,
) -> ProbUNet:
    """On the trunk of a residual U-Net, as `build_baseline` makes it; prior and posterior have its sizes, too."""
    outputs = 1 if mask_channels == 1 else mask_channels + 1
    network = LatentUNet(image_channels, mask_channels, outputs, sizes, latent)
    return ProbUNet(process, network, sizes.scales[-1], mask_channels, beta, sigma_data)
