"""The paper's sampler, Algorithm 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde.grids import time_grid
from sde.process import Process
from sde.samplers import Callback, Denoise, Noise, score_of


def draw_norm(x: Tensor) -> Tensor:
    """L2 norm of every draw on its own, (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * (x.ndim - 1))


@torch.no_grad()
def predictor_corrector(
    denoise: Denoise,
    process: Process,
    noise: Noise,
    steps: int,
    *,
    corrector_steps: int = 1,
    r: float = 0.15,
    denoise_last: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Algorithm 1 of the paper, for any process: K = steps / (1 + corrector_steps) predictor steps.

    For VE (alpha = 1) the predictor is line 5 to the letter; otherwise it is the same step taken on z / alpha.
    Norms in line 9 are those of each draw. `denoise_last` leaves out the noise of the very last update, as the
    released code does; Algorithm 1 keeps it.
    Raises ValueError if `steps` is not a multiple of 1 + corrector_steps.
    """
    if steps < 1 or steps % (1 + corrector_steps):
        raise ValueError(f"{steps} evaluations cannot be split into steps of 1 predictor + {corrector_steps} corrector")
    predictor_steps = steps // (1 + corrector_steps)
    times = time_grid(process, predictor_steps + 1)
    z = process.prior(noise())  # line 2

    def show(z: Tensor, t: Tensor) -> None:
        if callback is not None:
            callback(z / process.alpha(t).item(), process.noise_ratio(t).item())

    show(z, times[0])
    for k in range(predictor_steps):  # line 3
        last = denoise_last and k == predictor_steps - 1
        z = _predict(denoise, process, z, noise(), times[k], times[k + 1], last and corrector_steps == 0)
        for j in range(corrector_steps):  # line 6
            z = _correct(denoise, process, z, noise(), times[k + 1], r, last and j == corrector_steps - 1)
        show(z, times[k + 1])
    return z / process.alpha(times[-1]).item()


def _predict(
    denoise: Denoise, process: Process, z: Tensor, eps: Tensor, t: Tensor, t_next: Tensor, noise_free: bool
) -> Tensor:
    """Line 5 of Algorithm 1 from t down to t_next."""
    alpha, sigma = process.alpha(t).item(), process.sigma(t).item()
    scale = process.alpha(t_next).item() / alpha
    # sigma_{k+1}^2 - sigma_k^2 for VE.
    variance = sigma**2 - (process.sigma(t_next).item() / scale) ** 2
    mean = scale * (z + variance * score_of(denoise(z, t), z, alpha, sigma))
    return mean if noise_free else mean + scale * math.sqrt(variance) * eps


def _correct(
    denoise: Denoise, process: Process, z: Tensor, eps: Tensor, t: Tensor, r: float, noise_free: bool
) -> Tensor:
    """Lines 8 to 10: one Langevin step whose size is set for each draw."""
    g = score_of(denoise(z, t), z, process.alpha(t).item(), process.sigma(t).item())  # line 8
    step = 2.0 * (r * draw_norm(eps) / draw_norm(g).clamp_min(1e-12)) ** 2  # line 9
    mean = z + step * g
    return mean if noise_free else mean + torch.sqrt(2.0 * step) * eps  # line 10
