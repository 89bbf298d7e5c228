"""Batches that shrink until they fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sampling.memory import batches
from tests.networks import Pixelwise, blurred, maps, tiled
from utils.errors import UsageError


class Hungry(Pixelwise):
    """Has memory for a few tiles only."""

    room = 3

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        if len(z) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore of it.")
        return super().forward(z, t, features)


def test_batches_shrink_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    image = blurred(70, 70)
    hungry = tiled(Hungry(), 2)
    with caplog.at_level(logging.WARNING):
        result = maps(hungry, image)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 16 at once; going on with sampling.max_batch 8",
        "out of memory with 8 at once; going on with sampling.max_batch 4",
        "out of memory with 4 at once; going on with sampling.max_batch 2",
    ]
    np.testing.assert_allclose(result[0], maps(tiled(Pixelwise(), 2), image)[0], atol=1e-5)


def test_patches_are_drawn_in_batches_that_fit() -> None:
    images = torch.from_numpy(np.stack([blurred(16, 16)] * 2))
    hungry, plain = tiled(Hungry(), 0).drawer, tiled(Pixelwise(), 0).drawer
    drawn, expected = (list(d(images, ["a", "b"], 5)) for d in (hungry, plain))
    assert hungry.max_batch == 2
    assert [i for i, _ in drawn] == [0] * 5 + [1] * 5
    for (_, one), (_, other) in zip(drawn, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_single_tile_without_room_is_a_usage_error() -> None:
    hungry = tiled(Hungry(), 2)
    hungry.drawer.denoiser.room = 0  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"out of memory with a single .* \(CUDA out of memory"):
        maps(hungry, blurred(40, 40))


@pytest.mark.parametrize(
    ("error", "halved"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_only_lack_of_memory_halves(error: Exception, halved: bool) -> None:
    drawer = tiled(Pixelwise(), 0).drawer
    failed: list[slice] = []

    def evaluate(part: slice) -> slice:
        if not failed:
            failed.append(part)
            raise error
        return part

    if halved:
        assert [part for part, _ in batches(drawer, 5, evaluate)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    else:
        with pytest.raises(RuntimeError, match="shapes"):
            list(batches(drawer, 5, evaluate))
