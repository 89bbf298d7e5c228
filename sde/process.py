"""Diffusion processes: z_t = alpha(t) m + sigma(t) eps, with eps ~ N(0, I) and t from 0 (data) to 1 (prior).

A process is its pair (alpha, sigma); drift, diffusion and the signal-to-noise ratio follow from it.
All methods take t of any shape and return its shape, in t's dtype; float64 is the safe choice for time grids.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Process(ABC):
    """The forward SDE dz = f(t) z dt + g(t) dw, given by its marginals.

    t_min is where sampling ends and training begins: the noise left there is sigma(t_min). t_max is where sampling
    starts; it is 1 unless alpha(1) = 0, as everything is computed in z / alpha.
    """

    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data in z_t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in z_t."""

    @abstractmethod
    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d log(alpha) / dt."""

    @abstractmethod
    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g(t)^2 = d(sigma^2)/dt - 2 f sigma^2."""

    @abstractmethod
    def time_of_noise_ratio(self, ratio: Tensor) -> Tensor:
        """The t at which sigma(t) / alpha(t) equals `ratio`."""

    def noise_ratio(self, t: Tensor) -> Tensor:
        """sigma(t) / alpha(t): the noise level once z_t is divided by alpha, as in a VE process."""
        return self.sigma(t) / self.alpha(t)

    def logsnr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2)."""
        return -2.0 * torch.log(self.noise_ratio(t))

    def residual_noise(self) -> float:
        """Noise that is left in m at the end of sampling, sigma(t_min) / alpha(t_min), in units of m."""
        return float(self.noise_ratio(torch.tensor(self.t_min, dtype=torch.float64)))

    def at_end(self, t: Tensor) -> Tensor:
        """Whether t is t_max, where nothing is left of the data, but for rounding."""
        return t >= self.t_max - 1e-6

    def prior(self, noise: Tensor) -> Tensor:
        """z at t_max from standard normal `noise`: the data's own contribution there is left out."""
        return noise * float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64)))


def prior_pull(process: Process, rms: float, size: Sequence[int]) -> float:
    """How far samplers may pull the mean of an image towards 0 at most, in standard deviations of its posterior.

    They start from N(0, s^2), s = sigma / alpha at t_max, as if nothing of m were left there. In orthonormal units an
    image's mean is one Gaussian mode, N(c, v) given x, with |c| <= sqrt(H W) rms. The reverse SDE leaves it at
    c - c v / (v + s^2): off by c sqrt(v) / (v + s^2) <= c / (2 s) standard deviations, whatever v is.
    rms: root mean square of m. size: (H, W).
    """
    start = float(process.noise_ratio(torch.tensor(process.t_max, dtype=torch.float64)))
    return math.sqrt(size[0] * size[1]) * rms / (2.0 * start)


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021; paper eq. 2-4)."""

    sigma_min: float = 1e-3
    sigma_max: float = 5.0
    t_min: float = 0.0
    t_max: float = 1.0

    @property
    def log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * self.log_ratio)

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        return 2.0 * self.log_ratio * self.sigma(t) ** 2

    def time_of_noise_ratio(self, ratio: Tensor) -> Tensor:
        return torch.log(ratio / self.sigma_min) / self.log_ratio


@dataclass(frozen=True)
class VP(Process):
    """Variance preserving: linear beta(t) from beta_min to beta_max, alpha^2 + sigma^2 = 1 (Song et al. 2021)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-4
    t_max: float = 1.0

    def _integral(self, t: Tensor) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def drift(self, t: Tensor) -> Tensor:
        return -0.5 * self.diffusion_squared(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def time_of_noise_ratio(self, ratio: Tensor) -> Tensor:
        # sigma^2 / alpha^2 = exp(B) - 1, and B is quadratic in t.
        integral = torch.log1p(ratio**2)
        slope = self.beta_max - self.beta_min
        if slope == 0:
            return integral / self.beta_min
        return 2.0 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2.0 * slope * integral))


@dataclass(frozen=True)
class Schedule:
    """A curve gamma(t) = alpha^2 of a variance-preserving process, from about 1 at t = 0 to about 0 at t = 1.

    rest: 1 - gamma, where the difference would cost accuracy. slope: d gamma / dt. inverse: t of gamma.
    """

    gamma: Callable[[Tensor], Tensor]
    rest: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


_HALF_PI = 0.5 * math.pi

