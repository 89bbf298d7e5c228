"""Algorithm 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde.grids import time_grid
from sde.predictor_corrector import predictor_corrector
from sde.process import VE
from tests.networks import draws_of, gaussian_denoiser


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
    m = predictor_corrector(denoise, process, draws_of(4, 8, (2, 48, 48)), steps, r=r)
    assert m.var().item() == pytest.approx(v, rel=0.03)


def test_corrector_norm_is_per_draw() -> None:
    """A batch mate with a huge score does not change the step of the others."""
    process = VE(0.01, 5.0)
    scale = torch.tensor([1.0, 1.0]).view(2, 1, 1, 1)

    def run(second: float) -> Tensor:
        scale[1] = second
        return predictor_corrector(lambda z, t: z * 0 + scale, process, draws_of(6, 2, (1, 8, 8)), 20)

    assert torch.equal(run(1.0)[0], run(1e4)[0])


def test_pc_counts_and_the_last_noise() -> None:
    process, calls = VE(0.01, 5.0), []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        calls.append(t.item())
        return torch.zeros_like(z)

    noisy = predictor_corrector(denoise, process, draws_of(8, 1, (1, 64, 64)), 300, corrector_steps=2)
    assert len(calls) == 300
    # Line 5 evaluates at sigma_{k+1}, line 8 at sigma_k.
    assert calls[:3] == pytest.approx([1.0, 0.99, 0.99])
    quiet = predictor_corrector(
        denoise, process, draws_of(8, 1, (1, 64, 64)), 300, corrector_steps=2, denoise_last=True
    )
    # m = 0 exactly here, so that what is left is the noise of sigma_min.
    assert noisy.std().item() == pytest.approx(0.01, rel=0.15)
    assert quiet.std().item() < noisy.std().item()


@pytest.mark.parametrize(("steps", "corrector"), [(5, 1), (0, 1), (4, 2)])
def test_pc_refuses_broken_steps(steps: int, corrector: int) -> None:
    with pytest.raises(ValueError, match="evaluations cannot be split"):
        predictor_corrector(lambda z, t: z, VE(), draws_of(0, 1, (1, 2, 2)), steps, corrector_steps=corrector)
