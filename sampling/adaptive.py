"""The probability-flow ODE by torchdiffeq's adaptive solver: slow, and as exact as asked for. A reference."""

from __future__ import annotations

import torch
from torch import Tensor

from sde.process import Process
from sde.samplers import Callback, Denoise, Noise, accurate
from utils.errors import UsageError


@torch.no_grad()
def adaptive(
    denoise: Denoise, process: Process, noise: Noise, *, tolerance: float = 1e-4, callback: Callback | None = None
) -> Tensor:
    """dopri5 on du / d log s = u - D, with u = z / alpha and s = sigma / alpha, then D at the end.

    In log s, as steps in s itself go wrong without a word. The solver shares its steps over a batch; a draw that must
    not depend on its batch needs one of its own (`max_batch_of`). Raises UsageError without torchdiffeq.
    """
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise UsageError("sampling.sampler: adaptive needs the package torchdiffeq: pip install torchdiffeq") from None
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    log_ends = torch.log(process.noise_ratio(ends))
    start = accurate(process.prior(noise())) / process.alpha(ends[0]).item()

    def denoised(log_s: Tensor, u: Tensor) -> Tensor:
        t = process.time_of_noise_ratio(torch.exp(log_s.double().cpu())).clamp(process.t_min, process.t_max)
        return denoise((process.alpha(t).item() * u).float(), t).to(u.dtype).contiguous()  # odeint views it flat

    path = odeint(
        lambda log_s, u: u - denoised(log_s, u),
        start,
        log_ends.to(start),
        rtol=tolerance,
        atol=tolerance,
        method="dopri5",
    )
    m = denoised(log_ends[1], path[-1]).float()
    if callback is not None:
        callback(start.float(), float(log_ends[0].exp()))
        callback(m, 0.0)
    return m
