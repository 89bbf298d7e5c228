"""Samplers: from noise at t = 1 to a draw of m, all with one signature.

    sampler(denoise, process, noise, steps, ..., callback=None) -> m, (B, C, H, W)

denoise(z, t) is E[m | z_t = z] for a batch z (B, C, H, W) at the scalar time t (float64, 0-d); noise() gives the
next N(0, I) of every draw; `steps` counts network evaluations. callback(z, t) sees every iterate divided by alpha.
The state is kept in float64 where few large steps are taken, as the update z += (small) D then loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde.process import Process

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
Callback = Callable[[Tensor, Tensor], None]


def score_of(denoised: Tensor, z: Tensor, alpha: float, sigma: float) -> Tensor:
    """grad log p_t(z) from E[m | z] (Tweedie)."""
    return (alpha * denoised - z) / sigma**2


def draw_norm(x: Tensor) -> Tensor:
    """L2 norm of every draw on its own, (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * (x.ndim - 1))


def accurate(x: Tensor) -> Tensor:
    """x in float64 where the device has it (MPS does not)."""
    return x if x.device.type == "mps" else x.double()


def time_grid(process: Process, intervals: int) -> Tensor:
    """intervals + 1 times from 1 down to t_min, even in t (Algorithm 1)."""
    return torch.linspace(1.0, process.t_min, intervals + 1, dtype=torch.float64)


def noise_ratio_grid(process: Process, points: int, rho: float = 7.0) -> Tensor:
    """`points` noise ratios from that of t = 1 down to that of t_min, even in ratio^(1/rho) (EDM eq. 5)."""
    if points == 0:
        return torch.empty(0, dtype=torch.float64)
    ends = process.noise_ratio(torch.tensor([1.0, process.t_min], dtype=torch.float64)) ** (1.0 / rho)
    return torch.lerp(ends[0], ends[1], torch.linspace(0.0, 1.0, points, dtype=torch.float64)) ** rho


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
    times = time_grid(process, predictor_steps)
    z = process.prior(noise())  # line 2
    for k in range(predictor_steps):  # line 3
        last = denoise_last and k == predictor_steps - 1
        z = _predict(denoise, process, z, noise(), times[k], times[k + 1], last and corrector_steps == 0)
        for j in range(corrector_steps):  # line 6
            z = _correct(denoise, process, z, noise(), times[k + 1], r, last and j == corrector_steps - 1)
        if callback is not None:
            callback(z / process.alpha(times[k + 1]).item(), times[k + 1])
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


@torch.no_grad()
def heun(
    denoise: Denoise,
    process: Process,
    noise: Noise,
    steps: int,
    *,
    rho: float = 7.0,
    callback: Callback | None = None,
) -> Tensor:
    """Probability-flow ODE by Heun's rule on a rho grid of noise ratios, ending at ratio 0 (EDM Algorithm 1).

    With u = z / alpha and ratio s = sigma / alpha every process has the same ODE, du/ds = (u - D) / s.
    A Heun step costs two evaluations and the last step, to s = 0, one; for an even number of `steps` the first
    step, where D hardly changes, is an Euler step too. One evaluation is the direct posterior mean at t = 1.
    Raises ValueError if steps < 1.
    """
    if steps < 1:
        raise ValueError(f"heun needs at least one evaluation, not {steps}")
    euler_first = steps % 2 == 0
    ratios = noise_ratio_grid(process, (steps + 1) // 2 + euler_first, rho)
    times = process.time_of_noise_ratio(ratios)
    alphas = process.alpha(times)
    ratios = torch.cat([ratios, ratios.new_zeros(1)])
    u = accurate(process.prior(noise())) / alphas[0].item()

    def slope(u: Tensor, i: int) -> Tensor:
        z = (alphas[i].item() * u).float()
        return (u - denoise(z, times[i])) / ratios[i].item()

    for i in range(len(times)):
        step = (ratios[i + 1] - ratios[i]).item()
        d = slope(u, i)
        if not (i == len(times) - 1 or (i == 0 and euler_first)):
            d = 0.5 * (d + slope(u + step * d, i + 1))
        u = u + step * d
        if callback is not None:
            callback(u.float(), times[min(i + 1, len(times) - 1)])
    return u.float()
