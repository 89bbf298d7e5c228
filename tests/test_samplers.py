"""Samplers on distributions whose denoiser is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sde.noise import DrawNoise
from sde.process import VE, VP, OTFlow, Process, ScheduledVP
from sde.samplers import (
    Denoise,
    ddim,
    dpm_solver,
    heun,
    logsnr_grid,
    predictor_corrector,
    rho_grid,
    time_grid,
)

# sigma_max far above the data: samplers start from noise without the data's mean.
PROCESSES: list[Process] = [VE(1e-3, 50.0), VP(), ScheduledVP("cosine", 0.5), OTFlow()]
IDS = ["ve", "vp", "cosine", "flow"]
MEAN = torch.tensor([0.3, -0.4])
COVARIANCE = torch.tensor([[0.30, 0.12], [0.12, 0.20]])


def draws(seed: int, count: int, shape: tuple[int, ...]) -> DrawNoise:
    return DrawNoise(seed, [("image", d) for d in range(count)], shape)


def gaussian_denoiser(process: Process, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> Denoise:
    """E[m | z] for two channels with N(mean, covariance), pixels independent."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t).item(), process.sigma(t).item()
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
        centre = mean.view(1, 2, 1, 1)
        return centre + torch.einsum("ij,bjhw->bihw", gain.to(z), z - alpha * centre)

    return denoise


