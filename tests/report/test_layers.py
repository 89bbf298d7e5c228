"""Pictures and contours of the report."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from report.layers import ImageLayers, data_uri, draw_picture, error_scale, layers_of, outline
from report.page import PICTURES, USUAL
from tests.pages import disc_layers
from tests.pictures import decoded


def test_maps_and_their_colours() -> None:
    own = disc_layers(3, 32)
    uris = draw_picture(own, layers_of(0.5), 300_000).layers
    inside, outside = (16, 16), (0, 0)
    mmse = decoded(uris["mmse"]).astype(int)
    assert mmse[inside][0] > mmse[inside][2]  # red inside, blue outside
    assert mmse[outside][2] > mmse[outside][0]
    error, std = decoded(uris["error"]), decoded(uris["std"])
    maps = own.maps()
    worst = np.unravel_index(maps["error"].argmax(), maps["error"].shape)
    assert error[worst].sum() == error.sum(-1).max()
    # One scale: a pixel with equal std and error has the same colour in both.
    same = np.abs(maps["error"] - maps["std"]) < 1e-6
    assert same.any()
    np.testing.assert_array_equal(error[same], std[same])
    np.testing.assert_array_equal(decoded(uris["image"])[..., 0], own.image)


def test_scale_of_errors_is_round_and_bounded() -> None:
    assert error_scale([]) == 1.0
    own = disc_layers(1)
    perfect = ImageLayers(own.image, own.mmse, own.labels, truth_sdf=own.mmse)
    assert error_scale([perfect]) == 0.05
    wrong = ImageLayers(own.image, np.ones((1, 8, 8)), own.labels, truth_sdf=-np.ones((1, 8, 8)))
    assert error_scale([wrong]) == 2.0
    third = ImageLayers(own.image, np.full((1, 8, 8), 0.31), own.labels, truth_sdf=np.zeros((1, 8, 8)))
    assert error_scale([third]) == 0.4


def area(path: str) -> float:
    """In pixels, of closed rings; holes count negative."""
    total = 0.0
    for ring in re.findall(r"M([^M]*)z", path):
        start, moves = ring.split("l")
        numbers = [int(n) for n in re.findall(r"-?\d+", moves)]
        points = np.cumsum([[int(n) for n in start.split()], *np.reshape(numbers, (-1, 2)).tolist()], axis=0) / 2
        x, y = points.T
        total += float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2
    return abs(total)


def test_outline_follows_the_mask() -> None:
    rows, columns = np.mgrid[:96, :120]
    ring = np.abs(np.hypot(rows - 48, columns - 60) - 28) < 10
    path = outline(ring, 10_000)
    assert path.count("M") == path.count("z") == 2
    assert area(path) == pytest.approx(ring.sum(), rel=0.03)
    assert len(path) < 1200  # simplified
    square = np.zeros((40, 40), bool)
    square[10:20, 5:30] = True
    assert area(outline(square, 1000)) == pytest.approx(250, rel=0.02)
    assert outline(np.zeros((9, 9), bool), 100) == outline(np.ones((9, 9), bool), 100) == ""
    half = np.zeros((10, 10), bool)
    half[:, 5:] = True
    assert "z" not in outline(half, 100)  # open where it leaves the image


@pytest.mark.parametrize("most", [300, 3000])
def test_outline_of_noise_stays_small(most: int) -> None:
    mask = np.random.default_rng(0).random((200, 300)) < 0.5
    assert 0 < len(outline(mask, most)) <= most


def test_pictures_are_exact_where_they_fit_and_small_where_they_do_not() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    np.testing.assert_array_equal(decoded(data_uri(noise, 60_000)), np.asarray(noise))
    lossy = data_uri(noise, 8000)
    assert len(lossy) <= 8000
    assert decoded(lossy).shape == (90, 70, 3)
    assert len(data_uri(noise, 900)) <= 900


def test_contours_of_draws_cost_little_and_keep_to_their_share() -> None:
    own, shown = disc_layers(1, 128, draws=10, first=10), layers_of(1.0)
    picture = draw_picture(own, shown, PICTURES // USUAL)
    assert picture.layers["draws"] == ""  # that of the image
    paths = [contour.path for draw in picture.draws for contour in draw]
    assert own.draws is not None
    for path, labels in zip(paths, own.draws, strict=True):
        assert area(path) == pytest.approx(labels.sum(), rel=0.03)
    assert sum(map(len, paths)) < 10_000
    noise = replace(own, draws=np.random.default_rng(0).integers(0, 2, (10, 300, 200)))
    picture = draw_picture(noise, shown, 40_000)
    assert 0 < sum(len(contour.path) for draw in picture.draws for contour in draw) <= 10_000


def test_many_images_share_what_eighty_may_take() -> None:
    own = disc_layers(1, 128)
    few, many = (draw_picture(own, layers_of(1.0), PICTURES // n) for n in (USUAL, 2000))
    assert sum(map(len, many.layers.values())) <= PICTURES // 2000 < sum(map(len, few.layers.values()))
