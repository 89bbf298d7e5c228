"""Denoising score matching in terms of the denoiser (paper, eq. 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

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
EDGE = 2.0  # pixels from a border to where soft masks are 0 or 1
DRAWN = 2.0  # what the score of the draws' masks counts beside the cross entropy


def almost_fair_score(
    distance: Callable[[Tensor, Tensor], Tensor], draws: Sequence[Tensor], truths: Sequence[Tensor], shares: Tensor
) -> Tensor:
    """Draws against the truth by the almost fair energy score of a distance (Lang et al. 2024, eq. 4), (B,).

    The fair form does not reward draws for being alike; a little of the other keeps it from being blind to two equal
    errors. shares (B, R): what each of R truths counts, together 1; the score is linear in the truth's law.
    """
    apart = torch.stack([torch.stack([distance(draw, truth) for draw in draws]).mean(dim=0) for truth in truths], dim=1)
    alike = torch.stack([distance(*pair) for pair in combinations(draws, 2)]).mean(dim=0)
    return (apart * shares).sum(dim=1) - 0.5 * (1.0 - (1.0 - ALPHA) / len(draws)) * alike


def absolute(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of each element, (B,)."""
    return (a - b).abs().flatten(1).mean(dim=1)


def root_mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Of the difference of each element, (B,)."""
    return ((a - b).square().flatten(1).mean(dim=1) + 1e-8).sqrt()


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """1 - IoU of soft masks (B, K, H, W) in [0, 1], a mean over classes, (B,).

    Of sums of the smaller and of the greater value (Ruzicka 1958), whose kernel is positive definite: the energy score
    of this distance is proper. One pixel that is in every mask makes two empty ones equal.
    """
    both, either = (f(a, b).flatten(2).sum(dim=2) for f in (torch.minimum, torch.maximum))
    return ((either - both) / (either + 1.0)).mean(dim=1)


def _law(m: Tensor, shares: Tensor | None) -> tuple[Sequence[Tensor], Tensor]:
    """The truths (B, K, H, W), and what each counts, (B, R), of m as `energy_loss` takes it."""
    return ([m], m.new_ones((len(m), 1))) if shares is None else (m.unbind(dim=1), shares)


def _crps_of_means(draws: Sequence[Tensor], truths: Sequence[Tensor], shares: Tensor) -> list[Tensor]:
    """The almost fair CRPS of pixels and of means over 2x2, 4x4, ... up to all pixels, each (B,)."""
    scores, cell = [], 1
    while cell < 2 * max(draws[0].shape[-2:]):
        means = partial(F.avg_pool2d, kernel_size=cell, ceil_mode=True, count_include_pad=False)
        scores.append(almost_fair_score(absolute, [means(x) for x in draws], [means(x) for x in truths], shares))
        cell *= 2
    return scores


def energy_loss(draws: Sequence[Tensor], m: Tensor, shares: Tensor | None = None) -> Tensor:
    """How well draws stand for the law of m: a strictly proper score for each element, in the units of m, (B,).

    A mean of the almost fair CRPS of pixels and of means over 2x2, 4x4, ... up to all pixels, and of the energy score
    of means over 8x8 parts (Gneiting & Raftery 2007), whose norm is a root mean square.
    draws: two or more; they and m (B, K, H, W).
    shares (B, R): m is (B, R, K, H, W) then, several draws of the truth, and the score the mean of their scores by
    these shares.
    """
    truths, weights = _law(m, shares)
    parts = partial(F.adaptive_avg_pool2d, output_size=CELLS)
    of_parts = almost_fair_score(root_mean_square, [parts(x) for x in draws], [parts(x) for x in truths], weights)
    return torch.stack([of_parts, *_crps_of_means(draws, truths, weights)]).mean(dim=0)


def soft_mask(sdf: Tensor, pixel: float) -> Tensor:
    """1 inside, 0 outside, falling along a line for EDGE pixels on either side of the border. pixel: the SDF of one."""
    return (0.5 - sdf / (2 * EDGE * pixel)).clamp(0.0, 1.0)


def mask_loss(
    logits: Tensor, draws: Sequence[Tensor], m: Tensor, shares: Tensor | None = None, pixel: float = 1.0
) -> Tensor:
    """What an SDF's error far from borders hides: how well logits and draws stand for the mask of m, (B,).

    The cross entropy of the logits (B, K, H, W), in nats; and, with draws, DRAWN times the almost fair CRPS of their
    soft masks at all scales of `energy_loss`: threshold-weighted (Gneiting & Ranjan 2011), so still proper. Its coarse
    scales are areas.
    m, shares, draws (none, or two or more): as for `energy_loss`. pixel: the SDF of one, in units of m.
    """
    truths, weights = _law(m, shares)
    inside = torch.einsum("rbkhw,br->bkhw", torch.stack([(x <= 0).to(logits.dtype) for x in truths]), weights)
    entropy = F.binary_cross_entropy_with_logits(logits, inside, reduction="none").flatten(1).mean(dim=1)
    if not draws:
        return entropy
    masks, true = ([soft_mask(x, pixel) for x in of] for of in (draws, truths))
    return entropy + DRAWN * torch.stack(_crps_of_means(masks, true, weights)).mean(dim=0)


def overlap_loss(draws: Sequence[Tensor], m: Tensor, shares: Tensor | None = None, pixel: float = 1.0) -> Tensor:
    """The almost fair energy score of the soft masks of draws whose distance is `jaccard`, by which a small object
    counts as much as a large one, (B,). Arguments as for `mask_loss`."""
    truths, weights = _law(m, shares)
    masks, true = ([soft_mask(x, pixel) for x in of] for of in (draws, truths))
    return almost_fair_score(jaccard, masks, true, weights)


def second_moment_loss(variance: Tensor, mean: Tensor, m: Tensor, sigma_data: float | Tensor) -> Tensor:
    """Squared error of Var[m | x] against the squared residual of the mean, in units of sigma_data^2, (B,).

    Its minimiser is E[(m - mean)^2 | x]. The mean gets no gradient. All (B, K, H, W).
    """
    residual = (m - mean.detach()).square()
    return ((variance - residual) / sigma_data**2).square().flatten(1).mean(dim=1)
