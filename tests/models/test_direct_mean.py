"""The direct mean at t = 1 and the variance beside it."""

from __future__ import annotations

import pytest
import torch

from sde.loss import second_moment_loss
from sde.process import VE, VP, OTFlow, Process
from tests.helpers import direct_denoiser, noise

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
