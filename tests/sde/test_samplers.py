"""Samplers on Gaussians and mixtures whose law is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sde.grids import logsnr_grid, rho_grid, time_grid
from sde.noise import DrawNoise
from sde.predictor_corrector import predictor_corrector
from sde.process import VE, VP, OTFlow, Process, ScheduledVP
from sde.samplers import ancestral, ddim, dpm_solver, euler_maruyama, flowsdf_released, heun, posterior_mean
from tests.networks import COVARIANCE, MEAN, draws_of, gaussian_denoiser, mixture_denoiser

# sigma_max far above the data: samplers start from noise without the data's mean.
PROCESSES: list[Process] = [VE(1e-3, 50.0), VP(), ScheduledVP("cosine", 0.5), OTFlow()]


IDS = ["ve", "vp", "cosine", "flow"]


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "pc": partial(predictor_corrector, steps=800, corrector_steps=1, r=0.05),
    "predictor": partial(predictor_corrector, steps=400, corrector_steps=0),
    "heun": partial(heun, steps=241),
    "heun even": partial(heun, steps=240),
    "ddim": partial(ddim, steps=400, grid=logsnr_grid),
    "ancestral": partial(ddim, steps=400, eta=1.0, grid=logsnr_grid),
    "dpm solver": partial(dpm_solver, steps=120),
    "euler maruyama": partial(euler_maruyama, steps=800),
    "ddpm large": partial(ancestral, steps=1600, variance="large", grid=logsnr_grid),
    "ddpm small": partial(ancestral, steps=400, grid=logsnr_grid),
    "dpm solver of order 1": partial(dpm_solver, steps=400, order=1),
    "stochastic dpm solver": partial(dpm_solver, steps=200, stochastic=True),
}


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_mean_and_covariance(name: str, process: Process) -> None:
    m = SAMPLERS[name](gaussian_denoiser(process), process, draws_of(1, 16, (2, 32, 32)))
    pixels = m.movedim(1, 0).reshape(2, -1).double()
    count = pixels.shape[1]
    standard_error = (COVARIANCE.diagonal().max() / count).sqrt().item()
    torch.testing.assert_close(pixels.mean(1), MEAN.double(), atol=5 * standard_error, rtol=0)
    torch.testing.assert_close(torch.cov(pixels), COVARIANCE.double(), atol=0.014, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_mixture_weights_and_widths(name: str, process: Process) -> None:
    weights, means, std = torch.tensor([0.3, 0.7]), torch.tensor([-0.8, 0.6]), 0.1
    denoise = mixture_denoiser(process, weights, means, std)
    m = SAMPLERS[name](denoise, process, draws_of(2, 16, (1, 32, 32))).flatten()
    low, high = m[m < -0.1], m[m >= -0.1]
    share = len(low) / len(m)
    assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / len(m)) + 0.005)
    for part, mean in ((low, -0.8), (high, 0.6)):
        assert part.mean().item() == pytest.approx(mean, abs=0.01)
        assert part.std().item() == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize(
    ("sampler", "steps", "least"),
    [
        (heun, 31, 3.3),
        (partial(dpm_solver), 30, 3.0),
        (partial(ddim, grid=rho_grid), 60, 1.8),
        (partial(dpm_solver, order=1), 60, 1.8),
    ],
    ids=["heun", "dpm solver", "ddim", "dpm solver of order 1"],
)
def test_order_of_convergence(sampler: Callable[..., Tensor], steps: int, least: float, process: Process) -> None:
    """The error falls by 2^order from n to 2n steps; on a Gaussian the flow is known:
    u_0 = mean + sqrt(v / (v + s^2)) (u_1 - mean)."""
    mean, variance = torch.tensor([0.2, 0.2]), torch.eye(2) * 0.09
    first = torch.tensor(process.t_max, dtype=torch.float64)
    start = process.prior(draws_of(3, 4, (2, 8, 8))()).double() / process.alpha(first)
    top = process.noise_ratio(first).item()
    exact = 0.2 + math.sqrt(0.09 / (0.09 + top**2)) * (start - 0.2)
    errors = []
    for n in (steps, 2 * steps + steps % 2, 4 * steps + 3 * (steps % 2)):
        u = sampler(gaussian_denoiser(process, mean, variance), process, draws_of(3, 4, (2, 8, 8)), n)
        errors.append((u - exact).abs().max().item())
    assert errors[0] / errors[1] > least
    assert errors[1] / errors[2] > least


SHORT: dict[str, Callable[..., Tensor]] = {
    "pc": partial(predictor_corrector, steps=40),
    "heun": partial(heun, steps=10),
    "ancestral": partial(ddim, steps=10, eta=1.0),
    "dpm solver": partial(dpm_solver, steps=10),
    "stochastic dpm solver": partial(dpm_solver, steps=10, stochastic=True),
    "ddpm large": partial(ancestral, steps=40, variance="large", grid=logsnr_grid),
    "euler maruyama": partial(euler_maruyama, steps=40),
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


@pytest.mark.parametrize("sampler", [heun, ddim, dpm_solver])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 11])
def test_uses_the_evaluations_it_is_given(steps: int, sampler: Callable[..., Tensor]) -> None:
    process, calls = VE(0.01, 5.0), []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        calls.append(t.item())
        return torch.zeros_like(z)

    sampler(denoise, process, draws_of(0, 1, (1, 4, 4)), steps)
    assert len(calls) == steps
    assert calls[0] == pytest.approx(1.0)


@pytest.mark.parametrize("sampler", [heun, ddim, dpm_solver])
def test_one_evaluation_is_the_posterior_mean(sampler: Callable[..., Tensor]) -> None:
    process = VE(0.01, 5.0)
    noise = draws_of(7, 2, (2, 8, 8))
    start = process.prior(draws_of(7, 2, (2, 8, 8))())
    expected = gaussian_denoiser(process)(start, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(sampler(gaussian_denoiser(process), process, noise, 1), expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_ddim_on_the_flow_path_has_no_error_for_a_point(steps: int) -> None:
    """The velocity towards one mask is constant along its path: Euler's rule is exact at any number of steps."""
    m = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    for sampler in (ddim, heun, dpm_solver):
        torch.testing.assert_close(sampler(lambda z, t: m, OTFlow(), draws_of(0, 1, (1, 8, 8)), steps), m)


