"""The second noise, and what a distributional denoiser makes of it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from data.batches import Batch
from models.denoiser import Denoiser, Draw
from models.latent import CELLS, CHANNELS, at_levels, latent_channels, latent_of, random_latent
from models.pooled import PooledDraws
from sde.process import VP
from tests.networks import direct_denoiser, noise
from training.losses import Generators, loss_of
from utils.sections import SDEConfig, TrainingConfig

END = torch.tensor(1.0, dtype=torch.float64)


def distributional(seed: int = 0) -> Denoiser:
    model = direct_denoiser(process=VP(), distribution=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed))
    return model


def drawn(model: Denoiser, image: Tensor, draws: list[Draw], z: Tensor | None = None, t: Tensor = END) -> Tensor:
    z = noise(len(draws), 1, *image.shape[-2:]) if z is None else z
    with torch.no_grad():
        return model(z, t, model.of_draws(model.encode(image), torch.zeros(len(draws), dtype=torch.int64), draws))


def test_the_finest_level_holds_all_of_them() -> None:
    levels = latent_of([5, 6], [(24, 12), (0, 0)], 1.0, (48, 32), [1, 2, 4, 8, 16])
    assert all(map(torch.equal, at_levels(levels[0], [1, 2, 4, 8, 16]), levels))


def test_coarser_levels_see_the_same_noise_whichever_is_the_finest() -> None:
    draw = [5, 6], [(24, 12), (1, 7)], 1.0, (48, 36)
    assert all(map(torch.equal, latent_of(*draw, [4, 8]), latent_of(*draw, [1, 2, 4, 8])[2:]))


def test_windows_of_a_draw_agree_and_draws_differ() -> None:
    whole = latent_of([5], [(0, 0)], 1.0, (96, 80), [1, 2, 4])
    part = latent_of([5], [(24, 12)], 1.0, (40, 32), [1, 2, 4])
    for level, (one, other) in enumerate(zip(whole, part, strict=True)):
        top, left, side = 24 >> level, 12 >> level, (40 >> level, 32 >> level)
        assert other.shape == (1, latent_channels([1, 2, 4])[level], *side)
        assert torch.equal(one[..., top : top + side[0], left : left + side[1]], other)
    borders = torch.cat([latent_of([seed], [(0, 0)], 1.0, (96, 80), [1])[0] for seed in range(300, 2**16, 1009)])
    changes = (borders[:, 4, 1:] != borders[:, 4, :-1]).double().mean(dim=(0, 2))  # between rows, of 16-pixel cells
    assert changes.max() < 0.3  # nowhere in all draws
    for seed, t in ((6, 1.0), (5, 0.5)):
        assert not torch.isclose(latent_of([seed], [(0, 0)], t, (96, 80), [1, 2, 4])[0], whole[0]).any()


def test_all_tiles_of_an_image_share_the_coarsest_noise() -> None:
    """What an annotator did all over the image is drawn once, also where tiles are far from each other."""
    near, far = (latent_of([5, 6], [place] * 2, 1.0, (24, 16), [1, 4])[1] for place in ((0, 0), (9000, 70000)))
    view = latent_of([5, 6], [(-12, -80)] * 2, 1.0, (24, 16), [1, 4])[1]
    assert torch.equal(near[:, -CHANNELS:], far[:, -CHANNELS:])
    assert torch.equal(near[:, -CHANNELS:], view[:, -CHANNELS:])
    assert (near[:, -CHANNELS:] == near[:, -CHANNELS:, :1, :1]).all()
    assert not torch.isclose(near[0, -CHANNELS:], near[1, -CHANNELS:]).any()
    assert not torch.isclose(near[:, :-CHANNELS], far[:, :-CHANNELS]).any()


def test_the_noise_is_normal_in_cells_of_its_sizes() -> None:
    places, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    draws = [random_latent(64, (64, 64), [1, 2, 4], places, generator, torch.device("cpu")) for _ in range(8)]
    for level in range(3):
        x = torch.cat([draw[level] for draw in draws])
        assert x.mean().item() == pytest.approx(0.0, abs=0.05)
        assert x.std().item() == pytest.approx(1.0, abs=0.05)
        sizes = [cell for cell in CELLS if cell >= 2**level]
        changes = (x[..., 1:, :] != x[..., :-1, :]).double().mean(dim=(0, 2, 3)).view(len(sizes), CHANNELS).mean(dim=1)
        assert changes.tolist() == pytest.approx([2**level / cell for cell in sizes], abs=0.02)


def test_a_draw_does_not_depend_on_its_batch_nor_on_what_is_shared() -> None:
    model, image = distributional(), noise(1, 1, 36, 44)
    draws = [Draw(7, 0), Draw(8, 1), Draw(9, 2)]
    together = drawn(model, image, draws)
    assert (together[0] - together[1]).abs().max() > 1e-3
    torch.testing.assert_close(drawn(model, image, draws[1:2]), together[1:2])
    bare = model.of_draws(model.features(image), torch.zeros(3, dtype=torch.int64), draws)
    torch.testing.assert_close(model(noise(3, 1, 36, 44, seed=9), END, bare), together, atol=1e-5, rtol=1e-4)


def test_the_mean_is_the_network_without_the_second_noise() -> None:
    model, image = distributional(), noise(2, 1, 32, 32)
    t, z = torch.tensor(0.4, dtype=torch.float64), noise(2, 1, 32, 32)
    features = model.features(image)
    expected = model.moments(z, t, features)[0]
    latent = latent_of([7, 8], [(0, 0)] * 2, 0.4, (32, 32), model.network.trunk.scales)
    torch.testing.assert_close(model.learned(z, t, features, [latent]).mean, expected)
    torch.testing.assert_close(model(z, t, model.encode(image)), expected)
    direct = model.encode(image)[-1]
    torch.testing.assert_close(model(z, END, model.encode(image)), direct)
    torch.testing.assert_close(model.direct_moments(features, (32, 32))[0], direct)


def test_spread_moves_draws_away_from_the_direct_mean() -> None:
    model, image, draws = distributional(), noise(1, 1, 32, 32), [Draw(7, 0), Draw(8, 1)]
    centre, plain = model.encode(image)[-1], drawn(model, image, draws)
    model.spread.fill_(2.5)
    torch.testing.assert_close(drawn(model, image, draws), centre + 2.5 * (plain - centre))
    later = torch.tensor(0.4, dtype=torch.float64)
    z = noise(2, 1, 32, 32)
    inner = drawn(model, image, draws, z, later)
    model.spread.fill_(1.0)
    torch.testing.assert_close(drawn(model, image, draws, z, later), inner)


def test_pooled_draws_are_those_of_the_members_in_turn() -> None:
    members = [distributional(seed) for seed in range(2)]
    pool, image = PooledDraws(members), noise(1, 1, 32, 32)
    draws = [Draw(20 + i, i) for i in (0, 1, 2, 5)]
    for t in (END, torch.tensor(0.3, dtype=torch.float64)):
        z = noise(4, 1, 32, 32)
        own = [drawn(member, image, draws, z, t) for member in members]
        found = drawn(pool, image, draws, z, t)
        torch.testing.assert_close(found, torch.stack([own[i % 2][k] for k, i in enumerate((0, 1, 0, 1))]))
    assert pool.shared == 2


def two_levels(model: Denoiser, *, told: bool) -> Tensor:
    """Means of 100 draws after 120 steps where m is -.8 or .8 over the whole image, with equal odds.

    told: whether that is the choice of rater 0 or 1, of whom the network hears.
    """
    model.train()
    sde = SDEConfig(process="vp", objective="distribution", prior_share=0.5, weighting="edm")
    training = TrainingConfig(steps=1, batch=12)
    generator = torch.Generator().manual_seed(0)
    generators = Generators(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    model.sigma_data.fill_(0.8)
    for _ in range(120):
        sign = torch.randn(12, generator=generator).sign()
        m = 0.8 * sign.view(-1, 1, 1, 1).expand(-1, -1, 8, 8)
        batch = Batch(torch.full((12, 1, 8, 8), 127.5), m, raters=(sign > 0).long() if told else None)
        loss = loss_of(model, batch, generators, sde, training)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return drawn(model, torch.zeros(1, 1, 8, 8), [Draw(i, i) for i in range(100)])


@pytest.mark.slow
def test_training_finds_what_images_have_in_common() -> None:
    """Draws are of one level each, more or less, and their mean is near 0; draws of single pixels would have a tenth of
    that between images."""
    draws = two_levels(direct_denoiser(process=VP(), distribution=True), told=False)
    level = draws.mean(dim=(1, 2, 3))
    assert 0.5 < level.std() < 1.1
    assert level.var() > 0.5 * draws.var()
    assert abs(level.mean()) < 0.3


@pytest.mark.slow
def test_raters_who_are_told_apart_draw_as_they_do() -> None:
    """In turn, or all draws as one of them would; the direct mean is between them."""
    model = direct_denoiser(process=VP(), distribution=True, raters=2)
    level = two_levels(model, told=True).mean(dim=(1, 2, 3))
    assert level[::2].mean().item() == pytest.approx(-0.8, abs=0.2)
    assert level[1::2].mean().item() == pytest.approx(0.8, abs=0.2)
    assert max(level[::2].std(), level[1::2].std()) < 0.3
    for rater, mean in enumerate((-0.8, 0.8)):
        model.rater = rater
        draws = drawn(model, torch.zeros(1, 1, 8, 8), [Draw(i, i) for i in range(20)])
        assert draws.mean().item() == pytest.approx(mean, abs=0.2)
    assert abs(model.encode(torch.zeros(1, 1, 8, 8))[-1].mean().item()) < 0.4


PARTS_AND_RATERS = [(1, 8, 4), (5, 1, 5), (3, 4, 2), (1, 8, 5), (3, 1, 4), (1, 4, 5), (1, 8, 3), (2, 1, 3), (5, 1, 3)]


@pytest.mark.parametrize(("members", "views", "raters"), PARTS_AND_RATERS)
def test_pooled_draws_are_of_all_raters_in_all_views_of_all_members(members: int, views: int, raters: int) -> None:
    pool = PooledDraws([direct_denoiser(process=VP(), distribution=True, raters=raters)] * members, range(views))
    draws = [Draw(i, i) for i in range(members * views * raters)]
    rounds = Counter(
        (i % (members * views), pool._numbered(draw, pool.members[0]).number % raters) for i, draw in enumerate(draws)
    )
    assert set(rounds.values()) == {1}
