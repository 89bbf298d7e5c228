"""From the sampling section to a sampler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from models.denoiser import Denoiser
from sampling.adaptive import adaptive
from sde.grids import Grid, logsnr_grid, rho_grid, time_grid
from sde.predictor_corrector import predictor_corrector
from sde.process import Process
from sde.samplers import (
    Callback,
    Denoise,
    Noise,
    ancestral,
    ddim,
    dpm_solver,
    euler_maruyama,
    flowsdf_released,
    heun,
    posterior_mean,
)
from utils.sections import ONE_PASS, SamplingConfig


class Sampler(Protocol):
    """A sampler whose options are settled."""

    def __call__(
        self, denoise: Denoise, process: Process, noise: Noise, *, callback: Callback | None = None
    ) -> Tensor: ...


def sampler_of(sampling: SamplingConfig) -> Sampler:
    if sampling.sampler == "pc":
        return partial(
            predictor_corrector,
            steps=sampling.steps,
            corrector_steps=sampling.corrector_steps,
            r=sampling.r,
            denoise_last=sampling.denoise_last,
        )
    if sampling.sampler == "adaptive":
        return partial(adaptive, tolerance=sampling.tolerance)
    if sampling.sampler in (*ONE_PASS, "logits"):  # what makes draws differ is in the network: sampling/loading.py
        return posterior_mean
    if sampling.sampler == "flowsdf_released":
        return partial(flowsdf_released, steps=sampling.steps)
    samplers: dict[str, Callable[..., Tensor]] = {
        "euler_maruyama": euler_maruyama,
        "ancestral": partial(ancestral, variance=sampling.variance),
        "ddim": partial(ddim, eta=sampling.eta),
        "euler": ddim,
        "heun": heun,
        "dpm_solver": partial(dpm_solver, order=sampling.order, stochastic=sampling.stochastic),
    }
    grids: dict[str, Grid] = {"time": time_grid, "logsnr": logsnr_grid, "rho": partial(rho_grid, rho=sampling.rho)}
    return partial(samplers[sampling.sampler], steps=sampling.steps, grid=grids[sampling.used_grid])


def draws_of(sampling: SamplingConfig, denoiser: Denoiser) -> int:
    """Of an image, at most; of means one for each network and view of the image."""
    if sampling.sampler in ("mean", "ensemble"):
        return denoiser.means
    return sampling.most_draws if sampling.draws == "auto" else sampling.draws


def max_batch_of(sampling: SamplingConfig, device: torch.device) -> int:
    """Draws evaluated at once: on a CPU more of them spend their time on fresh memory (docs/results/speed.md)."""
    if sampling.sampler == "adaptive":
        return 1
    return sampling.max_batch or (16 if device.type == "cpu" else 64)
