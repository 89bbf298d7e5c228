"""Denoising score matching in terms of the denoiser (paper, eq. 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from sde.process import Process

Weighting = Literal["score", "uniform", "edm"]
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)


def weight(weighting: str, process: Process, t: Tensor, sigma_data: float | Tensor) -> Tensor:
    """w(t) of the loss w(t) |D - m|^2, of the shape of t.

    score    eq. 4: sigma^2 |s - grad log p_0t|^2 = (alpha / sigma)^2 |D - m|^2
    uniform  the plain error of the posterior mean, in units of sigma_data^2
    edm      unit loss at initialisation for every t (Karras et al. 2022, table 1)
    """
    inverse_ratio_squared = process.noise_ratio(t) ** -2
    if weighting == "score":
        return inverse_ratio_squared
    if weighting == "uniform":
        return torch.ones_like(t) * sigma_data**-2
    if weighting == "edm":
        return inverse_ratio_squared + sigma_data**-2
    raise ValueError(f"unknown weighting {weighting!r}; one of {', '.join(WEIGHTINGS)}")


def sample_times(count: int, process: Process, generator: torch.Generator, prior_share: float = 0.0) -> Tensor:
    """(count,) float64 times, uniform on [t_min, t_max] and stratified: one in each of `count` equal parts, shuffled.

    prior_share: the expected share of times that are set to t_max, where the denoiser is E[m | x].
    """
    offsets = torch.rand(count, generator=generator, dtype=torch.float64)
    parts = torch.randperm(count, generator=generator)
    t = process.t_min + (process.t_max - process.t_min) * (parts + offsets) / count
    at_prior = torch.rand(count, generator=generator) < prior_share
    return torch.where(at_prior, torch.full_like(t, process.t_max), t)


def denoising_loss(
    denoise: Callable[[Tensor, Tensor], Tensor],
    process: Process,
    m: Tensor,
    t: Tensor,
    eps: Tensor,
    weighting: str,
    sigma_data: float | Tensor,
) -> Tensor:
    """Weighted squared error of D at z_t = alpha m + sigma eps, a mean over pixels for each element, (B,).

    m, eps: (B, C, H, W); t: (B,).
    """
    shape = (-1, *[1] * (m.ndim - 1))
    z = process.alpha(t).to(m.dtype).view(shape) * m + process.sigma(t).to(m.dtype).view(shape) * eps
    error = (denoise(z, t) - m).square().flatten(1).mean(dim=1)
    return weight(weighting, process, t, sigma_data).to(error.dtype) * error
