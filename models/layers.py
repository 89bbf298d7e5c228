"""Blocks of the NCSN++ family (Song et al. 2021, appendix H): feature maps are (B, C, H, W)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RESCALE = 1.0 / math.sqrt(2.0)  # keeps the variance of a sum of two paths
LARGE = 2**19  # numbers in maps whose norms have a gradient of their own on CPUs


class NormOnCPU(torch.autograd.Function):
    """Group norm whose gradient is a few passes over the maps: torch's own takes half as long again for large ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        y, mean, rstd = torch.native_group_norm(x, weight, bias, len(x), x.shape[1], x[0, 0].numel(), groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        size = x.shape[1] // mean.shape[1]  # channels of a group

        def mean_of_group(sums: Tensor) -> Tensor:
            means = (weight * sums).unflatten(1, (-1, size)).sum(dim=2) / (size * x[0, 0].numel())
            return means.repeat_interleave(size, dim=1)

        # Of each map, (B, C): with y = weight * h + bias, sums of dy and of dy * h.
        mean, rstd = (per_group.repeat_interleave(size, dim=1) for per_group in (mean, rstd))
        sums = dy.sum(dim=(2, 3))
        sums_h = ((dy * x).sum(dim=(2, 3)) - mean * sums) * rstd
        of_x = -rstd.square() * mean_of_group(sums_h)
        constant = -rstd * mean_of_group(sums) - of_x * mean
        constant, of_x, of_dy = (c[:, :, None, None] for c in (constant, of_x, rstd * weight))
        dx = torch.addcmul(constant, x, of_x).addcmul_(dy, of_dy)
        return dx, sums_h.sum(dim=0), sums.sum(dim=0), None, None


class GroupNorm(nn.GroupNorm):
    """torch's, but for the gradient of large maps on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, self.weight, self.bias, self.num_groups)

    def scaled(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        """With another scale and shift, (C,), of x (B, C, H, W), which may have but some of the groups."""
        if torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= LARGE:
            return NormOnCPU.apply(x, weight, bias, groups, self.eps)
        return F.group_norm(x, groups, weight, bias, self.eps)


def group_norm(channels: int) -> GroupNorm:
    """Groups of at least four channels, 32 groups at most, as many as divide `channels`."""
    return GroupNorm(math.gcd(channels, min(32, max(1, channels // 4))), channels, eps=1e-6)


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Start as the zero map, so that a residual block starts as its shortcut."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def small_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Start with a tenth of the standard deviation of the input: noise that enters so changes little at first."""
    nn.init.normal_(layer.weight, std=0.1 / math.sqrt(layer.weight[0].numel()))
    return layer


def silu_(x: Tensor) -> Tensor:
    """SiLU; in place where no gradient is asked for: on a CPU fresh memory costs more than the function."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Dropout(nn.Dropout):
    """torch's; on a CPU by 16 random bits for each unit, of which one random number gives four."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits.as_strided(x.shape, torch.empty_like(x).stride()) >= round(self.p * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1.0 / (1.0 - self.p))


