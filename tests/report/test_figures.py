"""Maps, contours and animations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from report import figures


def test_small_pictures_are_enlarged_and_thin_ones_stay_thin() -> None:
    assert [figures.zoom_of(shape) for shape in ((64, 64), (40, 1000), (2, 6000), (500, 700))] == [4, 2, 1, 1]


def test_color_map_colors_and_size() -> None:
    values = np.array([[-1.0, 1.0]])
    picture = np.asarray(figures.mmse_map(values, zoom=4))
    inside, outside = picture[figures.TITLE + 2, figures.MARGIN + 1], picture[figures.TITLE + 2, figures.MARGIN + 5]
    assert inside[0] > inside[2]  # red inside
    assert outside[2] > outside[0]  # blue outside


def test_overlay_draws_both_contours_where_they_are() -> None:
    image = np.zeros((8, 8), np.uint8)
    truth, mask = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    truth[2:4, 2:4] = True
    mask[5:7, 5:7] = True
    picture = np.asarray(figures.overlay(image, truth, mask, zoom=8))
    white = np.argwhere((picture == figures.TRUTH_COLOR).all(-1)).mean(0)
    yellow = np.argwhere((picture == figures.CLASS_COLORS[0]).all(-1)).mean(0)
    np.testing.assert_allclose(white, [24, 24], atol=1.5)
    np.testing.assert_allclose(yellow, [48, 48], atol=1.5)


def test_trajectory_is_an_animation(tmp_path: Path) -> None:
    frames = [(1.0 / n, np.full((6, 6), 1.0 / n)) for n in range(1, 61)]
    figures.trajectory(frames, 0.0, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert 2 <= gif.n_frames <= 40  # type: ignore[attr-defined]
