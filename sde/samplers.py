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

from sde.grids import Grid, logsnr_grid, rho_grid, time_grid
from sde.process import Process

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
Callback = Callable[[Tensor, float], None]


def score_of(denoised: Tensor, z: Tensor, alpha: float, sigma: float) -> Tensor:
    """grad log p_t(z) from E[m | z] (Tweedie)."""
    return (alpha * denoised - z) / sigma**2


def accurate(x: Tensor) -> Tensor:
    """x in float64 where the device has it (MPS does not)."""
    return x if x.device.type == "mps" else x.double()


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
def euler_maruyama(
    denoise: Denoise,
    process: Process,
    noise: Noise,
    steps: int,
    *,
    grid: Grid = logsnr_grid,
    callback: Callback | None = None,
) -> Tensor:
    """The reverse SDE dz = (f z - g^2 score) dt + g dw by Euler-Maruyama (Song et al. 2021, eq. 6).

    The last evaluation is at t_min, where the denoiser's mean is taken. Raises ValueError if steps < 1.
    """
    _at_least_one(steps)
    times = grid(process, steps)
    alphas, sigmas = process.alpha(times).tolist(), process.sigma(times).tolist()
    drifts, diffusions = process.drift(times).tolist(), process.diffusion_squared(times).tolist()
    z = accurate(process.prior(noise()))
    for i, (t, t_next) in enumerate(pairwise(times.tolist())):
        if callback is not None:
            callback((z / alphas[i]).float(), sigmas[i] / alphas[i])
        denoised = denoise(z.float(), times[i]).to(z.dtype)
        velocity = drifts[i] * z - diffusions[i] * score_of(denoised, z, alphas[i], sigmas[i])
        z = z + (t_next - t) * velocity + math.sqrt(diffusions[i] * (t - t_next)) * noise()
    m = denoise(z.float(), times[-1])
    if callback is not None:
        callback((z / alphas[-1]).float(), sigmas[-1] / alphas[-1])
        callback(m.float(), 0.0)
    return m.float()


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
def ancestral(
    denoise: Denoise,
    process: Process,
    noise: Noise,
    steps: int,
    *,
    variance: str = "small",
    grid: Grid = time_grid,
    callback: Callback | None = None,
) -> Tensor:
    """DDPM (Ho et al. 2020, section 3.2): the mean of q(z_s | z_t, m = D) and one of two variances.

    small: that of q(z_s | z_t, m), the same as ddim with eta = 1. large: that of q(z_t | z_s), right for data that are
    noise themselves. Raises ValueError if steps < 1 or for another variance.
    """
    _at_least_one(steps)
    if variance not in ("small", "large"):
        raise ValueError(f"variance is {variance!r}; small or large")
    frame = _Scaled(denoise, process, grid(process, steps))
    alphas = frame.alphas
    u = frame.start(noise)
    frame.show(callback, u, 0)
    for i, (s, s_next) in enumerate(pairwise(frame.ratios)):
        denoised = frame.denoised(u, i)
        u = denoised + (s_next / s) ** 2 * (u - denoised)
        if s_next > 0:
            fresh = s_next / s if variance == "small" else alphas[i] / alphas[i + 1]
            u = u + fresh * math.sqrt(s**2 - s_next**2) * noise()
        frame.show(callback, u, i + 1)
    return u.float()


@torch.no_grad()
def dpm_solver(
    denoise: Denoise,
    process: Process,
    noise: Noise,
    steps: int,
    *,
    order: int = 2,
    stochastic: bool = False,
    grid: Grid = logsnr_grid,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): second order in log s at one evaluation a step.

    order: 1 leaves out the previous evaluation; without noise that is ddim's rule. stochastic: SDE-DPM-Solver++ (their
    appendix), which follows the reverse SDE. The first step and the last, to noise 0, are of first order.
    Raises ValueError if steps < 1 or for another order.
    """
    _at_least_one(steps)
    if order not in (1, 2):
        raise ValueError(f"order is {order}; 1 or 2")
    frame = _Scaled(denoise, process, grid(process, steps))
    u = frame.start(noise)
    frame.show(callback, u, 0)
    previous: Tensor | None = None
    h_previous = 0.0
    for i, (s, s_next) in enumerate(pairwise(frame.ratios)):
        denoised = frame.denoised(u, i)
        extrapolated = denoised
        h = math.log(s / s_next) if s_next > 0 else math.inf
        if previous is not None and s_next > 0 and order == 2:
            extrapolated = denoised + h / (2.0 * h_previous) * (denoised - previous)
        kept = (s_next / s) ** (2 if stochastic else 1)  # of u; the rest is the denoiser's
        u = kept * u + (1.0 - kept) * extrapolated
        if stochastic and s_next > 0:
            u = u + s_next * math.sqrt(1.0 - (s_next / s) ** 2) * noise()
        previous, h_previous = denoised, h
        frame.show(callback, u, i + 1)
    return u.float()


@torch.no_grad()
def posterior_mean(
    denoise: Denoise, process: Process, noise: Noise, steps: int = 1, *, callback: Callback | None = None
) -> Tensor:
    """E[m | x] in one evaluation: the denoiser at t_max.

    It gets noise, as in training: a network without direct mean has never seen z = 0. One with it (sde.prior_share)
    was trained on z = 0, which its `Denoiser` puts in place of the noise. Raises ValueError unless steps is 1.
    """
    if steps != 1:
        raise ValueError(f"the posterior mean takes one evaluation, not {steps}")
    m = denoise(process.prior(noise()), torch.tensor(process.t_max, dtype=torch.float64))
    if callback is not None:
        callback(m, 0.0)
    return m.float()


@torch.no_grad()
def flowsdf_released(
    denoise: Denoise, process: Process, noise: Noise, steps: int, *, callback: Callback | None = None
) -> Tensor:
    """The sampler of FlowSDF's released code, for comparison: a velocity of the OT path, taken at the wrong place.

    With its time, tau = 1 - t, it takes Euler steps of m by the velocity at (1 - (1 - sigma_min) tau) m_0 + tau m, as
    if m were the mask already. `steps` evaluations are its steps + 1 grid points. With a perfect velocity three steps
    overshoot by 26 %. Raises ValueError if steps < 1.
    """
    _at_least_one(steps)
    start = accurate(noise())
    m = start
    for i in range(steps):
        t = torch.tensor(min(1.0 - i / steps, process.t_max), dtype=torch.float64)
        alpha, sigma = process.alpha(t).item(), process.sigma(t).item()
        z = sigma * start + alpha * m
        denoised = denoise(z.float(), t).to(m.dtype)
        eps = (z - alpha * denoised) / sigma
        m = m + (denoised - (1.0 - process.residual_noise()) * eps) / steps  # dz / d tau = m - (1 - sigma_min) eps
        if callback is not None:
            callback(m.float(), 1.0 - (i + 1) / steps)
    return m.float()