def mixture_denoiser(process: Process, weights: Tensor, means: Tensor, std: float) -> Denoise:
    """E[m | z] for independent pixels from a mixture of Gaussians of one width."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t).item(), process.sigma(t).item()
        total = (alpha * std) ** 2 + sigma**2
        z = z[..., None]
        log_weight = torch.log(weights) - (z - alpha * means) ** 2 / (2 * total)
        inner = means + alpha * std**2 / total * (z - alpha * means)
        return (torch.softmax(log_weight, dim=-1) * inner).sum(-1)

    return denoise


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "pc": partial(predictor_corrector, steps=800, corrector_steps=1, r=0.05),
    "predictor": partial(predictor_corrector, steps=400, corrector_steps=0),
    "heun": partial(heun, steps=241),
    "heun even": partial(heun, steps=240),
    "ddim": partial(ddim, steps=400, grid=logsnr_grid),
    "ancestral": partial(ddim, steps=400, eta=1.0, grid=logsnr_grid),
    "dpm solver": partial(dpm_solver, steps=120),
}


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_mean_and_covariance(name: str, process: Process) -> None:
    m = SAMPLERS[name](gaussian_denoiser(process), process, draws(1, 16, (2, 32, 32)))
    pixels = m.movedim(1, 0).reshape(2, -1).double()
    count = pixels.shape[1]
    standard_error = (COVARIANCE.diagonal().max() / count).sqrt().item()
    torch.testing.assert_close(pixels.mean(1), MEAN.double(), atol=5 * standard_error, rtol=0)
    torch.testing.assert_close(torch.cov(pixels), COVARIANCE.double(), atol=0.014, rtol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_mixture_weights_and_widths(name: str, process: Process) -> None:
    weights, means, std = torch.tensor([0.3, 0.7]), torch.tensor([-0.8, 0.6]), 0.1
    denoise = mixture_denoiser(process, weights, means, std)
    m = SAMPLERS[name](denoise, process, draws(2, 16, (1, 32, 32))).flatten()
    low, high = m[m < -0.1], m[m >= -0.1]
    share = len(low) / len(m)
    assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / len(m)) + 0.005)
    for part, mean in ((low, -0.8), (high, 0.6)):
        assert part.mean().item() == pytest.approx(mean, abs=0.01)
        assert part.std().item() == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize(
    ("sampler", "steps", "least"),
    [(heun, 31, 3.3), (partial(dpm_solver), 30, 3.0), (partial(ddim, grid=rho_grid), 60, 1.8)],
    ids=["heun", "dpm solver", "ddim"],
)
def test_order_of_convergence(sampler: Callable[..., Tensor], steps: int, least: float, process: Process) -> None:
    """The error falls by 2^order from n to 2n steps; on a Gaussian the flow is known:
    u_0 = mean + sqrt(v / (v + s^2)) (u_1 - mean)."""
    mean, variance = torch.tensor([0.2, 0.2]), torch.eye(2) * 0.09
    first = torch.tensor(process.t_max, dtype=torch.float64)
    start = process.prior(draws(3, 4, (2, 8, 8))()).double() / process.alpha(first)
    top = process.noise_ratio(first).item()
    exact = 0.2 + math.sqrt(0.09 / (0.09 + top**2)) * (start - 0.2)
    errors = []
    for n in (steps, 2 * steps + steps % 2, 4 * steps + 3 * (steps % 2)):
        u = sampler(gaussian_denoiser(process, mean, variance), process, draws(3, 4, (2, 8, 8)), n)
        errors.append((u - exact).abs().max().item())
    assert errors[0] / errors[1] > least
    assert errors[1] / errors[2] > least


def test_corrector_variance_is_that_of_langevin_with_a_finite_step() -> None:
    """Each step of Algorithm 1 maps the variance of a Gaussian in closed form."""
    process, variance, r, steps = VE(0.01, 5.0), 0.25, 0.35, 200
    times = time_grid(process, steps // 2 + 1)
    sigma2 = process.sigma(times) ** 2
    v = sigma2[0].item()
    for k in range(steps // 2):
        here, following = sigma2[k].item(), sigma2[k + 1].item()
        v = (1 - (here - following) / (variance + here)) ** 2 * v + here - following
        target = variance + following
        step = 2 * r**2 * target**2 / v
        v = (1 - step / target) ** 2 * v + 2 * step
    denoise = gaussian_denoiser(process, torch.zeros(2), variance * torch.eye(2))
    m = predictor_corrector(denoise, process, draws(4, 8, (2, 48, 48)), steps, r=r)
    assert m.var().item() == pytest.approx(v, rel=0.03)


SHORT: dict[str, Callable[..., Tensor]] = {
    "pc": partial(predictor_corrector, steps=40),
    "heun": partial(heun, steps=10),
    "ancestral": partial(ddim, steps=10, eta=1.0),
    "dpm solver": partial(dpm_solver, steps=10),
}


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize("base", SHORT.values(), ids=SHORT)
def test_a_draw_does_not_depend_on_its_batch(base: Callable[..., Tensor], process: Process) -> None:
    sampler = partial(base, gaussian_denoiser(process), process)
    owners = [("a", 0), ("b", 0), ("a", 1)]
    together = sampler(DrawNoise(5, owners, (2, 8, 8)))
    backwards = sampler(DrawNoise(5, owners[::-1], (2, 8, 8)))
    assert torch.equal(together, backwards.flip(0))
    for row, owner in zip(together, owners, strict=True):
        assert torch.equal(sampler(DrawNoise(5, [owner], (2, 8, 8)))[0], row)
    assert not torch.equal(together[0], together[2])


def test_corrector_norm_is_per_draw() -> None:
    """A batch mate with a huge score does not change the step of the others."""
    process = VE(0.01, 5.0)
    scale = torch.tensor([1.0, 1.0]).view(2, 1, 1, 1)

    def run(second: float) -> Tensor:
        scale[1] = second
        return predictor_corrector(lambda z, t: z * 0 + scale, process, draws(6, 2, (1, 8, 8)), 20)

    assert torch.equal(run(1.0)[0], run(1e4)[0])


@pytest.mark.parametrize("sampler", [heun, ddim, dpm_solver])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 11])
def test_uses_the_evaluations_it_is_given(steps: int, sampler: Callable[..., Tensor]) -> None:
    process, calls = VE(0.01, 5.0), []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        calls.append(t.item())
        return torch.zeros_like(z)

    sampler(denoise, process, draws(0, 1, (1, 4, 4)), steps)
    assert len(calls) == steps
    assert calls[0] == pytest.approx(1.0)


@pytest.mark.parametrize("sampler", [heun, ddim, dpm_solver])
def test_one_evaluation_is_the_posterior_mean(sampler: Callable[..., Tensor]) -> None:
    process = VE(0.01, 5.0)
    noise = draws(7, 2, (2, 8, 8))
    start = process.prior(draws(7, 2, (2, 8, 8))())
    expected = gaussian_denoiser(process)(start, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(sampler(gaussian_denoiser(process), process, noise, 1), expected)


def test_pc_counts_and_the_last_noise() -> None:
    process, calls = VE(0.01, 5.0), []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        calls.append(t.item())
        return torch.zeros_like(z)

    noisy = predictor_corrector(denoise, process, draws(8, 1, (1, 64, 64)), 300, corrector_steps=2)
    assert len(calls) == 300
    # Line 5 evaluates at sigma_{k+1}, line 8 at sigma_k.
    assert calls[:3] == pytest.approx([1.0, 0.99, 0.99])
    quiet = predictor_corrector(denoise, process, draws(8, 1, (1, 64, 64)), 300, corrector_steps=2, denoise_last=True)
    # m = 0 exactly here, so that what is left is the noise of sigma_min.
    assert noisy.std().item() == pytest.approx(0.01, rel=0.15)
    assert quiet.std().item() < noisy.std().item()


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_ddim_on_the_flow_path_has_no_error_for_a_point(steps: int) -> None:
    """The velocity towards one mask is constant along its path: Euler's rule is exact at any number of steps."""
    m = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    for sampler in (ddim, heun, dpm_solver):
        torch.testing.assert_close(sampler(lambda z, t: m, OTFlow(), draws(0, 1, (1, 8, 8)), steps), m)


