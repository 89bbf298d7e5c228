"""The direct mean at t = 1 and the variance beside it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from models.denoiser import Denoiser, build_denoiser
from sde.loss import Weighting, denoising_loss, second_moment_loss
from sde.process import VE, VP, OTFlow, Process
from tests.conftest import Workspace
from tests.models.test_denoiser import shake

END = torch.tensor(1.0)
DIRECT = ("--set", "sde.prior_share=0.5")


def small(prediction: str = "edm", process: Process | None = None, **changes: bool) -> Denoiser:
    torch.manual_seed(0)
    model = build_denoiser(
        process or VE(), prediction, image_channels=1, channels=8, multipliers=[1, 2], blocks=1, attention=[],
        encoder_channels=8, encoder_multipliers=[1, 2], encoder_blocks=1, encoder_attention=[], dropout=0.0,
        **{"direct": True, **changes},  # type: ignore[arg-type]
    )  # fmt: skip
    shake(model)
    return model.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("process", [VE(), VP(), OTFlow()])
def test_at_the_end_every_noise_gives_the_direct_mean(process: Process) -> None:
    model, image = small(process=process), noise(2, 1, 16, 16)
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
    model = small(direct=False)
    features = model.encode(noise(1, 1, 16, 16))
    assert not torch.allclose(model(noise(1, 1, 16, 16), END, features), model(-noise(1, 1, 16, 16), END, features))
    with pytest.raises(ValueError, match="direct mean"):
        model.direct_moments(features, (16, 16))


def test_the_direct_mean_is_computed_once_for_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = small(), []
    features = model.encode(noise(1, 1, 16, 16))
    monkeypatch.setattr(model.network, "forward", lambda *a: calls.append(a))
    model(noise(1, 1, 16, 16), END, features)
    assert not calls


@pytest.mark.parametrize("prediction", ["edm", "x", "both", "v"])
def test_the_variance_is_positive_and_leaves_the_mean_alone(prediction: str) -> None:
    model = small(prediction, VP(), second_moment=True)
    assert model.mask_channels == 1
    mean, variance = model.direct_moments(model.encode(noise(2, 1, 16, 16)), (16, 16))
    assert variance is not None
    assert mean.shape == variance.shape == (2, 1, 16, 16)
    assert (variance > 0).all()


def test_second_moment_loss_is_least_at_the_mean_squared_residual() -> None:
    """Of constant guesses, the best one is E[(m - mean)^2]; and it does not move the mean."""
    m = noise(2000, 1, 1, 1) * 0.3
    mean = torch.zeros_like(m, requires_grad=True)
    guess = torch.tensor(0.5, requires_grad=True)
    optimizer = torch.optim.LBFGS([guess], max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = second_moment_loss(guess.expand_as(m), mean, m, 0.3).mean()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    assert guess.item() == pytest.approx(m.square().mean().item(), rel=1e-3)
    assert mean.grad is None


def test_at_the_end_the_loss_is_the_plain_one_for_every_weighting() -> None:
    m, guess, t = noise(3, 1, 4, 4), torch.zeros(3, 1, 4, 4), torch.ones(3, dtype=torch.float64)
    for name in ("score", "sigmoid", "min_snr", "uniform"):
        found = denoising_loss(guess, VE(), m, t, Weighting(name), 0.5)
        torch.testing.assert_close(found, m.square().flatten(1).mean(1) / 0.25)


def test_mean_and_variance_are_learned(workspace: Workspace) -> None:
    """Two raters who disagree in half of the image: the mean is between them and the variance tells where."""
    generator = torch.Generator().manual_seed(0)
    model = small("x", second_moment=True).train()
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


def test_regression_is_a_config(trained: Workspace) -> None:
    options = ["--set", "sde.prior_share=1", "--set", "sampling.sampler=mean"]
    assert trained("main", *options).code == 0
    result = trained("sample", *options)
    assert result.code == 0, result.err
    assert "MMSE of 1 draws" in result.out
    assert "sampler: mean" in trained.fails("main", "--set", "sde.prior_share=1")


def test_mean_and_std_in_one_evaluation(trained: Workspace) -> None:
    options = [*DIRECT, "--set", "model.second_moment=true"]
    assert trained("main", *options).code == 0
    result = trained("sample", *options, "--set", "sampling.sampler=mean")
    assert result.code == 0, result.err
    folder = next((trained.run_folder() / "samples").iterdir())
    table = pd.read_csv(folder / "metrics.csv")
    assert (table["draws"] == 1).all()
    assert (table["nfe_per_draw"] == 1).all()
    std = np.load(folder / table["image_id"][0] / "std.npy")
    assert (std > 0).all()
    assert trained("sample", *options).code == 0


def test_the_second_moment_needs_the_direct_mean(workspace: Workspace) -> None:
    assert "sde.prior_share" in workspace.fails("main", "--set", "model.second_moment=true")


def test_draws_until_the_mean_is_sure(trained: Workspace) -> None:
    auto = ["--set", "sampling.draws=auto", "--set", "sampling.most_draws=12", "--set", "sampling.animate=false"]
    counts = {}
    for tolerance in ("10", "1e-6"):
        assert trained("sample", *auto, "--set", f"sampling.standard_error={tolerance}").code == 0
        folder = sorted((trained.run_folder() / "samples").iterdir())[-1]
        counts[tolerance] = pd.read_csv(folder / "metrics.csv")["draws"].tolist()
    assert counts == {"10": [4, 4, 4], "1e-6": [12, 12, 12]}
    fixed = ["--set", "sampling.draws=12", "--set", "sampling.animate=false"]
    assert trained("sample", *fixed).code == 0
    again = sorted((trained.run_folder() / "samples").iterdir())[-1]
    for image in pd.read_csv(folder / "metrics.csv")["image_id"]:
        np.testing.assert_allclose(np.load(folder / image / "mmse.npy"), np.load(again / image / "mmse.npy"), atol=1e-5)


def test_draws_are_a_number_or_auto(workspace: Workspace) -> None:
    assert "sampling.draws" in workspace.fails("sample", "--set", "sampling.draws=many")
    assert "sampling.draws" in workspace.fails("sample", "--set", "sampling.draws=0")
