"""Losses, weightings and times."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sde.loss import (
    Weighting,
    denoising_loss,
    energy_loss,
    jaccard,
    mask_loss,
    overlap_loss,
    perturbed,
    sample_times,
    second_moment_loss,
    soft_mask,
)
from sde.process import VE, VP, OTFlow, Process, ScheduledVP
from tests.networks import noise, small_denoiser
from utils.sections import WEIGHTINGS

PROCESSES: list[Process] = [VE(), VP(), ScheduledVP("cosine", 0.3), OTFlow()]


each_process = pytest.mark.parametrize("process", PROCESSES, ids=["ve", "vp", "cosine", "flow"])


@each_process
def test_score_weighting_is_equation_four(process: Process) -> None:
    """sigma^2 |s - grad log p_0t|^2, computed from scores."""
    generator = torch.Generator().manual_seed(0)
    m, eps, guess = (torch.randn(5, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    alpha, sigma = process.alpha(t).view(-1, 1, 1, 1), process.sigma(t).view(-1, 1, 1, 1)
    z = alpha * m + sigma * eps
    score, true_score = (alpha * guess - z) / sigma**2, -eps / sigma
    expected = (sigma**2 * (score - true_score) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(denoising_loss(guess, process, m, t, Weighting("score"), 0.5), expected)


@each_process
def test_edm_weighting_starts_at_one_for_every_time(process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    model = small_denoiser(process)
    model.sigma_data.fill_(0.4)
    m = 0.4 * torch.randn(64, 1, 16, 16, generator=generator)
    eps = torch.randn(m.shape, generator=generator)
    features = model.encode(torch.zeros(64, 1, 16, 16))
    t = torch.linspace(0.02, process.t_max, 64, dtype=torch.float64)
    denoised = model(perturbed(process, m, t, eps), t, features)
    losses = denoising_loss(denoised, process, m, t, Weighting("edm"), 0.4)
    torch.testing.assert_close(losses, torch.ones(64), atol=0.35, rtol=0)
    assert losses.mean().item() == pytest.approx(1.0, abs=0.05)


def test_snr_plus_one_on_x_is_the_v_loss() -> None:
    process, generator = ScheduledVP("cosine"), torch.Generator().manual_seed(0)
    m, eps, guess = (torch.randn(9, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    alpha, sigma = process.alpha(t).view(-1, 1, 1, 1), process.sigma(t).view(-1, 1, 1, 1)
    z = alpha * m + sigma * eps
    v, guessed = alpha * eps - sigma * m, alpha * (z - alpha * guess) / sigma - sigma * guess
    expected = (v - guessed).square().flatten(1).mean(1)
    found = denoising_loss(guess, process, m, t, Weighting("snr_plus_one"), 0.5)
    torch.testing.assert_close(found, expected)


def test_velocity_weighting_is_the_flow_matching_loss() -> None:
    process, generator = OTFlow(), torch.Generator().manual_seed(0)
    m, eps, guess = (torch.randn(9, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    alpha, sigma = process.alpha(t).view(-1, 1, 1, 1), process.sigma(t).view(-1, 1, 1, 1)
    z = alpha * m + sigma * eps
    velocity, guessed = (1 - 1e-3) * eps - m, (1 - 1e-3) * (z - alpha * guess) / sigma - guess
    expected = (velocity - guessed).square().flatten(1).mean(1)
    found = denoising_loss(guess, process, m, t, Weighting("velocity"), 0.5)
    torch.testing.assert_close(found, expected)


def test_weightings_by_hand() -> None:
    """SNR 4 for VE with sigma = 1/2."""
    process = VE()
    t = process.time_of_noise_ratio(torch.tensor([0.5, 2.0], dtype=torch.float64))
    expected: dict[str, list[float]] = {
        "score": [4, 0.25], "uniform": [16, 16], "edm": [20, 16.25], "snr_plus_one": [5, 1.25], "max_snr_one": [4, 1],
        "min_snr": [4, 0.25], "sigmoid": [1 / (1 + math.exp(4) / 4), 1 / (1 + math.exp(4) * 4)],
        "velocity": [math.log(5000) ** 2] * 2,
    }  # fmt: skip
    assert set(expected) == set(WEIGHTINGS)
    for name, values in expected.items():
        assert Weighting(name)(process, t, 0.25).tolist() == pytest.approx(values)
        slope = 2 * math.log(5000)  # -d log-SNR / dt of VE
        assert Weighting(name, per_logsnr=True)(process, t, 0.25).tolist() == pytest.approx([v * slope for v in values])
    assert Weighting("min_snr")(process, torch.zeros(1, dtype=torch.float64), 1.0).item() == 5


@each_process
def test_weights_per_log_snr_do_not_depend_on_the_schedule(process: Process) -> None:
    """The integral over t of w(t) (-d log-SNR / dt) is that of w over log-SNR."""
    t = process.time_of_noise_ratio(torch.exp(-0.5 * torch.linspace(8, -3, 4001, dtype=torch.float64)))
    low, high = process.logsnr(t[-1]).item(), process.logsnr(t[0]).item()
    w = Weighting("sigmoid", shift=2.0, per_logsnr=True)(process, t, 1.0)
    expected = math.log1p(math.exp(high - 2)) - math.log1p(math.exp(low - 2))
    assert torch.trapezoid(w, t).item() == pytest.approx(expected, rel=2e-3)


def test_times_are_stratified_uniform_and_at_the_prior() -> None:
    generator = torch.Generator().manual_seed(0)
    t = sample_times(100, VP(), generator)
    assert t.min() >= VP().t_min
    scaled = (t - VP().t_min) / (1 - VP().t_min)
    assert sorted((scaled * 100).long().tolist()) == list(range(100))
    assert not torch.equal(t, t.sort().values)
    shares = [(sample_times(6, VE(), generator, 0.25) == 1.0).double().mean().item() for _ in range(400)]
    assert sum(shares) / 400 == pytest.approx(0.25, abs=0.02)
    pairs = (sample_times(8, VE(), generator, 0.5) == 1.0).view(4, 2).sum(dim=1)
    assert pairs.tolist() == [1, 1, 1, 1]  # of two noises of an image one
    assert (sample_times(5, VE(), generator, 1.0) == 1.0).all()


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


@pytest.mark.parametrize("draws", [2, 4])
def test_the_energy_loss_is_least_for_the_true_law(draws: int) -> None:
    """Images with a shared part: draws of the truth's law beat narrower and wider ones, and ones without that part."""
    generator = torch.Generator().manual_seed(0)

    def field(shared: float, scale: float = 1.0, count: int = 6000) -> Tensor:
        whole, own = (torch.randn(count, 1, *size, generator=generator) for size in ((1, 1), (16, 16)))
        return scale * (math.sqrt(shared) * whole + math.sqrt(1 - shared) * own)

    def loss(shared: float, scale: float = 1.0) -> float:
        return energy_loss([field(shared, scale) for _ in range(draws)], field(0.5)).mean().item()

    true = loss(0.5)
    for other in (loss(0.5, 0.6), loss(0.5, 1.5), loss(0.0), loss(1.0)):
        assert other > true + 0.005


