"""What every shipped config says of process, loss and sampler, held against what a Gaussian posterior asks for."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.fft import dct
from torch import Tensor

from models.build import process_of
from models.denoiser import scaling
from sampling.sampler import sampler_of
from sde.grids import logsnr_grid
from sde.loss import Weighting, sample_times
from sde.noise import DrawNoise
from sde.process import VE, VP, OTFlow, Process, ScheduledVP, prior_pull
from sde.samplers import ancestral
from tests.helpers import ROOT
from utils.config import load_config
from utils.schema import Config

SHIPPED = [path for path in sorted((ROOT / "cfg").glob("*.yaml")) if not load_config(path).is_one_pass]
each_config = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
LONG = ("baseline_ddpm", "monuseg")  # a thousand evaluations a draw and more


def side_of(config: Config) -> int:
    """Pixels a side of the largest image that the network sees whole."""
    data = config.data
    pair = data.test_patch or data.crop or data.size or (data.phantom.size, data.phantom.size)
    return max(pair)


def rms_of(config: Config) -> float:
    """Root mean square of m: of SDFs of GlaS and MoNuSeg .5 to .6 at 15 pixels, of nuclei .9 at 4."""
    rms = 1.0 if config.data.representation == "binary" else 0.6 if config.data.truncation > 4 else 0.9
    return rms * config.data.sdf_scale


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in LONG else []) for p in SHIPPED]
)
def test_draws_have_the_mean_of_a_posterior_with_low_frequencies(path: Path) -> None:
    """The lowest 32 x 32 frequencies, in the size that they have in a whole image, drawn as the config says.

    The image's mean is half of the root mean square; it is known to 8 % of that given an image, to 30 % by itself.
    """
    config = load_config(path)
    process, side, rms, count, low = process_of(config.sde), side_of(config), rms_of(config), 32, 32
    frequency = torch.hypot(torch.arange(low)[:, None].float(), torch.arange(low)[None].float())
    sign = torch.randn(low, low, generator=torch.Generator().manual_seed(0)).sign()
    mean = 0.5 * side * rms * sign / (1 + frequency) ** 1.5
    std = (0.3 if config.model.kind == "joint" else 0.08) * side * rms / (1 + frequency) ** 1.5
    basis = torch.from_numpy(dct(np.eye(low), axis=0, norm="ortho")).float()

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
        return basis.T @ (mean + gain * (basis @ z @ basis.T - alpha * mean)) @ basis

    noise = DrawNoise(0, [("image", draw) for draw in range(count)], (1, low, low))
    draws = basis @ sampler_of(config.sampling)(denoise, process, noise) @ basis.T
    error = draws.mean(dim=(0, 1)) - mean
    assert abs(error[0, 0] / mean[0, 0]) < 0.1
    assert error.norm() / mean.norm() < 0.15
    if config.sampling.sampler == "pc":  # few ancestral steps are known to be too sure
        assert 0.75 < draws.var(dim=0).sum().sqrt() / std.norm() < 1.25


@each_config
def test_the_loss_weighs_the_end_of_the_process(path: Path) -> None:
    """Shares of the loss by log-SNR, with the data's own power in it, where the squared error of the raw network is the
    same at every time: the weight of |D - m|^2 times the square of what multiplies the network's output."""
    config = load_config(path)
    process, sde, rms = process_of(config.sde), config.sde, rms_of(config)
    t = sample_times(100_000, process, torch.Generator().manual_seed(0), sde.prior_share)
    weighting = Weighting(sde.weighting, sde.sigmoid_shift, sde.per_logsnr)
    weight = weighting(process, t, rms) * scaling(sde.prediction, process, t, rms).out ** 2
    weight = torch.where(process.at_end(t), torch.ones_like(weight), weight)  # the direct mean, in units of rms
    share, logsnr = weight / weight.sum(), process.logsnr(t) + 2 * np.log(rms)
    edges = [-math.inf, -4.0, 0.0, 4.0, 8.0, math.inf]
    shares = [share[(logsnr > low) & (logsnr <= high)].sum().item() for low, high in pairwise(edges)]
    print(f"{path.stem:20s} log-SNR below -4, 0, 4, 8 and above: " + " ".join(f"{s:.3f}" for s in shares))
    assert shares[0] + shares[1] > 0.05
    assert shares[3] + shares[4] < 0.9


@pytest.mark.parametrize("process", [VE(1e-3, 5.0), VP(), OTFlow(), ScheduledVP("cosine", 0.1)], ids=str)
@pytest.mark.parametrize("share", [0.1, 1.0, 10.0])
def test_pull_bounds_what_the_first_noise_does_to_a_mean(process: Process, share: float) -> None:
    """An image of one pixel, N(c, v) with v = share of s^2: the reverse SDE's mean, that is without its noise."""
    s = float(process.noise_ratio(torch.tensor(process.t_max, dtype=torch.float64)))
    c, v = 8.0 * s, share * s**2

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        ratio = float(process.noise_ratio(t))
        return c + v / (v + ratio**2) * (z / float(process.alpha(t)) - c)

    m = ancestral(denoise, process, lambda: torch.zeros(1, 1, 1, 1), 1000, grid=logsnr_grid)
    pull, most = (c - m.item()) / math.sqrt(v), prior_pull(process, c, (1, 1))
    assert pull < 1.01 * most
    assert pull == pytest.approx(2 * math.sqrt(share) / (1 + share) * most, rel=0.02)
