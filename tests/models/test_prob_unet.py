"""The probabilistic U-Net: its loss, what its draws are, tiles, commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from models.denoiser import Draw
from models.prob_unet import DiagonalNormal, ProbUNet, build_prob_unet, evidence_loss, kl_divergence
from models.unet import Sizes
from sde.process import VE
from tests.commands import SIZES, Workspace, newest, sets, shake_checkpoint
from tests.networks import in_tiles_and_whole, noise

KEYS = [*SIZES, "model.kind=prob_unet", "model.latent=3", "data.representation=binary", "sampling.sampler=logits"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_model(mask_channels: int = 1) -> ProbUNet:
    """With weights that make something of z, and of the mask."""
    torch.manual_seed(0)
    model = build_prob_unet(VE(), 1, mask_channels, Sizes(8, [1, 2]), latent=2, beta=3.0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 if ".head." in name or "of_z" in name else 0.3, generator=seeded(1))
    return model.eval()


def normal(mean: list[float], std: list[float]) -> DiagonalNormal:
    return DiagonalNormal(torch.tensor(mean).view(1, -1, 1, 1), 2 * torch.tensor(std).log().view(1, -1, 1, 1))


def test_divergence_by_hand() -> None:
    """log(std_p / std_q) + (var_q + (mean_q - mean_p)^2) / (2 var_p) - 1/2, a sum over the numbers of z."""
    first = np.log(1 / 2) + (4 + 1) / 2 - 0.5
    second = np.log(0.5 / 1) + (1 + 1) / 0.5 - 0.5
    q, p = normal([1, 0], [2, 1]), normal([0, -1], [1, 0.5])
    assert kl_divergence(q, p).tolist() == pytest.approx([first + second])
    assert kl_divergence(p, p).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("mask_channels", [1, 2])
@torch.no_grad()
def test_loss_is_that_of_its_definition(mask_channels: int) -> None:
    """E_q[-log p(mask | z) + beta log(q(z) / p(z))] / pixels, of samples made without the model's help."""
    model, image, m, count = small_model(mask_channels), noise(1, 1, 4, 6), noise(1, mask_channels, 4, 6, seed=5), 4000
    many = image.expand(count, -1, -1, -1), m.expand(count, -1, -1, -1)
    logits, kl = model.reconstructed(*many, seeded())
    losses = evidence_loss(logits, many[1], kl, model.beta)

    mask = torch.where(m < 0, -1.0, 1.0)
    prior, posterior = model.encoder.prior(image), model.encoder.posterior(torch.cat([image, mask], dim=1))
    p, q = (Normal(law.mean, law.log_variance.exp().sqrt()) for law in (prior, posterior))
    z = q.sample((count,))[:, 0]
    scores = model.encoder.combine(model.encoder(image).expand(count, -1, -1, -1), z, (4, 6))
    classes = torch.where((m < 0).any(dim=1), m.argmin(dim=1) + 1, 0)
    if mask_channels == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    likelihood = torch.distributions.Categorical(logits=scores.movedim(1, -1)).log_prob(classes).flatten(1).sum(dim=1)
    ratio = (q.log_prob(z) - p.log_prob(z)).flatten(1).sum(dim=1)
    expected = (model.beta * ratio - likelihood) / 24
    error = ((expected.var() + losses.var()) / count).sqrt()
    assert ratio.mean() > 0.1
    assert losses.std() > 0.01
    assert abs(losses.mean() - expected.mean()) < 4 * error


def test_gradient_reaches_all_networks_and_z_shows_the_mask() -> None:
    model = small_model()
    image, m = noise(2, 1, 7, 9), noise(2, 1, 7, 9, seed=5)  # padded, as the stride is 2
    logits, kl = model.reconstructed(image, m, seeded())
    assert logits.shape == m.shape
    assert (kl > 0).all()
    evidence_loss(logits, m, kl, 1.0).sum().backward()
    assert [name for name, x in model.named_parameters() if x.grad is None or not x.grad.abs().any()] == []
    with torch.no_grad():
        other, _ = model.reconstructed(image, -m, seeded())
    assert (other - logits).abs().max() > 0.01


