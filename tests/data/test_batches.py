"""Batches: every image, rater and place, and the same after an interruption."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from data.batches import Batches, InMemory
from tests.commands import section
from tests.networks import noise
from utils.errors import UsageError

CPU = torch.device("cpu")


def test_batches_draw_every_rater_and_every_place() -> None:
    images = torch.arange(121, dtype=torch.uint8).view(1, 1, 11, 11).repeat(5, 1, 1, 1)
    sdfs = torch.arange(3.0).view(1, 3, 1, 1, 1) * torch.ones(5, 3, 1, 11, 11)
    sdfs = sdfs + torch.arange(121.0).view(11, 11) / 128
    batches = Batches(InMemory(images, sdfs), 5, 0, torch.device("cpu"), section(flips=False, crop=(9, 8)))
    raters, places = set(), set()
    for _ in range(40):
        image, sdf = batches.next()[:2]
        assert image.shape == sdf.shape == (5, 1, 9, 8)
        raters |= {int(x) for x in sdf[:, 0, 0, 0]}
        places |= {int(x) for x in image[:, 0, 0, 0]}
        torch.testing.assert_close(image.float() / 128, sdf - sdf.floor())  # cut at the same place
    assert raters == {0, 1, 2}
    assert places == {11 * top + left for top in range(3) for left in range(4)}


def test_every_image_once_per_epoch_and_resumable() -> None:
    def make() -> Batches:
        images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).repeat(1, 1, 4, 4)
        return Batches(InMemory(images, torch.zeros(7, 1, 1, 4, 4)), 3, 5, torch.device("cpu"), section(rotations=True))

    batches = make()
    seen = [i for _ in range(14) for i in batches.next()[2]]
    assert all(sorted(seen[e : e + 7]) == list(range(7)) for e in range(0, 42, 7))
    assert seen[:7] != seen[7:14]
    first, second = make(), make()
    for _ in range(4):
        first.next()
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        assert first.next()[2] == second.next()[2]


def test_all_raters_are_changed_alike() -> None:
    """Every rater's map is the image itself but for a number: after flips, turns and crops it still is."""
    images = torch.randint(0, 256, (6, 1, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sdfs = images[:, None].float() + 1000 * torch.arange(3.0).view(1, 3, 1, 1, 1)
    data = section(raters="all", rotations=True, crop=(8, 8))
    batches = Batches(InMemory(images, sdfs), 6, 0, CPU, data)
    moved = False
    for _ in range(4):
        image, sdf, indices, _, shares, _ = batches.next()
        assert sdf.shape == (6, 3, 1, 8, 8)
        for k in range(3):
            torch.testing.assert_close(sdf[:, k] - 1000 * k, image.float())
        moved |= not torch.equal(image, images[indices][..., 2:10, 2:10])
        torch.testing.assert_close(shares, torch.full((6, 3), 1 / 3))
    assert moved


def test_deformed_raters_are_those_of_each_alone() -> None:
    """Zoom, rotation and elastic deformation: all raters at once as each by itself with the same random numbers."""
    images = torch.randint(0, 256, (2, 1, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sdfs = noise(2, 3, 1, 24, 24).cumsum(-1).cumsum(-2).div(20).clamp(-1, 1)
    data: dict[str, Any] = {"augment": {"scale": 0.2, "rotate": 30, "elastic": 2}, "truncation": 4}
    together = Batches(InMemory(images, sdfs), 2, 7, CPU, section(raters="all", **data)).next()[1]
    for k in range(3):
        alone = Batches(InMemory(images, sdfs[:, k : k + 1]), 2, 7, CPU, section(**data)).next()[1]
        torch.testing.assert_close(together[:, k], alone)
    assert not torch.equal(together[:, 0], together[:, 1])


def test_images_with_fewer_raters() -> None:
    """Padding is never drawn as the one rater, and counts nothing among all."""
    images, counts = torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.tensor([1, 2, 3, 3])
    sdfs = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(4, 3, 1, 4, 4).clone()
    one = Batches(InMemory(images, sdfs, counts), 4, 0, CPU, section())
    seen: dict[int, set[int]] = {}
    for _ in range(40):
        batch = one.next()
        assert batch.shares is None
        assert batch.raters is not None
        assert batch.m[:, 0, 0, 0].tolist() == batch.raters.tolist()
        for i, rater in zip(batch.indices, batch.raters.tolist(), strict=True):
            seen.setdefault(i, set()).add(rater)
    assert seen == {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 1, 2}}
    batch = Batches(InMemory(images, sdfs, counts), 4, 0, CPU, section(raters="all")).next()
    assert batch.shares is not None
    expected = torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(batch.shares, expected[list(batch.indices)])


def sparse(batch: int, share: float | None, marked: int = 5, count: int = 40) -> Batches:
    """The first `marked` images have foreground, of the second rater only."""
    sdfs = torch.ones(count, 2, 1, 4, 4)
    sdfs[:marked, 1, 0, 1, 1] = 0
    images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
    return Batches(InMemory(images, sdfs), batch, 3, CPU, section(foreground_share=share))


@pytest.mark.parametrize(("batch", "share"), [(6, 0.5), (4, 0.3), (3, 0.1), (2, 1.0)])
def test_the_share_of_patches_with_foreground(batch: int, share: float) -> None:
    """To one patch in every batch and over all of them; all patches with foreground come before any does again, and
    so do the others; and the same after an interruption."""
    batches = sparse(batch, share)
    drawn = [batches.next()[2] for _ in range(60)]
    numbers = torch.tensor([sum(i < 5 for i in indices) for indices in drawn])
    assert ((numbers - batch * share).abs() < 1).all()
    assert ((numbers.cumsum(0) - batch * share * torch.arange(1, 61)).abs() <= 0.5 + 1e-6).all()
    for kind, size in ((range(5), 5), (range(5, 40), 35)):
        order = [i for indices in drawn for i in indices if i in kind]
        epochs = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        assert all(sorted(epoch) == list(kind) for epoch in epochs)
        assert len(epochs) < 2 or epochs[0] != epochs[1]
    first, second = sparse(batch, share), sparse(batch, share)
    assert [first.next()[2] for _ in range(7)] == drawn[:7]
    second.load_state_dict(first.state_dict())
    assert [second.next()[2] for _ in range(53)] == drawn[7:]
    with pytest.raises(ValueError, match="an order of"):
        second.load_state_dict({**first.state_dict(), "order": torch.tensor([7])})


def test_shares_that_the_patches_cannot_have() -> None:
    with pytest.raises(UsageError, match=r"foreground_share: 0\.5, but no training patch has foreground"):
        sparse(4, 0.5, marked=0)
    with pytest.raises(UsageError, match=r"foreground_share: 0\.5, but no training patch lacks foreground"):
        sparse(4, 0.5, marked=40)
    assert sparse(4, 1.0, marked=40).next()[2]


def test_without_a_share_the_order_is_as_ever() -> None:
    """Held to the order that runs before there was a share had: a permutation of all, then of all again."""
    generator = torch.Generator().manual_seed(3)
    batches = sparse(40, None)
    expected = torch.randperm(40, generator=generator).tolist()
    _, sdf, indices = batches.next()[:3]
    assert indices == expected
    raters: Tensor = torch.randint(2, (40,), generator=generator)
    marked = (sdf <= 0).flatten(1).any(dim=1)
    assert marked.tolist() == [i < 5 and bool(rater) for i, rater in zip(indices, raters, strict=True)]
    assert batches.state_dict().keys() == {"order", "generator"}
