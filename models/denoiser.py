"""Between network and process: D(z, t | x) ~ E[m | z_t, x] from a raw network by input and output scaling.

Every prediction type is a row of one table: D = c_skip z + c_out F(c_in z, c_noise, features).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.rrdb import RRDBEncoder
from models.unet import ConditionalUNet, ImageEncoder, Trunk
from sde.process import Process

Prediction = Literal["edm", "x", "eps", "v", "velocity", "both", "score", "score_raw"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


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


class Denoiser(nn.Module):
    """The conditional posterior mean, the one object that losses and samplers need.

    sigma_data: root mean square of m over the training data; kept in the state dict.
    limit: for predictions of m itself, the raw output passes through tanh and |m| stays below this; None: no bound.
    """

    sigma_data: Tensor

    def __init__(
        self,
        process: Process,
        prediction: str,
        encoder: nn.Module,
        network: ConditionalUNet,
        sigma_data: float = 0.5,
        limit: float | None = None,
    ) -> None:
        super().__init__()
        self.limit = limit
        self.process = process
        self.prediction = prediction
        self.encoder = encoder
        self.network = network
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data)))

    @property
    def mask_channels(self) -> int:
        """K, the SDF channels of m: one for each class."""
        return self.network.out_channels // channels_per_mask(self.prediction)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Features of images (B, C, H, W) in [-1, 1], to be computed once and passed to every evaluation."""
        return self.encoder(image)

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        """E[m | z_t = z, x], (B, K, H, W) float32, for z (B, K, H, W) and t a scalar or (B,)."""
        # float64 for the time algebra, except on MPS, which has none.
        wide = torch.float32 if z.device.type == "mps" else torch.float64
        t = t.to(wide).to(z.device).expand(z.shape[0])
        c = scaling(self.prediction, self.process, t, self.sigma_data.to(t.dtype))
        inp, skip, out = (x.float().view(-1, 1, 1, 1) for x in (c.inp, c.skip, c.out))
        raw = self.network(inp * z, c.noise.float(), features).float()
        if c.out_eps is None:
            return skip * z + out * self._bounded(raw)
        raw, eps = raw.chunk(2, dim=1)
        return skip * z + out * self._bounded(raw) + c.out_eps.float().view(-1, 1, 1, 1) * eps

    def _bounded(self, raw: Tensor) -> Tensor:
        if self.limit is None:
            return raw
        return torch.tanh(raw) * self.limit / self.sigma_data


def build_denoiser(
    process: Process,
    prediction: str,
    *,
    image_channels: int,
    mask_channels: int = 1,
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    attention: Sequence[int],
    encoder_kind: str = "unet",
    encoder_channels: int,
    encoder_multipliers: Sequence[int],
    encoder_blocks: int,
    encoder_attention: Sequence[int],
    dropout: float,
    sigma_data: float = 0.5,
    limit: float | None = None,
) -> Denoiser:
    """A denoiser from sizes; see `Trunk` for their meaning.

    encoder_kind: unet, or rrdb (models/rrdb.py), which has blocks and channels only.
    """
    width = 4 * channels
    trunk = Trunk(mask_channels, channels, multipliers, blocks, attention, embedding=width, dropout=dropout)
    encoder: nn.Module
    if encoder_kind == "rrdb":
        encoder = RRDBEncoder(image_channels, encoder_channels, encoder_blocks, trunk.widths)
    else:
        encoder_trunk = Trunk(
            image_channels, encoder_channels, encoder_multipliers, encoder_blocks, encoder_attention, dropout=dropout
        )
        encoder = ImageEncoder(encoder_trunk, trunk.widths)
    network = ConditionalUNet(trunk, width, mask_channels * channels_per_mask(prediction))
    return Denoiser(process, prediction, encoder, network, sigma_data, limit)
