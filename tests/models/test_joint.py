"""The joint model's denoiser on a Gaussian with a known posterior."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from models.denoiser import batch_times
from models.joint import JointDenoiser
from models.unet import Sizes
from sde.grids import logsnr_grid
from sde.process import VE, VP, OTFlow, Process
from sde.samplers import ancestral, heun
from tests.networks import noise, shake
from training.losses import joint_times

PROCESSES: list[Process] = [VE(), VP(), OTFlow()]


each_process = pytest.mark.parametrize("process", PROCESSES, ids=["ve", "vp", "flow"])


SIZES = Sizes(8, [1, 2])


def small(
    process: Process | None = None, image_channels: int = 3, mask_channels: int = 2, sizes: Sizes = SIZES
) -> JointDenoiser:
    torch.manual_seed(0)
    model = JointDenoiser(process or VE(), "edm", image_channels, mask_channels, sizes)
    shake(model)
    return model.eval()


# A Gaussian whose posterior is known: (m, x) at every pixel has this covariance.
COVARIANCE = torch.tensor([[0.36, 0.20], [0.20, 0.25]], dtype=torch.float64)


class Gaussian(JointDenoiser):
    """The exact posterior means of that Gaussian in place of a network's."""

    def joint(self, z_m: Tensor, t_m: Tensor, z_x: Tensor, t_x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.stack([z_m, z_x], dim=-1).double()
        t = torch.stack([batch_times(t_m, z_m)[0], batch_times(t_x, z_x)[0]])
        scale, spread = self.process.alpha(t).diag(), (self.process.sigma(t) ** 2).diag()
        gain = COVARIANCE @ scale @ torch.linalg.inv(scale @ COVARIANCE @ scale + spread)
        m, x = (z @ gain.T).float().unbind(-1)
        return m, x


def exact(process: Process) -> JointDenoiser:
    model = small(process, image_channels=1, mask_channels=1)
    model.__class__ = Gaussian
    return model


def normal(*shape: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(shape, generator=generator)


@each_process
@pytest.mark.parametrize("sampler", [partial(heun, steps=60), partial(ancestral, steps=500)], ids=["heun", "ancestral"])
def test_pairs_have_the_joint_covariance(process: Process, sampler: Callable[..., Tensor]) -> None:
    pairs = sampler(exact(process).pair, process, normal(1, 2, 150, 150), grid=logsnr_grid)
    found = torch.cov(pairs[0].flatten(1))
    torch.testing.assert_close(found.double(), COVARIANCE, atol=0.012, rtol=0.03)


@each_process
@pytest.mark.parametrize("given", ["mask", "image"])
def test_conditionals_have_the_posterior_mean_and_variance(process: Process, given: str) -> None:
    model, value = exact(process), 0.7
    condition = torch.full((1, 1, 120, 120), value)
    own = 1 if given == "mask" else 0
    if given == "mask":
        denoise = partial(model.image, m=condition)
    else:
        denoise = partial(model.forward, features=model.encode(condition))
    draws = ancestral(denoise, process, normal(1, 1, 120, 120), 500, grid=logsnr_grid)
    c = COVARIANCE.tolist()
    slope = c[0][1] / c[1 - own][1 - own]
    assert draws.mean().item() == pytest.approx(slope * value, abs=0.012)
    assert draws.var().item() == pytest.approx(c[own][own] - slope * c[0][1], rel=0.06)


@each_process
def test_untrained_it_is_the_linear_denoiser_of_each_part(process: Process) -> None:
    """With a zero last layer: alpha s^2 / (alpha^2 s^2 + sigma^2) z, by each part's own time and scale."""
    model = JointDenoiser(process, "edm", 1, 1, Sizes(8, [1]), sigma_data=0.8, sigma_image=0.3)
    z, times = noise(2, 2, 5, 7), torch.tensor([[0.1, 0.6], [0.9, 0.3]], dtype=torch.float64)
    found = model.joint(z[:, :1], times[0], z[:, 1:], times[1])
    for k, scale in enumerate((0.8, 0.3)):
        alpha, sigma = process.alpha(times[k]), process.sigma(times[k])
        gain = alpha * scale**2 / ((alpha * scale) ** 2 + sigma**2)
        torch.testing.assert_close(found[k], z[:, k : k + 1] * gain.float().view(-1, 1, 1, 1))


def test_each_time_matters_to_both_parts() -> None:
    model, z = small(), noise(1, 5, 8, 8)
    reference = model.joint(z[:, :2], torch.tensor(0.5), z[:, 2:], torch.tensor(0.5))
    for t_m, t_x in ((0.4, 0.5), (0.5, 0.4)):
        other = model.joint(z[:, :2], torch.tensor(t_m), z[:, 2:], torch.tensor(t_x))
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(reference, other, strict=True))


def test_shapes_of_any_size() -> None:
    model = small(sizes=Sizes(8, [1, 2, 2]))
    m, x = model.joint(noise(2, 2, 13, 10), torch.tensor(0.3), noise(2, 3, 13, 10), torch.tensor([0.2, 0.9]))
    assert (m.shape, x.shape) == ((2, 2, 13, 10), (2, 3, 13, 10))
    assert model.pair(noise(2, 5, 13, 10), torch.tensor(0.3)).shape == (2, 5, 13, 10)


def test_as_a_denoiser_it_is_the_joint_one_with_a_clean_image() -> None:
    model, z, image = small(VP()), noise(2, 2, 8, 8), noise(2, 3, 8, 8, seed=4)
    t, least = torch.tensor(0.4), torch.tensor(VP().t_min, dtype=torch.float64)
    expected = model.joint(z, t, float(VP().alpha(least)) * image, least)[0]
    torch.testing.assert_close(model(z, t, model.encode(image)), expected)
    assert model.mask_channels == 2
    assert not model.second_moment
    with pytest.raises(ValueError, match="direct mean"):
        model.direct_moments(model.encode(image), (8, 8))


@pytest.mark.slow
def test_the_network_learns_what_goes_together() -> None:
    """Bright images have full masks, dark ones empty: each tells the other."""
    from sde.loss import Weighting, denoising_loss, perturbed

    model = small(VE(0.01, 5.0), image_channels=1, mask_channels=1).train()
    optimizer, generator = torch.optim.Adam(model.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(120):
        sign = (torch.randint(0, 2, (16, 1, 1, 1), generator=generator) * 2.0 - 1.0).expand(-1, 1, 4, 4)
        t, _ = joint_times(16, model.process, generator)
        parts = 0.6 * sign, 0.4 * sign
        z = [perturbed(model.process, d, s, torch.randn(d.shape, generator=generator))
             for d, s in zip(parts, t, strict=True)]  # fmt: skip
        means = model.joint(z[0], t[0], z[1], t[1])
        loss = sum((denoising_loss(mean, model.process, d, s, Weighting("edm"), 0.5).mean()
                    for mean, d, s in zip(means, parts, t, strict=True)), torch.zeros(()))  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    bright = torch.full((8, 1, 4, 4), 0.4)
    grid = partial(ancestral, steps=12, grid=logsnr_grid)
    m = grid(partial(model.forward, features=model.encode(bright)), model.process, normal(8, 1, 4, 4))
    x = grid(lambda z, t: model.image(z, t, -1.5 * bright), model.process, normal(8, 1, 4, 4))
    pairs = grid(model.pair, model.process, normal(32, 2, 4, 4)).mean(dim=(2, 3))
    assert m.mean().item() == pytest.approx(0.6, abs=0.15)
    assert x.mean().item() == pytest.approx(-0.4, abs=0.12)
    assert (pairs[:, 0] * pairs[:, 1] > 0).float().mean() > 0.9
    assert 4 < (pairs[:, 0] > 0).sum() < 28
