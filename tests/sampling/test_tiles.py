"""Tiles of an image, their blending, and noise of any window of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling.tiling import ramp, split_rows, tiling_of
from sde.field import BLOCK, FieldNoise

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


@settings(max_examples=40, deadline=None)
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


def field(
    window: tuple[int, int, int, int], draws: list[tuple[str, int]], calls: int = 1, antithetic: bool = False
) -> torch.Tensor:
    noise = FieldNoise(7, draws, 2, window, antithetic=antithetic)
    return torch.stack([noise() for _ in range(calls)])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 150), st.integers(1, 150))
def test_noise_does_not_depend_on_the_window(top: int, left: int, height: int, width: int) -> None:
    whole = field((0, 0, 350, 350), [("image", 0), ("image", 3)], calls=2)
    part = field((top, left, height, width), [("image", 3)], calls=2)
    torch.testing.assert_close(part[:, 0], whole[:, 1, :, top : top + height, left : left + width], atol=0, rtol=0)


def test_noise_is_standard_normal_and_independent() -> None:
    draws = [("a", 0), ("a", 1), ("b", 0)]
    x = field((40, 40, 2 * BLOCK, 2 * BLOCK), draws, calls=2).double()  # calls, draws, channels, H, W
    count = x[0, 0].numel()
    assert x.mean(dim=(2, 3, 4)).abs().max() < 4 / count**0.5
    assert (x.var(dim=(2, 3, 4)) - 1).abs().max() < 4 * (2 / count) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 0.05
    streams = x.flatten(0, 2).flatten(1)  # every call, draw and channel
    correlation = torch.corrcoef(streams) - torch.eye(len(streams), dtype=torch.float64)
    assert correlation.abs().max() < 4.5 / streams.shape[1] ** 0.5
    for shift in ((1, 0), (0, 1), (BLOCK, 0), (0, BLOCK)):  # pixels, and blocks, know nothing of each other
        moved = x[..., shift[0] :, shift[1] :]
        still = x[..., : x.shape[-2] - shift[0], : x.shape[-1] - shift[1]]
        assert abs(float((moved * still).mean())) < 4 / moved.numel() ** 0.5


def test_antithetic_draws_are_mirrored_at_first_only() -> None:
    pair = field((3, 4, 50, 60), [("a", 2), ("a", 3)], calls=2, antithetic=True)
    alone = field((3, 4, 50, 60), [("a", 3)], calls=2, antithetic=True)
    torch.testing.assert_close(pair[0, 1], -pair[0, 0], atol=0, rtol=0)
    torch.testing.assert_close(pair[:, 1], alone[:, 0], atol=0, rtol=0)
    assert (pair[1, 1] + pair[1, 0]).abs().max() > 0.5
