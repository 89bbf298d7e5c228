"""Stochastic segmentation networks: the loss, the law of the draws, tiles, commands."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from data.dataset import load_split
from data.scenes import scenes_of
from data.sdf import signed_distance
from evaluation.proper import energy_score, fair_crps
from models.denoiser import Draw
from models.ssn import LEAST, SSN, LowRankNormal, build_ssn, mask_likelihood_loss
from models.unet import Sizes
from sde.process import VE
from tests.commands import SIZES, Workspace, newest, sets, shake_checkpoint
from tests.networks import in_tiles_and_whole, noise
from utils.config import load_config

SSN_KEYS = [*SIZES, "model.kind=ssn", "model.rank=3", "data.representation=binary", "sampling.sampler=logits"]
NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(40))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_loss_of_two_pixels_is_that_of_the_integral() -> None:
    """p(inside, outside) over w of the expectation over each pixel's own noise, by Gauss-Hermite quadrature."""
    mean, std, factor = torch.tensor([0.5, -1.0]), torch.tensor([0.8, 0.3]), torch.tensor([1.5, 2.0])
    eta = mean + factor * NODES.view(-1, 1, 1) + std * NODES.view(-1, 1)  # w, eps, pixel
    each = torch.einsum("wep,e->wp", torch.sigmoid(eta * torch.tensor([1.0, -1.0])), WEIGHTS)
    expected = -torch.log(WEIGHTS @ each.prod(dim=1)) / 2
    normal = LowRankNormal(mean.view(1, 1, 1, 2), std.view(1, 1, 1, 2), factor.view(1, 1, 1, 1, 2))
    loss = mask_likelihood_loss(normal, torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2), seeded(), samples=200_000)
    assert loss.item() == pytest.approx(expected.item(), abs=0.005)
    # Pixels apart, as cross entropy has them, would be another number.
    apart = -torch.log(WEIGHTS @ each).sum() / 2
    assert abs(apart.item() - expected.item()) > 0.1


def test_loss_of_classes_is_that_of_the_integral() -> None:
    """Two pixels, of class 2 and of the background, whose logits depend on one w."""
    mean = torch.tensor([[0.2, -0.5], [0.1, 0.3], [-0.4, 0.6]], dtype=torch.float64)  # class, pixel
    factor = torch.tensor([[1.0, -1.0], [0.5, 0.2], [-1.5, 1.0]], dtype=torch.float64)
    p = (mean + factor * NODES.view(-1, 1, 1)).softmax(dim=1)
    expected = -torch.log(WEIGHTS @ (p[:, 2, 0] * p[:, 0, 1])) / 2
    normal = LowRankNormal(mean.float().view(1, 3, 1, 2), torch.zeros(1, 3, 1, 2), factor.float().view(1, 1, 3, 1, 2))
    m = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).view(1, 2, 1, 2)
    loss = mask_likelihood_loss(normal, m, seeded(), samples=200_000)
    assert loss.item() == pytest.approx(expected.item(), abs=0.005)


def test_loss_of_a_large_image_is_finite_where_all_samples_are_unlikely() -> None:
    maps = torch.full((1, 12, 256, 256), 30.0, requires_grad=True)
    loss = mask_likelihood_loss(fixed(maps, 10).normal(maps), torch.ones(1, 1, 256, 256), seeded())
    loss.sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(loss).all() & torch.isfinite(maps.grad).all()