def test_ddim_is_the_flows_euler_step() -> None:
    process, noise = OTFlow(), draws_of(9, 2, (2, 8, 8))
    denoise = gaussian_denoiser(process)
    times = [*time_grid(process, 4).tolist(), process.t_min]
    z = process.prior(draws_of(9, 2, (2, 8, 8))()).double()
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
        sampler(lambda z, t: z, VE(), draws_of(0, 1, (1, 2, 2)), 0)


def test_callback_sees_the_way_from_noise_to_data() -> None:
    process = VE(0.01, 5.0)
    for sampler in SHORT.values():
        spreads: list[float] = []
        levels: list[float] = []

        def look(u: Tensor, s: float, spreads: list[float] = spreads, levels: list[float] = levels) -> None:
            spreads.append(u.std().item())
            levels.append(s)

        m = sampler(lambda z, t: z * 0, process, draws_of(0, 1, (1, 32, 32)), callback=look)
        assert levels[0] == pytest.approx(5.0)
        assert levels == sorted(levels, reverse=True)
        assert levels[-1] in (0.0, pytest.approx(0.01))
        # For m = 0 the spread of an iterate is its noise; coarse Langevin steps leave a little more.
        assert spreads == pytest.approx(levels, rel=0.4, abs=0.005)
        assert spreads[-1] == pytest.approx(m.std().item())


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_stochastic_dpm_solver_converges_in_order_two_in_mean(process: Process) -> None:
    """Without its noise the mean of the Gaussian obeys a recursion of its own; its error falls faster than 1 / n."""
    mean, variance = torch.tensor([0.2, 0.2]), torch.eye(2) * 0.09
    silent = torch.zeros(1, 2, 1, 1)
    denoise = gaussian_denoiser(process, mean, variance)
    first = torch.tensor(process.t_max, dtype=torch.float64)
    top = process.noise_ratio(first).item()
    low = process.residual_noise()
    # du / ds = 2 (u - D) / s, so that (u - mean) / (v + s^2) stays, but for the last step, which takes D.
    exact = 0.2 + -0.2 / (0.09 + top**2) * (0.09 + low**2) * 0.09 / (0.09 + low**2)
    errors = []
    for n in (40, 80, 160):
        u = dpm_solver(denoise, process, lambda: silent, n, stochastic=True)
        errors.append((u - exact).abs().max().item())
    assert all(later < 1e-6 or earlier / later > 2.5 for earlier, later in pairwise(errors))


