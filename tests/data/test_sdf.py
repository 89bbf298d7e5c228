from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.sdf import boundary_pixels, signed_distance

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))


def brute_force(mask: np.ndarray, truncation: float) -> np.ndarray:
    """Eq. 1 pixel by pixel."""
    height, width = mask.shape
    boundary = []
    for y, x in np.argwhere(mask):
        around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        if any(0 <= v < height and 0 <= u < width and not mask[v, u] for v, u in around):
            boundary.append((y, x))
    sdf = np.ones(mask.shape)
    for y in range(height):
        for x in range(width):
            distance = min((np.hypot(y - v, x - u) for v, u in boundary), default=np.inf)
            sdf[y, x] = min(distance, truncation) / truncation * (-1 if mask[y, x] else 1)
    return sdf


@given(MASKS, st.floats(0.5, 40))
@settings(max_examples=200)
def test_mask_comes_back_bit_for_bit(mask: np.ndarray, truncation: float) -> None:
    sdf = signed_distance(mask, truncation)
    assert sdf.dtype == np.float32
    np.testing.assert_array_equal(sdf <= 0, mask)
    assert np.abs(sdf).max() <= 1
    np.testing.assert_array_equal(sdf == 0, boundary_pixels(mask))
    assert not np.signbit(sdf[sdf == 0]).any()


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.floats(1, 6))
@settings(max_examples=60)
def test_is_equation_one(mask: np.ndarray, truncation: float) -> None:
    np.testing.assert_allclose(signed_distance(mask, truncation), brute_force(mask, truncation), atol=1e-6)


def test_single_pixel() -> None:
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    sdf = signed_distance(mask, 4)
    assert sdf[2, 2] == 0
    np.testing.assert_allclose(sdf[2], [0.5, 0.25, 0, 0.25, 0.5])
    assert sdf[0, 0] == pytest.approx(np.sqrt(8) / 4)


def test_line_hole_and_object_on_the_image_border() -> None:
    line = np.zeros((5, 7), bool)
    line[2] = True
    np.testing.assert_allclose(signed_distance(line, 10)[:, 3], [0.2, 0.1, 0, 0.1, 0.2])
    hole = np.ones((7, 7), bool)
    hole[3, 3] = False
    sdf = signed_distance(hole, 3)
    assert sdf[3, 3] == pytest.approx(1 / 3)
    assert sdf[3, 2] == 0
    assert sdf[3, 1] == pytest.approx(-1 / 3)
    # The image border is no object border: distances count from the right edge of the object only.
    corner = np.zeros((4, 8), bool)
    corner[:, :5] = True
    np.testing.assert_allclose(signed_distance(corner, 4)[0], [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75])


def test_empty_and_full_masks() -> None:
    assert (signed_distance(np.zeros((3, 4), bool), 5) == 1).all()
    assert (signed_distance(np.ones((3, 4), bool), 5) == -1).all()


@pytest.mark.parametrize("mask", [np.zeros((3, 3)), np.zeros((3, 3, 1), bool), np.zeros(3, bool)])
def test_refuses_what_is_no_mask(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="2-d bool"):
        signed_distance(mask, 5)


def test_refuses_truncation_zero() -> None:
    with pytest.raises(ValueError, match="positive"):
        signed_distance(np.zeros((3, 3), bool), 0)