def fixed(maps: Tensor, rank: int, mask_channels: int = 1) -> SSN:
    """Whose network gives these maps for any image."""

    class Fixed(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return maps

    return SSN(VE(), Fixed(), 1, mask_channels, rank).eval()


def test_draws_have_the_covariance_of_the_network() -> None:
    maps = 0.5 * noise(1, 4, 2, 3)
    model = fixed(maps, rank=2)
    features = model.encode(torch.zeros(1, 1, 2, 3))
    sdf = model.of_draws(features, torch.zeros(3000, dtype=torch.int64), [Draw(seed, 0) for seed in range(3000)])[0]
    eta = -2 * torch.atanh(sdf.double()).flatten(1)
    mean, variance, *factors = (x.flatten().double() for x in maps[0])
    expected = torch.diag(variance.exp() + LEAST) + sum(torch.outer(f, f) for f in factors)
    scale = torch.outer(*[expected.diag().sqrt()] * 2)
    assert ((torch.cov(eta.T) - expected) / scale).abs().max() < 5 * (2 / 3000) ** 0.5
    assert ((eta.mean(dim=0) - mean) / expected.diag().sqrt()).abs().max() < 5 / 3000**0.5
    model.draws = False
    torch.testing.assert_close(
        model.of_draws(features, torch.tensor([0]), [Draw(1, 0)])[-1], -torch.tanh(maps[:, :1] / 2)
    )


def test_a_draw_is_the_same_in_tiles() -> None:
    """Its coefficients belong to the image, its noise of single pixels to their places."""
    torch.manual_seed(0)
    model = SSN(VE(), nn.Conv2d(1, 5, 1), 1, 1, rank=3).eval()
    seen, whole = in_tiles_and_whole(model)
    np.testing.assert_allclose(seen, whole, atol=1e-5)
    assert np.std(seen, axis=0).min() > 1e-3


def test_pixels_that_go_together_are_drawn_together() -> None:
    """Every mask is full or empty: draws must be so too, where independent pixels would all cover a half."""
    torch.manual_seed(0)
    model = build_ssn(VE(), 1, 1, Sizes(8, [1, 2]), rank=4).train()
    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-2), seeded()
    image = torch.zeros(16, 1, 8, 8)
    for _ in range(60):
        m = torch.randn((16, 1, 1, 1), generator=generator).sign().expand(-1, 1, 8, 8)
        loss = mask_likelihood_loss(model.normal(model.logits(image)), m, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        features = model.eval().encode(image[:1])
        draws = model.of_draws(features, torch.zeros(64, dtype=torch.int64), [Draw(seed, 0) for seed in range(64)])[0]
    areas = (draws < 0).float().mean(dim=(1, 2, 3))
    assert loss < 0.5 * np.log(2)
    assert areas.mean().item() == pytest.approx(0.5, abs=0.25)
    assert ((areas < 0.1) | (areas > 0.9)).float().mean() > 0.75


@pytest.mark.slow
def test_commands_train_and_draw_masks_that_are_scored_as_sdfs(workspace: Workspace) -> None:
    keys = [*SSN_KEYS, "training.steps=3"]
    for command in ("prepare", "main"):
        assert (result := workspace(command, *sets(keys))).code == 0, result.err
    shake_checkpoint(workspace.run_folder())
    sampling = ["sampling.draws=3", "sampling.save_draws=true", "sampling.animate=false"]
    assert (result := workspace("sample", *sets([*keys, *sampling]))).code == 0, result.err
    folder = newest(workspace)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["sampler"], summary["draws"]) == ("logits", 3)
    assert summary["nfe_per_draw"] == pytest.approx(1 / 3)
    table = pd.read_csv(folder / "metrics.csv", dtype={"image_id": str})
    scenes = scenes_of(load_split(load_config("config.yaml", keys).data, "test"))
    for scene, row in zip(scenes, table.to_dict("records"), strict=True):
        draws = np.load(folder / scene.key / "draws.npz")["sdf"]
        assert len({draw.tobytes() for draw in draws}) == 3
        sdfs = np.stack([signed_distance(draw < 0, 6)[None] for draw in draws])
        assert row["fair_crps"] == pytest.approx(fair_crps(sdfs, scene.rater_sdfs[0]).mean(), abs=1e-6)
        assert row["energy"] == pytest.approx(energy_score(sdfs, scene.rater_sdfs[0]), abs=1e-5)
        assert (row["mask_crps"], row["mask_energy"]) == (row["fair_crps"], row["energy"])
        areas = json.loads((folder / scene.key / "details.json").read_text())["spread"]["areas"]
        assert areas == [int((draw < 0).sum()) for draw in draws]
    views = ["sampling.draws=2", "sampling.augment=true", "sampling.animate=false"]  # more views than draws
    assert (result := workspace("sample", *sets([*keys, *views]))).code == 0, result.err


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["model.kind=ssn"], ["sampling.sampler", "mean, mc_dropout, ensemble or logits"]),
        ([*SSN_KEYS, "data.representation=sdf"], ["data.representation", "binary"]),
        ([*SSN_KEYS, "model.kind=resunet", "model.rank=10"], ["logits", "ssn"]),
        (["sampling.sampler=logits"], ["model.kind", "ssn"]),
        ([*SSN_KEYS, "model.kind=resunet", "sampling.sampler=mean"], ["model.rank", "kind: ssn, not resunet"]),
        ([*SSN_KEYS, "model.rank=-1"], ["model.rank", "0"]),
        ([*SSN_KEYS, "sampling.sampler=mean", "sampling.draws=4"], ["sampling.draws", "logits"]),
        ([*SSN_KEYS, "sampling.noise=antithetic"], ["sampling.noise"]),
    ],
)  # fmt: skip
def test_keys_that_do_not_go_together(workspace: Workspace, keys: list[str], words: list[str]) -> None:
    line = workspace.fails("main", *sets(keys))
    assert all(word in line for word in words), line
