"""The adaptive reference."""

from __future__ import annotations

import pytest
import torch

from sampling.adaptive import adaptive
from sde.process import VE, VP, OTFlow, Process, ScheduledVP
from sde.samplers import heun
from tests.networks import draws_of, mixture_denoiser

# sigma_max far above the data: samplers start from noise without the data's mean.
PROCESSES: list[Process] = [VE(1e-3, 50.0), VP(), ScheduledVP("cosine", 0.5), OTFlow()]


IDS = ["ve", "vp", "cosine", "flow"]


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_adaptive_solver_is_the_limit_of_the_others(process: Process) -> None:
    pytest.importorskip("torchdiffeq")
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([-0.8, 0.6])
    denoise = mixture_denoiser(process, weights, means, 0.1)
    reference = adaptive(denoise, process, draws_of(7, 3, (1, 4, 4)), tolerance=1e-6)
    fine = heun(denoise, process, draws_of(7, 3, (1, 4, 4)), 801)
    torch.testing.assert_close(reference, fine, atol=2e-3, rtol=0)
