"""Where samplers evaluate: times from t_max down to t_min."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sde.process import Process

Grid = Callable[[Process, int], Tensor]


def _ends(process: Process) -> Tensor:
    return torch.tensor([process.t_max, process.t_min], dtype=torch.float64)


def time_grid(process: Process, points: int) -> Tensor:
    """`points` times from t_max down to t_min, even in t (Algorithm 1)."""
    ends = _ends(process)
    return torch.lerp(ends[0], ends[1], torch.linspace(0.0, 1.0, points, dtype=torch.float64))


def rho_grid(process: Process, points: int, rho: float = 7.0) -> Tensor:
    """`points` times from t_max down to t_min, even in (sigma / alpha)^(1/rho) (Karras et al. 2022, eq. 5)."""
    ends = process.noise_ratio(_ends(process)) ** (1.0 / rho)
    even = torch.lerp(ends[0], ends[1], torch.linspace(0.0, 1.0, points, dtype=torch.float64))
    return process.time_of_noise_ratio(even**rho)


def logsnr_grid(process: Process, points: int) -> Tensor:
    """`points` times from t_max down to t_min, even in log-SNR."""
    ends = process.logsnr(_ends(process))
    even = torch.lerp(ends[0], ends[1], torch.linspace(0.0, 1.0, points, dtype=torch.float64))
    return process.time_of_noise_ratio(torch.exp(-0.5 * even))
