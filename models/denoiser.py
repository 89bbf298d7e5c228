"""Between network and process: D(z, t | x) ~ E[m | z_t, x] from a raw network by input and output scaling.

Every prediction type is a row of one table: D = c_skip z + c_out F(c_in z, c_noise, features).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.latent import latent_channels, latent_of
from models.pyramid import Pretrained, PyramidEncoder
from models.rrdb import RRDBEncoder
from models.unet import ConditionalUNet, ImageEncoder, Sizes, Trunk
from sde.process import Process
from utils.devices import moved
from utils.sections import PREDICTIONS


def channels_per_mask(prediction: str) -> int:
    """Output channels for each channel of m."""
    return 2 if prediction == "both" else 1


@dataclass(frozen=True)
class Scaling:
    """Coefficients of the table, each of the shape of t. out_eps: of the second half of the channels, for both."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    noise: Tensor
    out_eps: Tensor | None = None


def scaling(prediction: str, process: Process, t: Tensor, sigma_data: float | Tensor) -> Scaling:
    """What the raw network F predicts, as coefficients.

    edm        F has unit variance at every t (Karras et al. 2022, table 1, with z / alpha for their x)
    x          F = m / sigma_data
    eps        F = eps
    v          F = alpha eps - sigma m (Salimans & Ho 2022)
    velocity   F = dz/dt along the path = alpha' m + sigma' eps (Lipman et al. 2023)
    both       F = (m / sigma_data, eps), weighed so that m counts at much noise and eps at little (Salimans & Ho)
    score      F = sigma * score, network input and output otherwise unscaled
    score_raw  F = score: the published parametrisation, kept for comparison
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    total = torch.sqrt((alpha * sigma_data) ** 2 + sigma**2)  # standard deviation of z_t
    noise = torch.log(sigma / alpha) / 4.0
    zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
    if prediction == "edm":
        return Scaling(alpha * sigma_data**2 / total**2, sigma * sigma_data / total, 1.0 / total, noise)
    if prediction == "x":
        return Scaling(zero, sigma_data * one, 1.0 / total, noise)
    if prediction == "eps":
        return Scaling(1.0 / alpha, -sigma / alpha, 1.0 / total, noise)
    if prediction == "v":
        norm = alpha**2 + sigma**2
        return Scaling(alpha / norm, -sigma / norm, 1.0 / total, noise)
    if prediction == "both":
        signal = alpha**2 / (alpha**2 + sigma**2)
        return Scaling(signal / alpha, (1.0 - signal) * sigma_data, 1.0 / total, noise, -signal * sigma / alpha)
    if prediction == "velocity":
        drift = process.drift(t)
        growth = 0.5 * process.diffusion_squared(t) / sigma**2 + drift  # sigma' / sigma
        out = 1.0 / (alpha * (drift - growth))
        return Scaling(-growth * out, out, 1.0 / total, noise)
    if prediction == "score":
        return Scaling(1.0 / alpha, sigma / alpha, one, noise)
    if prediction == "score_raw":
        return Scaling(1.0 / alpha, sigma**2 / alpha, one, noise)
    raise ValueError(f"unknown prediction {prediction!r}; one of {', '.join(PREDICTIONS)}")


def rows(x: Tensor) -> Tensor:
    """(B,) as float32 factors of (B, C, H, W)."""
    return x.float().view(-1, 1, 1, 1)


def batch_times(t: Tensor, z: Tensor) -> Tensor:
    """t, a scalar or (B,), as (B,) on z's device; in float64 for the time algebra, but for MPS, which has none."""
    wide = torch.float32 if z.device.type == "mps" else torch.float64
    return moved(t.to(wide), z.device).expand(z.shape[0])


class Draw(NamedTuple):
    """Which draw of an image is evaluated, and where.

    seed: the draw's own (sde/noise.py). number: 0, 1, ... of the image. top, left: of the tile in the image.
    """

    seed: int
    number: int
    top: int = 0
    left: int = 0


def numbers_of(draws: Sequence[Draw]) -> Tensor:
    """As integers (B, 4), on the host."""
    return torch.tensor(draws, dtype=torch.int64).reshape(-1, len(Draw._fields))