class FourierEmbedding(nn.Module):
    """Noise conditions (B,) or (B, conditions) to features (B, width): sines and cosines of each, two dense layers.

    The frequencies are geometric, 1/8 to 16 cycles per unit of the input.
    """

    frequencies: Tensor

    def __init__(self, width: int, frequencies: int = 32, conditions: int = 1) -> None:
        super().__init__()
        cycles = torch.logspace(-3.0, 4.0, frequencies, base=2.0)
        self.register_buffer("frequencies", 2.0 * math.pi * cycles, persistent=False)
        inputs = 2 * frequencies * conditions
        self.dense = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, condition: Tensor) -> Tensor:
        angles = (condition[..., None] * self.frequencies).flatten(1)
        return self.dense(torch.cat([angles.sin(), angles.cos()], dim=1))


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; resampling inside; the sum rescaled by 1/sqrt(2).

    resample: "down" halves the size (mean of 2x2), "up" doubles it (nearest), None keeps it.
    embedding: width of the time embedding that scales and shifts the second norm; 0 for none.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        embedding: int = 0,
        resample: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.modulation = nn.Linear(embedding, 2 * channels_out) if embedding else None
        self.dropout = Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        same = channels_in == channels_out
        self.shortcut: Any = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def _resize(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(self._resize(silu_(self.norm1(x))))
        # The cheaper order of the two: a 1x1 convolution and the repetition of pixels commute.
        up = self.resample == "up"
        shortcut = self._resize(self.shortcut(x)) if up else self.shortcut(self._resize(x))
        return self._second_half(h, shortcut, embedding)

    def of_skip(self, skip: Tensor) -> Tensor:
        """What `join` needs of a skip connection."""
        return skip

    def join(self, x: Tensor, of_skip: Tensor, embedding: Tensor | None) -> Tensor:
        """The block of what comes up and of a skip connection, concatenated."""
        return self(torch.cat([x, of_skip], dim=1), embedding)

    def _second_half(self, h: Tensor, shortcut: Tensor, embedding: Tensor | None) -> Tensor:
        if self.modulation is None or embedding is None:
            h = self.norm2(h)
        elif len(embedding) == 1:  # shared by the batch: a part of the norm
            scale, shift = self.modulation(embedding)[0].chunk(2)
            weight, bias = self.norm2.weight * (1.0 + scale), self.norm2.bias * (1.0 + scale) + shift
            h = self.norm2.scaled(h, weight, bias, self.norm2.num_groups)
        else:
            scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
            h = self.norm2(h)
            h = torch.addcmul(shift, h, 1.0 + scale) if torch.is_grad_enabled() else h.mul_(1.0 + scale).add_(shift)
        h = self.conv2(self.dropout(silu_(h)))
        return (shortcut + h).mul_(RESCALE)


class JoiningBlock(ResidualBlock):
    """A residual block of two maps (B, width, H, W), that which comes up and a skip connection, as if concatenated.

    Up to the sum of its first convolutions they do not meet, so what becomes of the skip connection is computed once
    for all maps that come up to it.
    """

    def __init__(self, width: int, *, embedding: int) -> None:
        super().__init__(2 * width, width, embedding=embedding)
        self.width = width
        # No group has channels of both; the groups of `group_norm` wherever 4 divides the width.
        self.norm1 = GroupNorm(2 * group_norm(width).num_groups, 2 * width, eps=1e-6)

    def of_skip(self, skip: Tensor) -> Tensor:
        """(B, 2 * width, H, W); of one image, it serves any number of maps."""
        return torch.cat(self._first_half(skip, slice(self.width, None), self.conv1.bias, self.shortcut.bias), dim=1)

    def join(self, x: Tensor, of_skip: Tensor, embedding: Tensor | None) -> Tensor:
        conv, shortcut = self._first_half(x, slice(self.width), None, None)
        skip_conv, skip_shortcut = of_skip.chunk(2, dim=1)
        return self._second_half(conv.add_(skip_conv), shortcut.add_(skip_shortcut), embedding)

    def _first_half(
        self, x: Tensor, part: slice, bias: Tensor | None, shortcut_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One map's share in the first convolution and in the shortcut."""
        norm = self.norm1
        h = norm.scaled(x, norm.weight[part], norm.bias[part], norm.num_groups // 2)
        h = F.conv2d(silu_(h), self.conv1.weight[:, part], bias, padding=1)
        return h, F.conv2d(x, self.shortcut.weight[:, part], shortcut_bias)


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions, as many heads of at least 64 channels as divide them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = next((n for n in range(channels // 64, 1, -1) if channels % n == 0), 1)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # (B, 3C, H, W) -> three of (B, heads, HW, C / heads)
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(-1, -2).reshape(batch, channels, height, width)
        return (x + self.out(h)) * RESCALE
