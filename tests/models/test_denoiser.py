"""Predictions and scalings of the denoiser, its direct mean at t = 1 and the variance beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from models.denoiser import scaling
from sde.loss import Weighting, second_moment_loss
from sde.process import VE, VP, OTFlow, Process, ScheduledVP
from tests.networks import direct_denoiser, noise, shake, small_denoiser
from utils.sections import PREDICTIONS

PROCESSES: list[Process] = [VE(), VP(), ScheduledVP("cosine", 0.3), OTFlow()]


each_process = pytest.mark.parametrize("process", PROCESSES, ids=["ve", "vp", "cosine", "flow"])


class Told(nn.Module):
    """A network that answers what it is told."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: Tensor, noise: Tensor, features: Sequence[Tensor]) -> Tensor:
        return self.answer


@each_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_gives_the_mask(process: Process, prediction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(6, 1, 4, 4, generator=generator).clamp(-1, 1)
    eps = torch.randn(m.shape, generator=generator)
    t = torch.tensor([0.01, 0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
    alpha, sigma = (x(t).float().view(-1, 1, 1, 1) for x in (process.alpha, process.sigma))
    sigma_data = 0.6
    z = alpha * m + sigma * eps
    c = scaling("edm", process, t, sigma_data)
    step = 1e-6
    slope_alpha, slope_sigma = (
        ((x(t + step) - x(t - step)) / (2 * step)).float().view(-1, 1, 1, 1) for x in (process.alpha, process.sigma)
    )
    answers = {
        "x": m / sigma_data,
        "eps": eps,
        "v": alpha * eps - sigma * m,
        "velocity": slope_alpha * m + slope_sigma * eps,
        "both": torch.cat([m / sigma_data, eps], dim=1),
        "score": -eps,
        "score_raw": -eps / sigma,
        "edm": (m - c.skip.float().view(-1, 1, 1, 1) * z) / c.out.float().view(-1, 1, 1, 1),
    }
    model = small_denoiser(process)
    model.prediction = prediction
    model.sigma_data.fill_(sigma_data)
    model.network = Told(answers[prediction])  # type: ignore[assignment]
    torch.testing.assert_close(model(z, t, []), m, atol=1e-3, rtol=0)


@each_process
def test_predictions_of_one_denoiser_agree(process: Process) -> None:
    """What each prediction says of an imperfect guess D, turned back into D, over all times."""
    generator = torch.Generator().manual_seed(0)
    count = 200
    t = torch.linspace(process.t_min, process.t_max, count, dtype=torch.float64)
    z, guess = (torch.randn(count, 1, 2, 2, generator=generator) for _ in range(2))
    alpha, sigma = (x(t).view(-1, 1, 1, 1) for x in (process.alpha, process.sigma))
    z = (z * torch.sqrt(alpha**2 + sigma**2)).float()  # as large as z_t is
    wide = z.double()
    eps = (wide - alpha * guess) / sigma
    drift = process.drift(t).view(-1, 1, 1, 1)
    growth = 0.5 * process.diffusion_squared(t).view(-1, 1, 1, 1) / sigma**2 + drift
    answers = {
        "x": guess.double() / 0.5,
        "eps": eps,
        "v": alpha * eps - sigma * guess,
        "velocity": drift * alpha * guess + growth * sigma * eps,
        "both": torch.cat([guess.double() / 0.5, eps], dim=1),
    }
    model = small_denoiser(process)
    if isinstance(process, ScheduledVP):
        del answers["velocity"]  # its curves stand still at t = 0; the config refuses it
    for prediction, answer in answers.items():
        model.prediction = prediction
        model.sigma_data.fill_(0.5)
        model.network = Told(answer.float())  # type: ignore[assignment]
        error = (model(z, t, []) - guess).abs().flatten(1).amax(dim=1).double()
        # Float32 rounding of eps comes back times sigma / alpha; that of z, times 1 / alpha.
        allowed = 4e-6 * (1 + (sigma + eps.abs().amax(dim=(1, 2, 3), keepdim=True) * sigma + 1) / alpha).flatten()
        assert (error <= allowed).all(), prediction


def test_v_is_the_velocity_of_the_circular_path() -> None:
    """On alpha = cos, sigma = sin of an angle proportional to t, dz/dt is the angle's speed times v."""
    process = ScheduledVP("cosine")
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    m, eps = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    velocity = process.drift(t) * process.alpha(t) * m
    velocity = (
        velocity + (0.5 * process.diffusion_squared(t) / process.sigma(t) + process.drift(t) * process.sigma(t)) * eps
    )
    v = process.alpha(t) * eps - process.sigma(t) * m
    torch.testing.assert_close(velocity, 0.5 * math.pi * v, atol=1e-6, rtol=1e-6)


def test_tanh_bounds_the_mask() -> None:
    model = small_denoiser(VE(), limit=0.2)
    model.prediction = "x"
    shake(model)
    model.network = Told(torch.linspace(-50, 50, 16).view(1, 1, 4, 4))  # type: ignore[assignment]
    m = model(torch.zeros(1, 1, 4, 4), torch.tensor(0.5), [])
    assert m.min().item() == pytest.approx(-0.2)
    assert m.max().item() == pytest.approx(0.2)
    assert (m.diff() >= 0).all()


@each_process
def test_edm_scaling_gives_unit_variance_in_and_out(process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    sigma_data = 0.5
    m = sigma_data * torch.randn(50_000, generator=generator, dtype=torch.float64)
    eps = torch.randn(50_000, generator=generator, dtype=torch.float64)
    for t in torch.linspace(0.01, process.t_max, 7, dtype=torch.float64):
        alpha, sigma = process.alpha(t), process.sigma(t)
        z = alpha * m + sigma * eps
        c = scaling("edm", process, t, sigma_data)
        assert (c.inp * z).std().item() == pytest.approx(1.0, abs=0.02)
        assert ((m - c.skip * z) / c.out).std().item() == pytest.approx(1.0, abs=0.02)


def test_edm_scaling_is_karras_table_one_for_ve() -> None:
    t, data = VE().time_of_noise_ratio(torch.tensor(0.7, dtype=torch.float64)), 0.5
    c = scaling("edm", VE(), t, data)
    assert c.skip.item() == pytest.approx(data**2 / (0.7**2 + data**2))
    assert c.out.item() == pytest.approx(0.7 * data / math.sqrt(0.7**2 + data**2))
    assert c.inp.item() == pytest.approx(1 / math.sqrt(0.7**2 + data**2))
    assert c.noise.item() == pytest.approx(math.log(0.7) / 4)


def test_unknown_names_are_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="one of edm, x"):
        scaling("epsilon", VE(), one, 1.0)
    with pytest.raises(ValueError, match="one of score"):
        Weighting("snr")(VE(), one, 1.0)


# The direct mean.

END = torch.tensor(1.0)


@pytest.mark.parametrize("process", [VE(), VP(), OTFlow()])
def test_at_the_end_every_noise_gives_the_direct_mean(process: Process) -> None:
    model, image = direct_denoiser(process=process), noise(2, 1, 16, 16)
    features = model.encode(image)
    end = torch.tensor(process.t_max, dtype=torch.float64)
    mean = model.direct_moments(features, (16, 16))[0]
    torch.testing.assert_close(model(noise(2, 1, 16, 16), end, features), mean)
    torch.testing.assert_close(model(noise(2, 1, 16, 16), end.expand(2), features), mean, atol=1e-5, rtol=1e-5)
    earlier = end - 1e-3
    assert not torch.allclose(
        model(noise(2, 1, 16, 16), earlier, features), model(-noise(2, 1, 16, 16), earlier, features)
    )


def test_without_a_share_of_the_prior_noise_counts_at_the_end() -> None:
    model = direct_denoiser(direct=False)
    features = model.encode(noise(1, 1, 16, 16))
    assert not torch.allclose(model(noise(1, 1, 16, 16), END, features), model(-noise(1, 1, 16, 16), END, features))
    with pytest.raises(ValueError, match="direct mean"):
        model.direct_moments(features, (16, 16))


def test_the_direct_mean_is_computed_once_for_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = direct_denoiser(), []
    features = model.encode(noise(1, 1, 16, 16))
    monkeypatch.setattr(model.network, "forward", lambda *a: calls.append(a))
    model(noise(1, 1, 16, 16), END, features)
    assert not calls


@pytest.mark.parametrize("prediction", ["edm", "x", "both", "v"])
def test_the_variance_is_positive_and_leaves_the_mean_alone(prediction: str) -> None:
    model = direct_denoiser(prediction, VP(), second_moment=True)
    assert model.mask_channels == 1
    mean, variance = model.direct_moments(model.encode(noise(2, 1, 16, 16)), (16, 16))
    assert variance is not None
    assert mean.shape == variance.shape == (2, 1, 16, 16)
    assert (variance > 0).all()


@pytest.mark.slow
def test_mean_and_variance_are_learned() -> None:
    """Two raters who disagree in half of the image: the mean is between them and the variance tells where."""
    generator = torch.Generator().manual_seed(0)
    model = direct_denoiser("x", second_moment=True).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    image = torch.zeros(8, 1, 16, 16)
    for _ in range(150):
        m = torch.full((8, 1, 16, 16), 0.6)
        m[..., :8] *= torch.randint(0, 2, (8, 1, 1, 1), generator=generator) * 2 - 1
        mean, variance = model.direct_moments(model.encode(image), (16, 16))
        assert variance is not None
        loss = (mean - m).square().mean() / 0.25 + second_moment_loss(variance, mean, m, 0.5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean, variance = model.direct_moments(model.encode(image[:1]), (16, 16))
    assert variance is not None
    assert mean[..., 2:6].abs().mean().item() < 0.25
    assert variance[..., 2:6].mean().sqrt().item() == pytest.approx(0.6, abs=0.12)
    assert mean[..., 10:14].mean().item() == pytest.approx(0.6, abs=0.1)
    assert variance[..., 10:14].mean().sqrt().item() < 0.25


def test_logits_of_masks_are_the_last_outputs_and_change_no_mean() -> None:
    """A network with them, its first outputs those of one without: the same mean and variance, and logits besides."""
    bare, model = (direct_denoiser("edm", VP(), second_moment=True, masks=masks) for masks in (False, True))
    image, z, t = noise(1, 1, 16, 16), noise(1, 1, 16, 16, seed=3), torch.tensor(0.4, dtype=torch.float64)
    own = bare.state_dict()
    for name, w in model.state_dict().items():
        w.copy_(own[name]) if w.shape == own[name].shape else w[:2].copy_(own[name])
    features = model.features(image)
    found, expected = model.learned(z, t, features), bare.learned(z, t, features)
    torch.testing.assert_close((found.mean, found.variance), (expected.mean, expected.variance))
    assert expected.logits is None
    assert found.logits is not None
    assert found.logits.shape == z.shape
