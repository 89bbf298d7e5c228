"""Tiles of an image and their blending."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling.tiling import ramp, split_rows, tiling_of

SHAPES = [(1, 1), (7, 200), (64, 64), (65, 64), (100, 90), (300, 33)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_cut_and_blended_is_the_image_again(shape: tuple[int, int], overlap: float) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tiling = tiling_of(shape, 32, overlap)
    tiles = tiling.cut(x)
    assert tiles.shape == (len(tiling.windows), 2, 3, min(32, shape[0]), min(32, shape[1]))
    assert tiling.shape == shape
    torch.testing.assert_close(tiling.blend(tiles), x, atol=1e-6, rtol=0)
    integers = torch.round(x.float() * 100)
    torch.testing.assert_close(torch.round(tiling.blend(tiling.cut(integers))), integers, atol=0, rtol=0)


@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(7, 40), st.floats(0, 0.5))
def test_weights_are_positive_and_one_in_sum(height: int, width: int, tile: int, overlap: float) -> None:
    tiling = tiling_of((height, width), tile, overlap)
    assert tiling.weights.min() > 0
    total = tiling.blend(torch.ones(len(tiling.windows), 1, *tiling.size))
    torch.testing.assert_close(total, torch.ones(1, height, width))


def test_neighbours_share_what_was_asked_for_and_steps_are_even() -> None:
    tiling = tiling_of((1000, 130), 128, 0.25)
    steps = [b - a for a, b in pairwise(tiling.tops)]
    assert max(steps) <= 96
    assert max(steps) - min(steps) <= 1
    assert tiling.lefts == (0, 2)
    assert len(tiling_of((96, 96), 32, 0.0).windows) == 9


def test_weights_rise_over_the_overlap_and_only_there() -> None:
    tiling = tiling_of((32, 56), 32, 0.25)
    left, right = tiling.weights
    assert tiling.lefts == (0, 24)
    assert (left[:, :24] == 1).all()
    assert (left[:, 24:].diff(dim=1) < 0).all()
    torch.testing.assert_close(left[0, 24:].double(), ramp(8).flip(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(left[:, 24:] + right[:, :8], torch.ones(32, 8))
    assert left[0, -1] < 0.02


def test_tile_rows_are_split_evenly_and_share_one() -> None:
    assert split_rows(1, 2) == [(0, 0)]
    assert split_rows(5, 9) == [(0, 4)]
    assert split_rows(5, 3) == [(0, 2), (2, 4)]
    for rows in range(2, 40):
        for most in range(2, 9):
            groups = split_rows(rows, most)
            assert groups[0][0] == 0
            assert groups[-1][1] == rows - 1
            assert all(a[1] == b[0] for a, b in pairwise(groups))
            assert all(1 <= last - first < most for first, last in groups)


def test_rows_of_a_tiling_are_its_tiles() -> None:
    tiling = tiling_of((200, 70), 32, 0.25)
    part = tiling.rows(2, 4)
    assert part.lefts == tiling.lefts
    assert [top + tiling.tops[2] for top in part.tops] == list(tiling.tops[2:5])
    assert part.shape == (tiling.tops[4] + 32 - tiling.tops[2], 70)


@pytest.mark.parametrize(
    ("shape", "tile", "overlap"), [((0, 5), 8, 0.2), ((5, 5), 0, 0.2), ((5, 5), 8, 0.6), ((5, 5), 8, -0.1)]
)
def test_nonsense_is_refused(shape: tuple[int, int], tile: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="no tiles of"):
        tiling_of(shape, tile, overlap)
