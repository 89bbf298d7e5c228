"""Draws in several views of the image."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.augment import random_symmetry
from models.denoiser import Denoiser, Draw
from models.pooled import PooledDraws, seen, seen_draw, unseen, views_of
from sde.process import VP
from tests.commands import Workspace, sets
from tests.networks import direct_denoiser, noise

END = torch.tensor(1.0, dtype=torch.float64)
LATER = torch.tensor(0.4, dtype=torch.float64)


def network(seed: int = 0, unshuffle: int = 1, *, distribution: bool = True) -> Denoiser:
    model = direct_denoiser(process=VP(), distribution=distribution, unshuffle=unshuffle)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed))
    return model.eval()


@torch.no_grad()
def drawn(model: Denoiser, image: Tensor, draws: list[Draw], t: Tensor, z: Tensor) -> Tensor:
    return model(z, t, model.of_draws(model.encode(image), torch.zeros(len(draws), dtype=torch.int64), draws))


@pytest.mark.parametrize(("flips", "rotations", "square"), product((True, False), repeat=3))
def test_views_are_the_symmetries_of_training(flips: bool, rotations: bool, square: bool) -> None:
    height, width = (3, 3) if square else (3, 4)
    image = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    generator = torch.Generator().manual_seed(0)
    many = image.expand(400, -1, -1, -1)
    trained = random_symmetry(many, many, generator, flips=flips, rotations=rotations)[0]
    views = [seen(image, view) for view in views_of(flips, rotations, square)]
    assert {tuple(x.flatten().tolist()) for x in trained} == {tuple(view.flatten().tolist()) for view in views}
    assert len(views) == len({tuple(view.flatten().tolist()) for view in views})
    assert torch.equal(views[0], image)


@given(st.integers(0, 7), st.integers(0, 40), st.integers(0, 40), st.integers(1, 9), st.integers(1, 9))
def test_a_pixel_has_one_place_in_the_view_whatever_the_tile(view: int, top: int, left: int, y: int, x: int) -> None:
    size = (16, 12)

    def place(draw: Draw, y: int, x: int) -> tuple[int, int]:
        mark = torch.zeros(size)
        mark[y, x] = 1
        row, column = torch.nonzero(seen(mark, view))[0].tolist()
        assert torch.equal(unseen(seen(mark, view), view), mark)
        there = seen_draw(draw, size, view)
        return there.top + row, there.left + column

    assert place(Draw(1, 2, top, left), y, x) == place(Draw(1, 2, top + y, left + x), 0, 0)


@pytest.mark.parametrize("t", [END, LATER], ids=["first", "later"])
@pytest.mark.parametrize(("distribution", "unshuffle"), [(True, 1), (True, 2), (False, 1)])
def test_a_draw_is_that_of_the_turned_image_turned_back(t: Tensor, distribution: bool, unshuffle: int) -> None:
    model = network(unshuffle=unshuffle, distribution=distribution)
    image, views = noise(1, 1, 32, 48), views_of(True, True, True)
    draws, z = [Draw(20 + i, i, 8, 16) for i in (0, 3, 4, 6, 7, 15)], noise(6, 1, 32, 48, seed=3)
    pool = PooledDraws([model], views)
    found = drawn(pool, image, draws, t, z)
    for k, draw in enumerate(draws):
        view = views[draw.number % 8]
        own = [seen_draw(draw, (32, 48), view)]
        alone = unseen(drawn(model, seen(image, view), own, t, seen(z[k : k + 1], view)), view)
        torch.testing.assert_close(found[k : k + 1], alone, atol=1e-5, rtol=1e-4)
    assert (pool.shared, pool.means) == (8, 8)


def test_the_spread_is_about_the_mean_of_all_views() -> None:
    model, image, draws = network(), noise(1, 1, 32, 32), [Draw(3, 0), Draw(4, 1)]
    pool, z = PooledDraws([model], (0, 5)), noise(2, 1, 32, 32)
    plain = drawn(pool, image, draws, END, z)
    means = [unseen(model.encode(seen(image, view))[-1], view) for view in (0, 5)]
    assert (means[0] - means[1]).abs().max() > 1e-3
    centre = torch.stack(means).mean(dim=0)
    torch.testing.assert_close(pool.centre(pool.encode(image)), centre)
    model.spread.fill_(1.5)
    torch.testing.assert_close(drawn(pool, image, draws, END, z), centre + 1.5 * (plain - centre))


def test_members_and_views_take_turns() -> None:
    members, image = [network(seed) for seed in range(2)], noise(1, 1, 32, 32)
    draws, z = [Draw(9, i) for i in range(5)], noise(5, 1, 32, 32)
    found = drawn(PooledDraws(members, (0, 3)), image, draws, LATER, z)
    for k, (member, view) in enumerate([(0, 0), (1, 0), (0, 3), (1, 3), (0, 0)]):
        own = drawn(PooledDraws([members[member]], (view,)), image, draws[k : k + 1], LATER, z[k : k + 1])
        torch.testing.assert_close(found[k : k + 1], own, atol=1e-5, rtol=1e-4)


def test_views_need_training_with_them(workspace: Workspace) -> None:
    keys = ["sampling.augment=true", "data.flips=false", "data.rotations=false"]
    assert "sampling.augment: shows images as data.flips" in workspace.fails("main", *sets(keys))
