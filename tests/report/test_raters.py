"""Raters and draws side by side."""

from __future__ import annotations

import numpy as np

from report.figures import CLASS_COLORS, color_pixels
from report.raters import BETWEEN, CAPTION, TILE, rater_line, rater_sheet, window_of


def square(low: int, high: int, size: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[low:high, low:high] = True
    return mask


def test_window_holds_what_is_marked_or_where_most_is_disputed() -> None:
    nothing = np.zeros((64, 80))
    small = np.zeros((64, 80), bool)
    small[2:12, 40:60] = True
    rows, columns = window_of(small, nothing)
    assert (rows, columns) == (slice(0, 32), slice(34, 66))  # 25 pixels with the margin; moved down into the image
    assert window_of(nothing > 0, nothing) == (slice(0, 64), slice(0, 80))
    large = np.ones((300, 400), bool)
    disputed = np.zeros((300, 400))
    disputed[100:120, 380:390] = 0.5
    rows, columns = window_of(large, disputed)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (96, 96)
    assert disputed[rows, columns].sum() == disputed.sum()


def test_a_line_has_contours_in_their_colours_and_stds_in_one_scale() -> None:
    raters = np.stack([square(20, 30, 48), square(22, 28, 48), square(0, 0, 48)])
    draws = np.stack([square(20, 30, 48), square(0, 0, 48), square(0, 0, 48), square(0, 48, 48)])
    stds = np.full((2, 48, 48), 0.5), np.full((2, 48, 48), 0.25)
    line = np.asarray(rater_line("slice 3", np.full((48, 48), 90, np.uint8), raters, draws, (stds[0][0], stds[1][0])))
    tiles = [line[CAPTION : CAPTION + TILE, BETWEEN + k * (TILE + BETWEEN) :][:, :TILE] for k in range(4)]
    seen = [[bool((tile == color).all(-1).any()) for color in CLASS_COLORS[:3]] for tile in tiles]
    assert seen == [[True, True, False], [True, False, False], 3 * [False], 3 * [False]]  # an empty mask has none
    for tile, value in zip(tiles[2:], (0.5, 0.25), strict=True):
        assert (tile == color_pixels(np.array([[value]]), 0, 0.5, "magma")[0, 0]).all()


def test_a_sheet_has_two_columns_from_five_lines_on() -> None:
    mask = square(10, 20, 32)[None]
    line = rater_line("a", np.zeros((32, 32, 3), np.uint8), mask, mask, (np.zeros((32, 32)), np.zeros((32, 32))))
    four, twelve = rater_sheet([line] * 4), rater_sheet([line] * 12)
    assert four.width == line.width
    assert twelve.width > 2 * line.width
    assert twelve.height - four.height == 2 * line.height
