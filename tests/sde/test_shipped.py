"""What every shipped config says of process, loss and sampler, held against posteriors that are known."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.spread import SHARE, Known, rms_of
from models.build import process_of
from models.denoiser import scaling
from sde.grids import logsnr_grid
from sde.loss import Weighting, sample_times
from sde.process import VE, VP, OTFlow, Process, ScheduledVP, prior_pull
from sde.samplers import ancestral
from tests.commands import ROOT
from utils.config import load_config

SHIPPED = [path for path in sorted((ROOT / "cfg").glob("*.yaml")) if not load_config(path).is_one_pass]
each_config = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
LONG = ("baseline_ddpm", "monuseg", "glas", "glas_vp", "baseline_binary")  # hundreds of evaluations a draw


# The papers' samplers that are outside of .9 to 1.1: the least and the most ratio of their modes, and why.
OUTSIDE = {
    "flowsdf_glas": (0.07, 0.48, "three Euler steps of the flow"),
    "flowsdf_monuseg": (0.01, 0.48, "three Euler steps of the flow"),
    "monuseg": (1.0, 1.27, "noise of sigma_min is left, .005 of an SDF; leaving out r = .35's last is .7"),
}
# Those that do not draw two kinds of masks, .3 of the one, in their shares: the share they have, and why.
SHARES = {
    "flowsdf_glas": (0.0, "three Euler steps of the flow"),
    "flowsdf_monuseg": (0.0, "three Euler steps of the flow"),
    "dsb2018": (0.22, "VP's first noise does not hide the mean of 256 x 256 pixels"),
    "glas": (0.18, "first noise of 5 does not hide the mean of 128 x 128 pixels"),
}


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in LONG else []) for p in SHIPPED]
)
def test_draws_are_as_wide_as_they_should_be(path: Path) -> None:
    """Mode by mode, from the mean of an image to single pixels, with a perfect denoiser; and their mean is right."""
    ratios, means = Known(load_config(path)).spread(2048)
    least, most, _ = OUTSIDE.get(path.stem, (0.9, 1.1, ""))
    if path.stem in OUTSIDE:
        assert (min(ratios), max(ratios)) == pytest.approx((least, most), rel=0.1, abs=0.01)
    else:
        assert least < min(ratios) < max(ratios) < most
    assert means[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in LONG else []) for p in SHIPPED]
)
def test_two_kinds_of_masks_are_drawn_in_their_shares(path: Path) -> None:
    law = Known(load_config(path)).law(256 if path.stem in LONG else 1024)
    share, _ = SHARES.get(path.stem, (SHARE, ""))
    assert law["share"] == pytest.approx(share, abs=0.05 if path.stem in SHARES else 0.08)
    if "flowsdf" not in path.stem:
        assert 0.9 < law["within"] < 1.15
        assert 0.8 < law["all"] < 1.15


def test_no_config_samples_by_few_ancestral_steps() -> None:
    """They draw E[m | z] for m, and lose the variance about it at every step."""
    means = [config for config in map(load_config, SHIPPED) if config.sde.objective == "mean"]
    assert all(config.sampling.steps >= 1000 for config in means if config.sampling.sampler == "ancestral")


@each_config
def test_the_loss_weighs_the_end_of_the_process(path: Path) -> None:
    """Shares of the loss by log-SNR, with the data's own power in it, where the squared error of the raw network is the
    same at every time: the weight of |D - m|^2 times the square of what multiplies the network's output."""
    config = load_config(path)
    process, sde, rms = process_of(config.sde), config.sde, rms_of(config.data)
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