def test_the_energy_loss_by_hand() -> None:
    """Constant images 1 and 3 of a truth of 0 at 8 x 8: all four scales and the pooled norm say the same."""
    one, two, m = (torch.full((1, 1, 8, 8), value) for value in (1.0, 3.0, 0.0))
    assert energy_loss([one, two], m).item() == pytest.approx(2.0 - 0.975 * 1.0, abs=1e-4)


@given(scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_the_energy_loss_has_the_units_of_m(scale: float, seed: int) -> None:
    one, two, m = noise(3, 2, 1, 8, 8, seed=seed)
    scaled = energy_loss([scale * one, scale * two], scale * m)
    torch.testing.assert_close(scaled, scale * energy_loss([one, two], m), rtol=1e-3, atol=1e-4)
    masks = mask_loss(m, [scale * one, scale * two], scale * m, pixel=scale / 4)
    torch.testing.assert_close(masks, mask_loss(m, [one, two], m, pixel=1 / 4), rtol=1e-3, atol=1e-4)


def test_the_mask_loss_by_hand() -> None:
    """SDFs of 4-pixel truncation, a pixel 1/4: a logit of -1 where the truth is inside; draws whose masks are 1/4 and
    3/4 of a truth that is half of a mask, at its border, the same at all scales."""
    logits, m = torch.full((1, 1, 8, 8), -1.0), torch.zeros(1, 1, 8, 8)
    entropy = math.log1p(math.e)
    assert mask_loss(logits, [], m, pixel=0.25).item() == pytest.approx(entropy)
    one, two = (soft_mask(torch.full_like(m, value), 0.25) for value in (0.25, -0.25))
    assert (one.unique().item(), two.unique().item()) == (0.25, 0.75)
    both = mask_loss(logits, [m + 0.25, m - 0.25], m, pixel=0.25).item()
    assert both == pytest.approx(entropy + 2 * (0.25 - 0.5 * 0.975 * 0.5), abs=1e-5)
    assert soft_mask(torch.tensor([-1.0, -0.5, 0.5, 1.0]), 0.25).tolist() == [1.0, 1.0, 0.0, 0.0]


def squares(left: Tensor, side: int = 3) -> Tensor:
    """SDFs (N, 1, 8, 16) in pixels, deep in and far out, of squares that begin at these columns."""
    column, row = torch.arange(16), torch.arange(8)[:, None]
    inside = (column >= left[:, None, None]) & (column < left[:, None, None] + side) & (row >= 2) & (row < 2 + side)
    return 9.0 - 18.0 * inside[:, None]


def test_jaccard_by_hand() -> None:
    nine, moved = ((squares(torch.tensor([left])) < 0).float() for left in (0, 1))
    none = torch.zeros_like(nine)
    for a, b, expected in ((nine, nine, 0.0), (none, none, 0.0), (nine, none, 9 / 10), (nine, moved, 6 / 13)):
        assert jaccard(a, b).item() == jaccard(b, a).item() == pytest.approx(expected)
    assert jaccard(0.5 * nine, nine).item() == pytest.approx(4.5 / 10)
    classes = jaccard(torch.cat([nine, none], dim=1), torch.cat([moved, none], dim=1))
    assert classes.item() == pytest.approx(3 / 13)


@given(seed=st.integers(0, 999))
def test_an_energy_score_by_jaccard_is_proper(seed: int) -> None:
    """Its distances of soft masks are those of points in a space with a product: conditionally negative definite."""
    masks = torch.rand(12, 2, 3, 3, generator=torch.Generator().manual_seed(seed)).double() ** 2
    apart = torch.stack([jaccard(mask.expand_as(masks), masks) for mask in masks])
    centred = torch.eye(12).double() - 1 / 12
    assert torch.linalg.eigvalsh(-centred @ apart @ centred).min() > -1e-9


def test_masks_show_a_small_object_that_comes_and_goes() -> None:
    """There in half of the truths, at one of four places: draws of that law win against those that always have it or
    never, have it at one place, or at twelve. The best logits are its share at each place."""
    generator = torch.Generator().manual_seed(0)

    def law(there: float, places: int) -> Tensor:
        left = torch.randint(places, (8000,), generator=generator)
        shown = torch.rand(8000, generator=generator) < there
        return torch.where(shown[:, None, None, None], squares(left), 9.0)

    truths = law(0.5, 4)

    def scores(there: float, places: int = 4) -> Tensor:
        draws = [law(there, places) for _ in range(2)]
        of_masks = mask_loss(truths, draws, truths) - mask_loss(truths, [], truths)
        return torch.stack([of_masks, overlap_loss(draws, truths)]).mean(dim=1)

    true = scores(0.5)
    for other in (scores(1.0), scores(0.0), scores(0.5, 1), scores(0.5, 12)):
        assert (other > true + torch.tensor([0.0015, 0.01])).all()
    share = (truths <= 0).double().mean(dim=0).clamp(1e-4, 1 - 1e-4)
    best, *others = (
        mask_loss(torch.logit(p).float().expand_as(truths), [], truths).mean().item()
        for p in (share, 0.5 * share, (2 * share).clamp(max=0.9))
    )
    assert best < min(others)


def test_several_truths_are_scored_as_each_by_itself() -> None:
    """The score is linear in the truth's law: a mean by shares over raters, of values and of gradients."""
    one, two, truths = noise(2, 1, 12, 12, seed=1).requires_grad_(), noise(2, 1, 12, 12, seed=2), noise(2, 3, 1, 12, 12)
    shares = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])

    def loss(m: Tensor, shares: Tensor | None = None) -> Tensor:
        masks = mask_loss(two, [one, two], m, shares) + overlap_loss([one, two], m, shares)
        return energy_loss([one, two], m, shares) + masks

    together, apart = loss(truths, shares), torch.stack([loss(m) for m in truths.unbind(dim=1)], dim=1)
    torch.testing.assert_close(together, (apart * shares).sum(dim=1))
    gradients = [torch.autograd.grad(loss.sum(), one)[0] for loss in (together, (apart * shares).sum(dim=1))]
    torch.testing.assert_close(*gradients)
    same = energy_loss([one, two], truths[:, :1], torch.ones(2, 1))
    assert torch.equal(same, energy_loss([one, two], truths[:, 0]))
