"""Grids of times."""

from __future__ import annotations

import pytest
import torch

from sde.grids import logsnr_grid, rho_grid, time_grid
from sde.process import VE, VP, OTFlow, Process, ScheduledVP

# sigma_max far above the data: samplers start from noise without the data's mean.
PROCESSES: list[Process] = [VE(1e-3, 50.0), VP(), ScheduledVP("cosine", 0.5), OTFlow()]


def test_grids_span_the_process() -> None:
    for process in PROCESSES:
        for grid in (time_grid, logsnr_grid, rho_grid):
            times = grid(process, 6)
            assert times[0].item() == pytest.approx(process.t_max, abs=1e-9)
            assert times[-1].item() == pytest.approx(process.t_min, abs=1e-9)
            assert (times.diff() < 0).all()
            assert grid(process, 1).tolist() == pytest.approx([process.t_max], abs=1e-9)
    assert torch.allclose(VE().logsnr(logsnr_grid(VE(), 5)).diff().diff(), torch.zeros(3, dtype=torch.float64))
    ratios = VE().noise_ratio(rho_grid(VE(), 5)) ** (1 / 7)
    assert torch.allclose(ratios.diff().diff(), torch.zeros(3, dtype=torch.float64), atol=1e-9)
