"""Samplers: from noise at t = 1 to a draw of m, all with one signature.

    sampler(denoise, process, noise, steps, ..., callback=None) -> m, (B, C, H, W)

denoise(z, t) is E[m | z_t = z] for a batch z (B, C, H, W) at the scalar time t (float64, 0-d); noise() gives the
next N(0, I) of every draw; `steps` counts network evaluations. callback(u, s) sees the start and every iterate as
u = z / alpha, with its noise s. Where few large steps are taken the state is float64, so that small changes add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sde.process import Process

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
Callback = Callable[[Tensor, float], None]


def score_of(denoised: Tensor, z: Tensor, alpha: float, sigma: float) -> Tensor:
    """grad log p_t(z) from E[m | z] (Tweedie)."""
    return (alpha * denoised - z) / sigma**2


def draw_norm(x: Tensor) -> Tensor:
    """L2 norm of every draw on its own, (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * (x.ndim - 1))


def accurate(x: Tensor) -> Tensor:
    """x in float64 where the device has it (MPS does not)."""
    return x if x.device.type == "mps" else x.double()


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


Grid = Callable[[Process, int], Tensor]


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


class _Scaled:
    """The frame u = z / alpha, s = sigma / alpha, in which every process is VE and du/ds = (u - D) / s.

    times: one per evaluation point; a last s = 0 is added, where the draw ends.
    """

    def __init__(self, denoise: Denoise, process: Process, times: Tensor) -> None:
        self.denoise, self.times = denoise, times
        self.alphas = process.alpha(times).tolist()
        self.ratios = [*process.noise_ratio(times).tolist(), 0.0]
        self.process = process

    def start(self, noise: Noise) -> Tensor:
        return accurate(self.process.prior(noise())) / self.alphas[0]

    def denoised(self, u: Tensor, i: int) -> Tensor:
        return self.denoise((self.alphas[i] * u).float(), self.times[i]).to(u.dtype)

    def show(self, callback: Callback | None, u: Tensor, i: int) -> None:
        if callback is not None:
            callback(u.float(), self.ratios[i])


def _at_least_one(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a draw needs at least one evaluation, not {steps}")


@torch.no_grad()
def heun(
    denoise: Denoise,
    process: Process,
    noise: Noise,
    steps: int,
    *,
    grid: Grid = rho_grid,
    callback: Callback | None = None,
) -> Tensor:
    """Probability-flow ODE by Heun's rule, ending at noise 0 (Karras et al. 2022, Algorithm 1).

    A Heun step costs two evaluations and the last step, to noise 0, one; for an even number of `steps` the first
    step, where D hardly changes, is an Euler step too. One evaluation is the direct posterior mean at t_max.
    Raises ValueError if steps < 1.
    """
    _at_least_one(steps)
    euler_first = steps % 2 == 0
    frame = _Scaled(denoise, process, grid(process, (steps + 1) // 2 + euler_first))
    s, last = frame.ratios, len(frame.times) - 1
    u = frame.start(noise)
    frame.show(callback, u, 0)
    for i in range(last + 1):
        d = (u - frame.denoised(u, i)) / s[i]
        if i < last and not (i == 0 and euler_first):
            u_next = u + (s[i + 1] - s[i]) * d
            d = 0.5 * (d + (u_next - frame.denoised(u_next, i + 1)) / s[i + 1])
        u = u + (s[i + 1] - s[i]) * d
        frame.show(callback, u, i + 1)
    return u.float()


@torch.no_grad()
def ddim(
    denoise: Denoise,
    process: Process,
    noise: Noise,
    steps: int,
    *,
    eta: float = 0.0,
    grid: Grid = time_grid,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12): eta = 0 is Euler's rule for the flow, eta = 1 ancestral DDPM sampling.

    For the OT path with eta = 0 it is the Euler step dm/dt = v(m, t) of flow matching.
    Raises ValueError if steps < 1.
    """
    _at_least_one(steps)
    frame = _Scaled(denoise, process, grid(process, steps))
    u = frame.start(noise)
    frame.show(callback, u, 0)
    for i, (s, s_next) in enumerate(pairwise(frame.ratios)):
        denoised = frame.denoised(u, i)
        fresh = eta * s_next * math.sqrt(max(0.0, 1.0 - (s_next / s) ** 2))  # eq. 16
        u = denoised + math.sqrt(s_next**2 - fresh**2) / s * (u - denoised)
        if fresh > 0:
            u = u + fresh * noise()
        frame.show(callback, u, i + 1)
    return u.float()


@torch.no_grad()
def dpm_solver(
    denoise: Denoise,
    process: Process,
    noise: Noise,
    steps: int,
    *,
    grid: Grid = logsnr_grid,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): second order in log s at one evaluation a step.

    The first step and the last, to noise 0, are of first order. Raises ValueError if steps < 1.
    """
    _at_least_one(steps)
    frame = _Scaled(denoise, process, grid(process, steps))
    u = frame.start(noise)
    frame.show(callback, u, 0)
    previous: Tensor | None = None
    h_previous = 0.0
    for i, (s, s_next) in enumerate(pairwise(frame.ratios)):
        denoised = frame.denoised(u, i)
        extrapolated = denoised
        h = math.log(s / s_next) if s_next > 0 else math.inf
        if previous is not None and s_next > 0:
            extrapolated = denoised + h / (2.0 * h_previous) * (denoised - previous)
        u = s_next / s * u + (1.0 - s_next / s) * extrapolated
        previous, h_previous = denoised, h
        frame.show(callback, u, i + 1)
    return u.float()
