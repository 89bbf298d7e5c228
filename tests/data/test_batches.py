"""Batches: every image, rater and place, and the same after an interruption."""

from __future__ import annotations

import torch

from data.batches import Batches
from tests.helpers import section


def test_batches_draw_every_rater_and_every_place() -> None:
    images = torch.arange(121, dtype=torch.uint8).view(1, 1, 11, 11).repeat(5, 1, 1, 1)
    sdfs = torch.arange(3.0).view(1, 3, 1, 1, 1) * torch.ones(5, 3, 1, 11, 11)
    sdfs = sdfs + torch.arange(121.0).view(11, 11) / 128
    batches = Batches(images, sdfs, 5, 0, torch.device("cpu"), section(flips=False, crop=(9, 8)))
    raters, places = set(), set()
    for _ in range(40):
        image, sdf, _ = batches.next()
        assert image.shape == sdf.shape == (5, 1, 9, 8)
        raters |= {int(x) for x in sdf[:, 0, 0, 0]}
        places |= {int(x) for x in image[:, 0, 0, 0]}
        torch.testing.assert_close(image.float() / 128, sdf - sdf.floor())  # cut at the same place
    assert raters == {0, 1, 2}
    assert places == {11 * top + left for top in range(3) for left in range(4)}


def test_every_image_once_per_epoch_and_resumable() -> None:
    def make() -> Batches:
        images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).repeat(1, 1, 4, 4)
        return Batches(images, torch.zeros(7, 1, 1, 4, 4), 3, 5, torch.device("cpu"), section(rotations=True))

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