@torch.no_grad()
def test_draws_are_of_the_prior_and_their_mean_is_the_prior_mean() -> None:
    """z is recovered from logits that are linear in it."""
    model = small_model()
    network = model.encoder
    network.last = nn.Sequential(last := nn.Conv2d(8, 1, 1))
    images = noise(2, 1, 6, 6)
    features = model.encode(images)
    maps, prior = network(images), network.prior(images)
    rows = torch.arange(2).repeat_interleave(3000)
    drawn = -2 * torch.atanh(model.of_draws(features, rows, [Draw(seed, 0) for seed in range(6000)])[0].double())
    of_z = (last.weight[0, :, 0, 0] @ network.of_z.weight[:, :, 0, 0]).double()
    for i in range(2):
        scores = (drawn[rows == i] - network.combine(maps, prior.mean, (6, 6))[i].double()).flatten(1)
        assert (scores - scores[:, :1]).abs().max() < 1e-3  # one z for all pixels
        std = (of_z.square() @ prior.log_variance[i, :, 0, 0].exp().double()).sqrt()
        assert scores[:, 0].std().item() == pytest.approx(std.item(), rel=0.06)
        assert abs(scores[:, 0].mean()) < 4 * std / 3000**0.5
    model.draws = False
    means = model.of_draws(features, torch.tensor([1, 0]), [Draw(1, 0), Draw(2, 0)])[-1]
    torch.testing.assert_close(means, model.map_of(model.logits(images)).flip(0))
    model.draws = True
    alone = model.of_draws(features, torch.tensor([1]), [Draw(3001, 0)])[0]
    torch.testing.assert_close(-2 * torch.atanh(alone.double())[0], drawn[3001], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_tiles_of_a_draw_have_one_noise() -> None:
    """Where their priors are alike, and maps are of single pixels, tiles make the draw of the whole image."""

    class Pixels(nn.Module):
        widths, scales = (8,), (1,)

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 1)

        def forward(self, image: Tensor) -> list[Tensor]:
            return [self.conv(image)]

    model = small_model()
    model.encoder.trunk = Pixels()  # type: ignore[assignment]
    model.encoder.of_maps[0] = nn.Identity()
    nn.init.zeros_(model.encoder.prior.head.weight)
    seen, whole = in_tiles_and_whole(model)
    np.testing.assert_allclose(seen, whole, atol=1e-5)
    assert np.std(seen, axis=0).min() > 1e-3


@pytest.mark.slow
def test_raters_who_disagree_are_drawn_one_or_the_other() -> None:
    """One marks the left half, one the right: draws are either's mask, where a mean would be grey everywhere."""
    torch.manual_seed(0)
    model = build_prob_unet(VE(), 1, 1, Sizes(8, [1]), latent=2, beta=1.0).train()
    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-2), seeded()
    left = F.pad(-torch.ones(1, 1, 8, 4), (0, 4), value=1.0)
    image = left.expand(12, -1, -1, -1)
    for _ in range(80):
        m = left * torch.randn((12, 1, 1, 1), generator=generator).sign()
        logits, kl = model.reconstructed(image, m, generator)
        loss = evidence_loss(logits, m, kl, model.beta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        features = model.eval().encode(image[:1])
        draws = model.of_draws(features, torch.zeros(64, dtype=torch.int64), [Draw(seed, 0) for seed in range(64)])[0]
    agree = ((draws < 0) == (left < 0)).float().mean(dim=(1, 2, 3))
    first, second = (agree > 0.95).float().mean().item(), (agree < 0.05).float().mean().item()
    assert min(first, second) > 0.2
    assert first + second > 0.75


@pytest.mark.slow
def test_commands_train_and_draw(workspace: Workspace) -> None:
    keys = [*KEYS, "training.steps=3"]
    for command in ("prepare", "main"):
        assert (result := workspace(command, *sets(keys))).code == 0, result.err
    shake_checkpoint(workspace.run_folder(), scale=0.3)
    sampling = ["sampling.draws=3", "sampling.save_draws=true", "sampling.animate=false"]
    assert (result := workspace("sample", *sets([*keys, *sampling]))).code == 0, result.err
    folder = newest(workspace)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["sampler"], summary["draws"]) == ("logits", 3)
    assert summary["nfe_per_draw"] == pytest.approx(1 / 3)
    for path in folder.glob("*/draws.npz"):
        assert len({draw.tobytes() for draw in np.load(path)["sdf"]}) == 3
    assert (result := workspace("sample", *sets([*keys, "sampling.sampler=mean"]))).code == 0, result.err
    assert json.loads((newest(workspace) / "summary.json").read_text())["draws"] == 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["model.kind=prob_unet"], ["sampling.sampler", "mean, mc_dropout, ensemble or logits"]),
        ([*KEYS, "data.representation=sdf"], ["data.representation", "binary"]),
        ([*KEYS, "data.raters=all"], ["data.raters", "conditional"]),
        ([*KEYS, "model.kind=ssn"], ["model.latent", "kind: prob_unet, not ssn"]),
        ([*KEYS, "model.rank=3"], ["model.rank", "kind: ssn, not prob_unet"]),
        ([*KEYS, "model.latent=0"], ["model.latent", "1"]),
        ([*KEYS, "model.beta=0"], ["model.beta", "0"]),
    ],
)
def test_keys_that_do_not_go_together(workspace: Workspace, keys: list[str], words: list[str]) -> None:
    line = workspace.fails("main", *sets(keys))
    assert all(word in line for word in words), line