def test_ddim_is_the_flows_euler_step() -> None:
    process, noise = OTFlow(), draws(9, 2, (2, 8, 8))
    denoise = gaussian_denoiser(process)
    times = [*time_grid(process, 4).tolist(), process.t_min]
    z = process.prior(draws(9, 2, (2, 8, 8))()).double()
    for t, following in pairwise(times[:-1]):
        here = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = process.alpha(here), process.sigma(here)
        m = denoise(z.float(), here).double()
        velocity = -m + (1.0 - process.sigma_min) * (z - alpha * m) / sigma
        z = z + (following - t) * velocity
    last = denoise(z.float(), torch.tensor(times[-2], dtype=torch.float64))
    torch.testing.assert_close(ddim(denoise, process, noise, 4), last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", [heun, ddim, dpm_solver])
def test_no_evaluation_no_draw(sampler: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        sampler(lambda z, t: z, VE(), draws(0, 1, (1, 2, 2)), 0)


@pytest.mark.parametrize(("steps", "corrector"), [(5, 1), (0, 1), (4, 2)])
def test_pc_refuses_broken_steps(steps: int, corrector: int) -> None:
    with pytest.raises(ValueError, match="evaluations cannot be split"):
        predictor_corrector(lambda z, t: z, VE(), draws(0, 1, (1, 2, 2)), steps, corrector_steps=corrector)


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


def test_callback_sees_the_way_from_noise_to_data() -> None:
    process = VE(0.01, 5.0)
    for sampler in SHORT.values():
        spreads: list[float] = []
        levels: list[float] = []

        def look(u: Tensor, s: float, spreads: list[float] = spreads, levels: list[float] = levels) -> None:
            spreads.append(u.std().item())
            levels.append(s)

        m = sampler(lambda z, t: z * 0, process, draws(0, 1, (1, 32, 32)), callback=look)
        assert levels[0] == pytest.approx(5.0)
        assert levels == sorted(levels, reverse=True)
        assert levels[-1] in (0.0, pytest.approx(0.01))
        # For m = 0 the spread of an iterate is its noise; coarse Langevin steps leave a little more.
        assert spreads == pytest.approx(levels, rel=0.4, abs=0.005)
        assert spreads[-1] == pytest.approx(m.std().item())
