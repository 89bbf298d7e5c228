"""Losses of the joint model, and of a step in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from data.batches import Batch
from data.packed import open_training
from models.joint import JointDenoiser
from sde.process import VP, Process
from tests.commands import Workspace
from tests.networks import noise, shake, small_denoiser
from training.losses import Generators, joint_times, loss_of
from utils.config import load_config
from utils.sections import SDEConfig, TrainingConfig


def test_times_are_stratified_and_independent() -> None:
    t, clean = joint_times(1000, VP(), torch.Generator().manual_seed(0))
    assert not clean.any()
    for row in t:
        parts = ((row - VP().t_min) / (VP().t_max - VP().t_min) * 1000).floor()
        assert sorted(parts.tolist()) == list(range(1000))
    assert abs(torch.corrcoef(t)[0, 1].item()) < 0.08


def test_shares_of_clean_masks_and_images() -> None:
    t, clean = joint_times(4000, VP(), torch.Generator().manual_seed(0), clean_share=0.2)
    assert clean.double().mean(dim=1).tolist() == pytest.approx([0.2, 0.2], abs=0.02)
    assert not (clean[0] & clean[1]).any()
    assert (t[clean] == VP().t_min).all()
    assert joint_times(4000, VP(), torch.Generator().manual_seed(0), clean_share=0.5)[1].any(dim=0).all()


def test_both_losses_are_trained_on_all_times(joint: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is clean reaches the network without noise and has no loss; everything else has one."""
    import training.losses
    from training import session

    seen: list[tuple[Tensor, ...]] = []
    inner = JointDenoiser.joint
    data: list[Tensor] = []

    def spy(self: JointDenoiser, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(arguments)
        return inner(self, *arguments)

    def keep(process: Process, m: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        data.append(m)
        return process.alpha(t).float().view(-1, 1, 1, 1) * m + process.sigma(t).float().view(-1, 1, 1, 1) * eps

    monkeypatch.setattr(JointDenoiser, "joint", spy)
    monkeypatch.setattr(training.losses, "perturbed", keep)
    config = load_config("config.yaml", ["training.noises=20"])
    state = session.build_state(config, open_training(config.data)[0], torch.device("cpu"))
    batch = state.batches.next()
    losses, times = training.losses.loss_of(state.model, batch, state.generators, config.sde, config.training)
    z_m, t_m, z_x, t_x = seen[0]
    clean_m, clean_x = t_m == 0, t_x == 0
    assert clean_m.any()
    assert clean_x.any()
    assert len(losses) == len(times) == 120 - int(clean_m.sum() + clean_x.sum())
    assert (times > 0).all()
    torch.testing.assert_close(z_m[clean_m], data[0][clean_m])
    torch.testing.assert_close(z_x[clean_x], data[1][clean_x])
    assert (z_m - data[0])[~clean_m].flatten(1).std(dim=1).min() > 0.005
    assert data[1].abs().max() <= 1
    assert (losses > 0).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_step_in_bfloat16_is_near_that_in_float32(share: float) -> None:
    """bfloat16 keeps 8 bits, a relative error of 1/256 for each value: losses and the gradient's direction stay."""
    model = small_denoiser(VP(), direct=True).train()
    shake(model)
    images = torch.randint(0, 256, (4, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    m = (noise(4, 1, 4, 4) > 0).float().repeat_interleave(8, dim=2).repeat_interleave(8, dim=3) - 0.5
    losses, gradients = [], []
    sde = SDEConfig(weighting="edm", prior_share=share)
    for precision in ("float32", "bfloat16"):
        settings = TrainingConfig(noises=2, channels_last=False, precision=precision)  # type: ignore[arg-type]
        generators = Generators(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
        loss, _ = loss_of(model, Batch(images, m), generators, sde, settings)
        assert loss.dtype == torch.float32
        model.zero_grad()
        loss.mean().backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert not torch.equal(*losses)  # it did run in bfloat16
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)
    cosine = torch.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert cosine > 0.995
    assert gradients[1].norm().item() == pytest.approx(gradients[0].norm().item(), rel=0.02)


@pytest.mark.parametrize("options", [{}, {"second_moment": True}, {"distribution": True}], ids=str)
def test_all_raters_at_once_give_the_mean_gradient_of_one_at_a_time(options: dict[str, Any]) -> None:
    """By the same random numbers, over the raters of each image; the image with two raters has one of no weight."""
    model = small_denoiser(VP(), direct=True, **options).train()
    shake(model)
    images = torch.randint(0, 256, (2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    truths = noise(2, 3, 1, 4, 4).repeat_interleave(8, dim=3).repeat_interleave(8, dim=4).clamp(-1, 1)
    shares = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])
    sde = SDEConfig(weighting="edm", prior_share=1, objective="distribution" if options.get("distribution") else "mean")
    settings = TrainingConfig(noises=2, channels_last=False)

    def gradient(m: Tensor, weights: Tensor, shares: Tensor | None = None) -> Tensor:
        generators = Generators(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
        losses, _ = loss_of(model, Batch(images, m, shares=shares), generators, sde, settings)
        model.zero_grad()
        (losses * weights.repeat_interleave(2)).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together = gradient(truths, torch.ones(2), shares)
    apart = torch.stack([gradient(truths[:, k], shares[:, k]) for k in range(3)])
    assert (apart[0] - 0.5 * together).norm() > 0.05 * together.norm()  # raters do differ
    expected = apart.sum(dim=0)
    torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