# Nichol & Dhariwal 2021; DDPM's linear beta in continuous time; Chen 2023; the ambiguous-segmentation paper's code.
SCHEDULES: dict[str, Schedule] = {
    "cosine": Schedule(
        lambda t: torch.cos(_HALF_PI * t) ** 2,
        lambda t: torch.sin(_HALF_PI * t) ** 2,
        lambda t: -_HALF_PI * torch.sin(math.pi * t),
        lambda gamma: torch.acos(torch.sqrt(gamma)) / _HALF_PI,
    ),
    "linear": Schedule(
        lambda t: torch.exp(-1e-4 - 10 * t**2),
        lambda t: -torch.expm1(-1e-4 - 10 * t**2),
        lambda t: -20 * t * torch.exp(-1e-4 - 10 * t**2),
        lambda gamma: torch.sqrt((-torch.log(gamma) - 1e-4).clamp(min=0) / 10),
    ),
    "linear_simple": Schedule(lambda t: 1 - t, lambda t: t, lambda t: -torch.ones_like(t), lambda gamma: 1 - gamma),
    "parabola": Schedule(
        lambda t: (1 - t**2) ** 2,
        lambda t: t**2 * (2 - t**2),
        lambda t: -4 * t * (1 - t**2),
        lambda gamma: torch.sqrt((1 - torch.sqrt(gamma)).clamp(min=0)),
    ),
}


@dataclass(frozen=True)
class ScheduledVP(Process):
    """Variance preserving along a schedule, with input scaling b (ambiguous-segmentation paper).

    b < 1 adds 2 ln b to the log-SNR at every time: noisier, as masks need it, which large objects betray even at much
    noise. alpha^2 is then mapped linearly so that the log-SNR runs from 20 to -20 exactly.
    """

    schedule: str = "cosine"
    input_scale: float = 1.0
    t_min: float = 0.0
    t_max: float = 1.0

    @property
    def curve(self) -> Schedule:
        return SCHEDULES[self.schedule]

    def _scaled(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gamma with log-SNR + 2 ln b, 1 minus it, and its derivative in t."""
        b2 = self.input_scale**2
        gamma, rest = self.curve.gamma(t), self.curve.rest(t)
        norm = b2 * gamma + rest
        return b2 * gamma / norm, rest / norm, b2 * self.curve.slope(t) / norm**2

    def _map(self) -> tuple[float, float, float]:
        """(stretch, low, high) of alpha^2 = stretch gamma + low and sigma^2 = stretch (1 - gamma) + high."""
        ends = self._scaled(torch.tensor([0.0, 1.0], dtype=torch.float64))
        first, last = ends[0].tolist()
        least = 1.0 / (1.0 + math.exp(20.0))
        stretch = (1.0 - 2.0 * least) / (first - last)
        return stretch, least - stretch * last, least - stretch * ends[1][0].item()

    def alpha(self, t: Tensor) -> Tensor:
        stretch, low, _ = self._map()
        return torch.sqrt((stretch * self._scaled(t)[0] + low).clamp(min=1e-9))

    def sigma(self, t: Tensor) -> Tensor:
        stretch, _, high = self._map()
        return torch.sqrt((stretch * self._scaled(t)[1] + high).clamp(min=1e-9))

    def drift(self, t: Tensor) -> Tensor:
        return -0.5 * self.diffusion_squared(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        return -self._map()[0] * self._scaled(t)[2] / self.alpha(t) ** 2  # g^2 = -d log(alpha^2)/dt

    def time_of_noise_ratio(self, ratio: Tensor) -> Tensor:
        stretch, low, _ = self._map()
        gamma = (1.0 / (1.0 + ratio**2) - low) / stretch
        unscaled = gamma / (gamma + self.input_scale**2 * (1.0 - gamma))
        return self.curve.inverse(unscaled.clamp(0.0, 1.0)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class OTFlow(Process):
    """Optimal-transport path of flow matching: alpha = 1 - t, sigma = sigma_min + (1 - sigma_min) t (FlowSDF)."""

    sigma_min: float = 1e-3
    t_min: float = 0.0
    t_max: float = 1.0 - 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min + (1.0 - self.sigma_min) * t

    def drift(self, t: Tensor) -> Tensor:
        return -1.0 / (1.0 - t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return 2.0 * sigma * (1.0 - self.sigma_min) + 2.0 * sigma**2 / (1.0 - t)

    def time_of_noise_ratio(self, ratio: Tensor) -> Tensor:
        return (ratio - self.sigma_min) / (ratio + 1.0 - self.sigma_min)
