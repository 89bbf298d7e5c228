"""Denoising score matching in terms of the denoiser (paper, eq. 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sde.process import Process


@dataclass(frozen=True)
class Weighting:
    """w(t) of the loss w(t) |D - m|^2, with SNR = (alpha / sigma)^2.

    score         SNR, eq. 4: sigma^2 |s - grad log p_0t|^2; the plain loss of eps
    uniform       1 / sigma_data^2, the plain loss of x
    edm           SNR + 1 / sigma_data^2, unit loss at initialisation for every t (Karras et al. 2022, table 1)
    snr_plus_one  SNR + 1, the plain loss of v where alpha^2 + sigma^2 = 1 (Salimans & Ho 2022)
    max_snr_one   max(SNR, 1), their truncated SNR
    min_snr       min(SNR, 5) (Hang et al. 2023)
    sigmoid       sigmoid(log-SNR - shift) (Kingma & Gao 2023, in terms of x)
    velocity      (alpha g^2 / (2 sigma^2))^2, the plain loss of dz/dt; 1 / sigma^2 on the OT path (flow matching)

    per_logsnr: times -d log-SNR / dt, so that the loss is an integral over log-SNR whatever the schedule.
    """

    name: str = "score"
    shift: float = 4.0
    per_logsnr: bool = False

    def __call__(self, process: Process, t: Tensor, sigma_data: float | Tensor) -> Tensor:
        """The weight, of the shape of t. Raises ValueError for an unknown name."""
        speed = process.diffusion_squared(t) / process.sigma(t) ** 2  # -d log-SNR / dt
        if self.name == "velocity":
            w = (process.alpha(t) * 0.5 * speed) ** 2
        else:
            w = self._plain(process.noise_ratio(t) ** -2, sigma_data)
        return w * speed if self.per_logsnr else w

    def _plain(self, snr: Tensor, sigma_data: float | Tensor) -> Tensor:
        weights: dict[str, Callable[[], Tensor]] = {
            "score": lambda: snr,
            "uniform": lambda: torch.ones_like(snr) * sigma_data**-2,
            "edm": lambda: snr + sigma_data**-2,
            "snr_plus_one": lambda: snr + 1.0,
            "max_snr_one": lambda: snr.clamp(min=1.0),
            "min_snr": lambda: snr.clamp(max=5.0),
            "sigmoid": lambda: torch.sigmoid(torch.log(snr) - self.shift),
        }
        if self.name not in weights:
            raise ValueError(f"unknown weighting {self.name!r}; one of {', '.join([*weights, 'velocity'])}")
        return weights[self.name]()


def sample_times(count: int, process: Process, generator: torch.Generator, prior_share: float = 0.0) -> Tensor:
    """(count,) float64 times, uniform on [t_min, t_max] and stratified: one in each of `count` equal parts, shuffled.

    prior_share: the share of times that are set to t_max, where the denoiser is E[m | x]; 1 for all. They are evenly
    spread over the rows, from a random start, so that several noises of an image have equal numbers of them.
    """
    offsets = torch.rand(count, generator=generator, dtype=torch.float64)
    parts = torch.randperm(count, generator=generator)
    t = process.t_min + (process.t_max - process.t_min) * (parts + offsets) / count
    reached = torch.floor(torch.arange(count + 1) * prior_share + torch.rand(1, generator=generator).double())
    at_prior = reached.diff() > 0
    return torch.where(at_prior, torch.full_like(t, process.t_max), t)


def perturbed(process: Process, m: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """z_t = alpha m + sigma eps for m, eps (B, K, H, W) and t (B,)."""
    shape = (-1, *[1] * (m.ndim - 1))
    return process.alpha(t).to(m.dtype).view(shape) * m + process.sigma(t).to(m.dtype).view(shape) * eps


def weight_of(process: Process, t: Tensor, weighting: Weighting, sigma_data: float | Tensor) -> Tensor:
    """Of a squared error of D, of the shape of t. At t_max, where D is the regression of m on x and some weightings
    vanish, it is 1 / sigma_data^2."""
    weight = weighting(process, t, sigma_data)
    return torch.where(process.at_end(t), torch.ones_like(weight) * sigma_data**-2, weight)


def denoising_loss(
    denoised: Tensor, process: Process, m: Tensor, t: Tensor, weighting: Weighting, sigma_data: float | Tensor
) -> Tensor:
    """Weighted squared error of D at z_t, a mean over pixels for each element, (B,).

    denoised, m: (B, K, H, W); t: (B,).
    """
    error = (denoised - m).square().flatten(1).mean(dim=1)
    return weight_of(process, t, weighting, sigma_data).to(error.dtype) * error


ALPHA = 0.95  # of the almost fair CRPS
CELLS = 8  # a side, of the pooled SDFs in the energy score


def energy_loss(one: Tensor, two: Tensor, m: Tensor, shares: Tensor | None = None) -> Tensor:
    """How well two draws stand for the law of m: a strictly proper score, a mean over scales for each element, (B,).

    The almost fair CRPS (Lang et al. 2024, eq. 4) of pixels and of means over 2x2, 4x4, ... up to all pixels, and the
    energy score of means over 8x8 parts (Gneiting & Raftery 2007), whose norm is a root mean square. The fair form does
    not reward draws for being alike; a little of the other keeps it from being blind to two equal errors.
    one, two, m: (B, K, H, W). shares (B, R): m is (B, R, K, H, W) then, several draws of the truth, and the score,
    being linear in the truth's law, the mean of their scores by these shares, which add up to 1.
    """
    share = 1.0 - (1.0 - ALPHA) / 2
    truths = [m] if shares is None else list(m.unbind(dim=1))

    def score(distance: Callable[[Tensor, Tensor], Tensor], parts: list[Tensor]) -> Tensor:
        a, b, *each = parts
        apart = torch.stack([distance(a, truth) + distance(b, truth) for truth in each], dim=1)
        apart = apart.sum(dim=1) if shares is None else (apart * shares).sum(dim=1)
        return 0.5 * apart - 0.5 * share * distance(a, b)

    def absolute(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).mean(dim=1)

    def norm(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().flatten(1).mean(dim=1) + 1e-8).sqrt()

    scales = [[one, two, *truths]]
    while max(scales[-1][0].shape[-2:]) > 1:
        scales.append([F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in scales[-1]])
    scores = [score(absolute, parts) for parts in scales]
    scores.append(score(norm, [F.adaptive_avg_pool2d(x, CELLS) for x in scales[0]]))
    return torch.stack(scores).mean(dim=0)


def second_moment_loss(variance: Tensor, mean: Tensor, m: Tensor, sigma_data: float | Tensor) -> Tensor:
    """Squared error of Var[m | x] against the squared residual of the mean, in units of sigma_data^2, (B,).

    Its minimiser is E[(m - mean)^2 | x]. The mean gets no gradient. All (B, K, H, W).
    """
    residual = (m - mean.detach()).square()
    return ((variance - residual) / sigma_data**2).square().flatten(1).mean(dim=1)
