"""Windows of an image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.patches import Window, even_parts, overlapping, random_window

SIZES = st.tuples(st.integers(8, 90), st.integers(8, 90))


@given(SIZES, SIZES, SIZES)
def test_overlapping_windows_cover_the_picture(
    shape: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]
) -> None:
    if shape[0] < patch[0] or shape[1] < patch[1]:
        with pytest.raises(ValueError, match="smaller than a patch"):
            overlapping(shape, patch, stride)
        return
    stride = min(stride[0], patch[0]), min(stride[1], patch[1])
    windows = overlapping(shape, patch, stride)
    covered = np.zeros(shape, int)
    for window in windows:
        assert covered[window.slices].shape == patch
        covered[window.slices] += 1
    assert covered.min() > 0
    tops = sorted({w.top for w in windows})
    assert all(b - a <= stride[0] for a, b in itertools.pairwise(tops))
    assert len(set(windows)) == len(windows)


@given(SIZES, SIZES)
def test_even_parts_are_equal_and_cover_the_picture(shape: tuple[int, int], most: tuple[int, int]) -> None:
    windows = even_parts(shape, most)
    assert len({(w.height, w.width) for w in windows}) == 1
    assert windows[0].height <= most[0]
    assert windows[0].width <= most[1]
    covered = np.zeros(shape, int)
    for window in windows:
        covered[window.slices] += 1
    assert covered.min() == 1
    assert len(windows) == -(-shape[0] // most[0]) * -(-shape[1] // most[1])


def test_four_even_parts() -> None:
    expected = [Window(top, left, 250, 250) for top in (0, 250) for left in (0, 250)]
    assert even_parts((500, 500), (250, 250)) == expected
    assert len(overlapping((500, 500), (128, 128), (62, 62))) == 49


def test_random_windows_reach_every_place() -> None:
    rng = np.random.default_rng(0)
    seen = {(w.top, w.left) for w in (random_window((9, 10), (8, 8), rng) for _ in range(200))}
    assert seen == {(t, l) for t in range(2) for l in range(3)}  # noqa: E741
    with pytest.raises(ValueError, match="smaller than a crop"):
        random_window((7, 10), (8, 8), rng)
