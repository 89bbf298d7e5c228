"""Processes and schedules."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde.process import SCHEDULES, VE, VP, OTFlow, Process, ScheduledVP

SCALES = (1.0, 0.6, 0.3, 0.2, 0.1, 0.06, 0.03)


SCHEDULED = [ScheduledVP(name, b) for name in SCHEDULES for b in (1.0, 0.1)]


PROCESSES: list[Process] = [VE(), VE(0.02, 3.0), VP(), VP(0.5, 0.5), VP(0.1, 5.0), OTFlow(), *SCHEDULED]


IDS = [
    "ve",
    "ve narrow",
    "vp",
    "vp constant beta",
    "vp slow",
    "flow",
    *(f"{p.schedule} {p.input_scale}" for p in SCHEDULED),
]


each_process = pytest.mark.parametrize("process", PROCESSES, ids=IDS)


@each_process
def test_drift_and_diffusion_are_derivatives_of_the_marginals(process: Process) -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    log_alpha = torch.log(process.alpha(t)) + 0.0 * t  # alpha of VE does not depend on t
    variance = process.sigma(t) ** 2
    drift = torch.autograd.grad(log_alpha.sum(), t)[0]
    slope = torch.autograd.grad(variance.sum(), t)[0]
    torch.testing.assert_close(process.drift(t), drift)
    torch.testing.assert_close(process.diffusion_squared(t), slope - 2 * drift * variance)


@pytest.mark.parametrize("process", [VE(), VP(), OTFlow(), ScheduledVP("cosine", 0.1)], ids=repr)
def test_marginals_by_simulation(process: Process) -> None:
    """Euler-Maruyama of the forward SDE from a point arrives at alpha m and sigma; one process of each kind."""
    generator = torch.Generator().manual_seed(0)
    steps, start, end, m = 2000, process.t_min, 0.6, 0.7
    first = torch.tensor(start, dtype=torch.float64)
    eps = torch.randn(20_000, generator=generator, dtype=torch.float64)
    z = process.alpha(first) * m + process.sigma(first) * eps
    times = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    for t, following in pairwise(times):
        noise = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        dt = following - t
        z = z + process.drift(t) * z * dt + torch.sqrt(process.diffusion_squared(t) * dt) * noise
    sigma = process.sigma(times[-1]).item()
    assert z.mean().item() == pytest.approx(process.alpha(times[-1]).item() * m, abs=5 * sigma / math.sqrt(len(z)))
    assert z.std().item() == pytest.approx(sigma, rel=0.025)


@each_process
@given(t=st.floats(1e-3, 1.0 - 1e-3))
def test_time_of_noise_ratio_inverts(process: Process, t: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    assert process.time_of_noise_ratio(process.noise_ratio(time)).item() == pytest.approx(t, abs=1e-9)
    assert process.logsnr(time).item() == pytest.approx(-2 * math.log(process.noise_ratio(time).item()))


def test_ve_is_the_papers() -> None:
    process = VE(1e-3, 5.0)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(process.sigma(t), torch.tensor([1e-3, math.sqrt(5e-3), 5.0], dtype=torch.float64))
    assert process.residual_noise() == pytest.approx(1e-3)


def test_vp_keeps_unit_variance_and_ends_as_ddpm() -> None:
    process = VP()
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t))
    # DDPM: product of 1 - beta_i for 1000 betas from 1e-4 to 0.02.
    ddpm = torch.prod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).sqrt().item()
    assert process.alpha(t[-1]).item() == pytest.approx(ddpm, rel=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("b", SCALES)
def test_schedules_run_from_log_snr_20_to_minus_20(schedule: str, b: float) -> None:
    process = ScheduledVP(schedule, b)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    logsnr = process.logsnr(t)
    assert logsnr[0].item() == pytest.approx(20, abs=1e-3)
    assert logsnr[-1].item() == pytest.approx(-20, abs=1e-3)
    assert (logsnr.diff() < 0).all()
    torch.testing.assert_close(process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_input_scaling_adds_two_log_b(schedule: str) -> None:
    """Between the ends, where the mapping to [-20, 20] hardly moves anything."""
    t = torch.linspace(0.1, 0.8, 15, dtype=torch.float64)
    easy, hard = (ScheduledVP(schedule, b).logsnr(t) for b in (1.0, 0.3))
    torch.testing.assert_close(hard - easy, torch.full_like(t, 2 * math.log(0.3)), atol=0.02, rtol=0)


def test_schedules_by_hand() -> None:
    t = torch.tensor(0.5, dtype=torch.float64)
    expected = {"cosine": 0.5, "linear": math.exp(-2.5001), "linear_simple": 0.5, "parabola": 0.5625}
    for name, gamma in expected.items():
        assert ScheduledVP(name).alpha(t).item() ** 2 == pytest.approx(gamma, abs=2e-4)