def test_ancestral_small_is_ddim_with_eta_one() -> None:
    denoise = gaussian_denoiser(VP())
    one = ancestral(denoise, VP(), draws_of(5, 2, (2, 4, 4)), 20)
    two = ddim(denoise, VP(), draws_of(5, 2, (2, 4, 4)), 20, eta=1.0)
    torch.testing.assert_close(one, two)


def test_large_variance_is_ddpms() -> None:
    """q(z_s | z_t) of DDPM's fixed large variance: beta = 1 - (alpha_t / alpha_s)^2, in z_s."""
    process = VP()
    times = time_grid(process, 2)
    z = torch.full((1, 1, 1, 1), 0.4)
    values = iter([z / process.sigma(times[0]).item(), torch.ones(1, 1, 1, 1)])
    seen: list[Tensor] = []

    def look(u: Tensor, s: float) -> None:
        seen.append(u)

    ancestral(
        lambda z, t: 0 * z + 0.1,
        process,
        lambda: next(values),
        2,
        variance="large",
        callback=lambda u, s: seen.append(u),
    )
    alpha_t, alpha_s = process.alpha(times).tolist()
    sigma2_t, sigma2_s = (process.sigma(times) ** 2).tolist()
    ratio = alpha_t / alpha_s
    beta = 1 - ratio**2
    posterior = (ratio * sigma2_s * 0.4 + alpha_s * beta * 0.1) / sigma2_t
    assert (seen[1] * alpha_s).item() == pytest.approx(posterior + math.sqrt(beta), rel=1e-4)


def test_the_mean_is_the_denoiser_at_the_prior() -> None:
    process = VE(1e-3, 5000.0)
    m = posterior_mean(gaussian_denoiser(process), process, draws_of(1, 3, (2, 4, 4)))
    torch.testing.assert_close(m, MEAN.view(1, 2, 1, 1).expand(3, -1, 4, 4), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="one evaluation"):
        posterior_mean(gaussian_denoiser(process), process, draws_of(1, 3, (2, 4, 4)), 2)


@pytest.mark.parametrize(("steps", "error"), [(1, 0.0), (2, 0.25), (3, 7 / 27)])
def test_the_released_flow_sampler_overshoots(steps: int, error: float) -> None:
    """With a perfect velocity, as a share of the way from the noise to the mask (worked by hand for sigma_min = 0)."""
    process = OTFlow(sigma_min=1e-6, t_max=1 - 1e-6)
    mask = torch.full((2, 1, 4, 4), -0.6)
    noise = draws_of(8, 2, (1, 4, 4))()
    m = flowsdf_released(lambda z, t: mask, process, lambda: noise, steps)
    torch.testing.assert_close((m - noise) / (mask - noise), torch.full_like(m, 1 + error), atol=2e-3, rtol=0)
    ours = ddim(lambda z, t: mask, process, lambda: noise, steps)
    torch.testing.assert_close(ours, mask)


def test_unknown_orders_and_variances() -> None:
    with pytest.raises(ValueError, match="order is 3"):
        dpm_solver(gaussian_denoiser(VE()), VE(), draws_of(1, 1, (2, 2, 2)), 3, order=3)
    with pytest.raises(ValueError, match="small or large"):
        ancestral(gaussian_denoiser(VE()), VE(), draws_of(1, 1, (2, 2, 2)), 3, variance="medium")