def rows_of(feature: Tensor, rows: Tensor) -> Tensor:
    """Those of some images, with repetitions, in the same memory layout, which the network is fastest on. rows: on any
    device."""
    last = feature.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return feature.index_select(0, moved(rows, feature.device)).contiguous(memory_format=layout)


class Learned(NamedTuple):
    """What losses see of one evaluation: E[m | z_t, x] (B, K, H, W), Var[m | x] and the logits of masks, None where the
    network has none, and draws of p(m | z_t, x)."""

    mean: Tensor
    variance: Tensor | None
    logits: Tensor | None
    draws: list[Tensor]


class Denoiser(nn.Module):
    """The conditional posterior mean, the one object that losses and samplers need.

    With `distribution` it also gives draws of p(m | z_t, x), D(z, t, xi | x), by a second noise xi.

    mask_channels: K, the SDF channels of m, one for each class.
    sigma_data: root mean square of m over the training data; kept in the state dict.
    limit: for predictions of m itself, the raw output passes through tanh and |m| stays below this; None: no bound.
    direct: at t_max the network sees z = 0 and no noise, so that D there is E[m | x], the same for every draw.
    second_moment: the network has K more outputs, which at t_max are the variance of m given x.
    masks: and K more, the logits of masks, from which only training learns.
    distribution: draws of an image are evaluated with xi, those at t_max as c + spread (m - c) about the direct mean c.
    rater: of those that the network knows apart, the one to draw as; None: each in turn. The mean is that of all.
    """

    sigma_data: Tensor
    spread: Tensor
    rater: int | None = None

    def __init__(
        self,
        process: Process,
        prediction: str,
        encoder: nn.Module,
        network: ConditionalUNet,
        mask_channels: int = 1,
        sigma_data: float = 0.5,
        limit: float | None = None,
        *,
        direct: bool = False,
        second_moment: bool = False,
        masks: bool = False,
        distribution: bool = False,
    ) -> None:
        super().__init__()
        self.process, self.prediction, self.mask_channels, self.limit = process, prediction, mask_channels, limit
        self.encoder, self.network = encoder, network
        self.direct, self.second_moment, self.masks, self.distribution = direct, second_moment, masks, distribution
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data)))
        self.register_buffer("spread", torch.tensor(1.0), persistent=distribution)

    @property
    def shared(self) -> int:
        """Evaluations of the network in `encode`, for all draws of an image together."""
        return int(self.direct and not self.training)

    @property
    def means(self) -> int:
        """How many direct means of an image there are, of several networks or views."""
        return 1

    @property
    def floats_per_pixel(self) -> float:
        """Of an image, in what `encode` gives."""
        trunk, mean = self.network.trunk, self.shared * self.mask_channels
        maps = [w / scale**2 for w, scale in zip(trunk.widths, trunk.scales, strict=True)]
        way_down = 2 * trunk.blocks * sum(maps) + maps[-1] if self.distribution else 0.0
        return sum(maps) + way_down + mean

    def part_of(self, number: int) -> int:
        """Which of several networks or views makes the draw of this number."""
        return 0

    def features(self, image: Tensor) -> list[Tensor]:
        """Feature maps of images (B, C, H, W) in [-1, 1], finest first: all that `direct_moments` needs."""
        return self.encoder(image)

    def size_of(self, features: Sequence[Tensor]) -> Sequence[int]:
        """(H, W) of the images that have these features, padded as the network sees them."""
        return self.network.padded(features)

    def encode(self, image: Tensor) -> list[Tensor]:
        """What evaluations know of images (B, C, H, W) in [-1, 1], to be computed once for all of them.

        The features; then, when draws are made, what they share at t_max: the way down where xi makes them differ, and
        the direct mean (B, K, H, W).
        """
        features, size = self.features(image), image.shape[-2:]
        if self.direct and not self.training:
            if self.distribution:
                z, t = self._at_end(features, size)
                skips = self._down(z, t, features)
                return [*features, *skips, self._up(skips, z, t)]
            features = [*features, self.direct_moments(features, size)[0]]
        return features

    def centre(self, features: Sequence[Tensor]) -> Tensor:
        """The direct mean (B, K, H, W) among what `encode` gives."""
        return features[-1]

    def of_draws(self, features: Sequence[Tensor], rows: Tensor, draws: Sequence[Draw]) -> list[Tensor]:
        """What evaluations of a batch of draws know: the features of their images, `rows` of those that `encode` gave.
        The rows are on the host.

        With xi: the features of all images, of which each evaluation takes what it needs, and integers (B, 5), the
        row and which draw it is.
        """
        if self.distribution:
            return [*features, torch.cat([rows[:, None], numbers_of(draws)], dim=1)]
        return [rows_of(f, rows) for f in features]

    def known(self, t: Tensor, features: Sequence[Tensor]) -> Tensor | None:
        """E[m | z_t, x] at a scalar t where `encode` has found it already, whatever z_t is."""
        has_mean = self.direct and len(features) > len(self.network.trunk.widths) and features[-1].is_floating_point()
        return features[-1] if has_mean and t.ndim == 0 and self.process.at_end(t) else None

    def direct_moments(self, features: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """E[m | x] and Var[m | x] (None without second_moment), (B, K, H, W), in one evaluation at t_max; size: (H, W).

        Raises ValueError if the denoiser is not direct.
        """
        if not self.direct:
            raise ValueError("this denoiser has not learned the direct mean")
        return self.moments(*self._at_end(features, size), features)

    def end_scaling(self) -> Scaling:
        """The coefficients at t_max, (1,)."""
        z = self.sigma_data.new_zeros((1, self.mask_channels, 1, 1))
        return self._scaled(z, torch.tensor(self.process.t_max))[1]

    def _at_end(self, features: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        z = features[0].new_zeros((len(features[0]), self.mask_channels, *size), dtype=torch.float32)
        return z, z.new_full((), self.process.t_max)

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        """E[m | z_t = z, x], or a draw where `of_draws` says of which; (B, K, H, W) float32.

        z: (B, K, H, W); t: a scalar or, for means, (B,).
        """
        known = self.known(t, features)
        if known is not None:
            return known
        if not self.distribution or features[-1].is_floating_point():
            return self.moments(z, t, features)[0]
        return self._draw(z, t, features[:-1], features[-1])

    def moments(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """E[m | z_t = z, x], and Var[m | x] or None; the variance is for t = t_max only. See `forward`."""
        learned = self.learned(z, t, features)
        return learned.mean, learned.variance

    def learned(
        self,
        z: Tensor,
        t: Tensor,
        features: Sequence[Tensor],
        latents: Sequence[Sequence[Tensor]] = (),
        raters: Tensor | None = None,
    ) -> Learned:
        """The mean, what goes with it, and a draw for each xi (`models/latent.py`); see `forward`.

        raters: (B,), as whom to draw where the network knows them apart.
        """
        z, c = self._scaled(z, t)
        inputs, noise, draws = rows(c.inp) * z, c.noise.float(), []
        if latents:
            skips = self.network.down(inputs, noise, features)
            raw = self.network.up(skips, noise, z.shape[-2:])
            draws = [self._up(skips, z, t, latent, raters) for latent in latents]
        else:
            raw = self.network(inputs, noise, features)
        raw = raw.float()
        more = iter(raw.split(self.mask_channels, dim=1)[channels_per_mask(self.prediction) :])
        variance = self.sigma_data**2 * F.softplus(next(more)) if self.second_moment else None
        logits = next(more) if self.masks else None
        return Learned(self.mask_of(raw, z, c), variance, logits, draws)

    def _draw(self, z: Tensor, t: Tensor, features: Sequence[Tensor], numbers: Tensor) -> Tensor:
        scales, padded = self.network.trunk.scales, self.size_of(features)
        images, draws = numbers[:, 0], [Draw(*row) for row in numbers[:, 1:].tolist()]
        at_end, kept = bool(self.process.at_end(t)), len(features) > len(scales)
        if at_end and kept:
            if (images == images[0]).all():
                images = images[:1]  # what is shared is not repeated
            *skips, mean = [rows_of(f, images) for f in features[len(scales) :]]
        else:
            skips = self._down(z, t, [rows_of(f, images) for f in features[: len(scales)]])
        corners = [(draw.top, draw.left) for draw in draws]
        latent = latent_of([draw.seed for draw in draws], corners, float(t), padded, scales)
        m = self._up(skips, z, t, [moved(level, z.device) for level in latent], self._raters_of(draws, z.device))
        if not at_end or (not kept and float(self.spread) == 1.0):  # not worth an evaluation
            return m
        centre = mean if kept else self._up(skips, z, t)
        return m + (self.spread - 1.0) * (m - centre)

    def _raters_of(self, draws: Sequence[Draw], device: torch.device) -> Tensor | None:
        if not self.network.raters:
            return None
        raters = [draw.number % self.network.raters if self.rater is None else self.rater for draw in draws]
        return moved(torch.tensor(raters), device)

    def _scaled(self, z: Tensor, t: Tensor) -> tuple[Tensor, Scaling]:
        """z, which is 0 for the direct mean, and the coefficients, (1,) at a scalar t."""
        t = batch_times(t, z if t.ndim else z[:1])
        if self.direct:
            z = z.masked_fill(self.process.at_end(t).view(-1, 1, 1, 1), 0.0)
        return z, scaling(self.prediction, self.process, t, self.sigma_data.to(t.dtype))

    def _down(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        z, c = self._scaled(z, t)
        return self.network.down(rows(c.inp) * z, c.noise.float(), features)

    def _up(
        self,
        skips: Sequence[Tensor],
        z: Tensor,
        t: Tensor,
        latent: Sequence[Tensor] | None = None,
        raters: Tensor | None = None,
    ) -> Tensor:
        z, c = self._scaled(z, t)
        return self.mask_of(self.network.up(skips, c.noise.float(), z.shape[-2:], latent, raters).float(), z, c)

    def mask_of(self, raw: Tensor, z: Tensor, c: Scaling) -> Tensor:
        """m from the network's output, whose first channels it is in."""
        raw = raw[:, : channels_per_mask(self.prediction) * self.mask_channels]
        if c.out_eps is None:
            return rows(c.skip) * z + rows(c.out) * self._bounded(raw)
        raw, eps = raw.chunk(2, dim=1)
        return rows(c.skip) * z + rows(c.out) * self._bounded(raw) + rows(c.out_eps) * eps

    def _bounded(self, raw: Tensor) -> Tensor:
        if self.limit is None:
            return raw
        return torch.tanh(raw) * self.limit / self.sigma_data


def build_denoiser(
    process: Process,
    prediction: str,
    image_channels: int,
    mask_channels: int,
    sizes: Sizes,
    encoder_sizes: Sizes,
    *,
    encoder_kind: str = "unet",
    pretrained: Pretrained | None = None,
    second_moment: bool = False,
    masks: bool = False,
    distribution: bool = False,
    raters: int = 0,
    **options: Any,
) -> Denoiser:
    """A denoiser; `options` are those of `Denoiser`.

    encoder_kind: unet; rrdb (models/rrdb.py), which has blocks and channels only; or timm, `pretrained`, which has
    channels only (models/pyramid.py).
    raters: that the network knows apart, 0 for none.
    """
    width, outputs = 4 * sizes.channels, channels_per_mask(prediction) + second_moment + masks
    latent = latent_channels(sizes.scales) if distribution else []
    trunk = Trunk(mask_channels, sizes, embedding=width, latent=latent)
    encoder: nn.Module
    if encoder_kind == "rrdb":
        encoder = RRDBEncoder(image_channels, encoder_sizes.channels, encoder_sizes.blocks, trunk)
    elif encoder_kind == "timm":
        encoder = PyramidEncoder(image_channels, pretrained or Pretrained(), encoder_sizes.channels, trunk)
    else:
        encoder = ImageEncoder(Trunk(image_channels, encoder_sizes), trunk.widths)
    network = ConditionalUNet(trunk, width, outputs * mask_channels, raters=raters)
    options |= {"second_moment": second_moment, "masks": masks, "distribution": distribution}
    return Denoiser(process, prediction, encoder, network, mask_channels, **options)
