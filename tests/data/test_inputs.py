"""Pictures of any size, read in windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from data.inputs import PreparedPicture
from data.patches import Window
from data.pictures import Picture, TiledPicture, open_picture
from tests.commands import Workspace, section
from tests.pictures import picture
from utils.config import load_config


def test_pyramids_are_read_region_by_region(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(pixels, tile=(64, 48), photometric="rgb", subifds=1, compression="adobe_deflate")
        file.write(pixels[::2, ::2], tile=(64, 48), photometric="rgb", subfiletype=1)
    opened = open_picture(tmp_path / "slide.tif", section())
    assert isinstance(opened, TiledPicture)
    assert opened.shape == (300, 411)
    for window in (Window(0, 0, 300, 411), Window(63, 47, 2, 2), Window(299, 410, 1, 1), Window(128, 0, 64, 411)):
        np.testing.assert_array_equal(opened.read(window), pixels[window.slices])


def test_windows_of_a_large_picture_are_prepared_as_the_whole(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:

    from data import inputs

    config = load_config("config.yaml", ["data.stretch=true"])
    pixels = picture(300, 200, 3)
    whole = PreparedPicture(Picture(pixels), config.data, None)
    monkeypatch.setattr(inputs, "WHOLE", 100)
    parts = PreparedPicture(Picture(pixels), config.data, None)
    window = Window(17, 30, 100, 90)
    difference = whole.planes(window).astype(int) - parts.planes(window)
    assert whole.planes(window).shape == (1, 100, 90)
    assert np.abs(difference).max() <= 6  # the range is measured on most pixels only
