"""Maps, contours and animations."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

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


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
COLOUR_BLIND = {
    "normal": np.eye(3),
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
}


def linear(color: tuple[int, int, int]) -> np.ndarray:
    share = np.array(color) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("sight", COLOUR_BLIND)
def test_the_colour_blind_tell_contours_apart(sight: str) -> None:
    colors = [figures.TRUTH_COLOR, *figures.CLASS_COLORS]
    seen = np.clip([np.asarray(COLOUR_BLIND[sight]) @ linear(color) for color in colors], 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    nearest = min(deltaE_ciede2000(one, two) for one, two in combinations(lab, 2))
    assert nearest > 10  # a difference of 2 is seen at a glance, side by side


def test_contours_stand_out_from_their_dark_edge() -> None:
    luminance = [linear(color) @ (0.2126, 0.7152, 0.0722) for color in (figures.TRUTH_COLOR, *figures.CLASS_COLORS)]
    assert min((own + 0.05) / 0.05 for own in luminance) > 3  # WCAG 2.1, 1.4.11


def test_trajectory_is_an_animation(tmp_path: Path) -> None:
    frames = [(1.0 / n, np.full((6, 6), 1.0 / n)) for n in range(1, 61)]
    figures.trajectory(frames, 0.0, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert 2 <= gif.n_frames <= 40  # type: ignore[attr-defined]
