"""Maps as tiled TIFF, whole or absent."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from results.tiff import band_writer
from sampling.tiled import Band


def random_bands(shape: tuple[int, int], classes: int, heights: Sequence[int]) -> list[Band]:
    rng = np.random.default_rng(0)
    tops = np.cumsum([0, *heights[:-1]])
    return [
        Band(
            int(top),
            rng.normal(size=(classes, n, shape[1])).astype(np.float32),
            rng.random((classes, n, shape[1]), np.float32),
            rng.random((n, shape[1]), np.float32),
            rng.integers(0, classes + 1, (n, shape[1]), np.uint8),
            draws=1,
            nfe=1,
        )
        for top, n in zip(tops, heights, strict=True)
    ]


@pytest.mark.parametrize(
    ("shape", "classes", "heights"),
    [((1, 1), 1, [1]), ((7, 700), 1, [7]), ((600, 300), 1, [100, 1, 450, 49]), ((300, 260), 2, [290, 10])],
)
def test_tiff_files_are_the_maps(tmp_path: Path, shape: tuple[int, int], classes: int, heights: list[int]) -> None:
    bands = random_bands(shape, classes, heights)
    with band_writer(tmp_path, shape, classes) as write:
        for band in bands:
            write(band)
    found = {path.name: tifffile.imread(path) for path in tmp_path.iterdir()}
    names = {"mmse.tif", "std.tif", "mask.tif", "probability.tif"} | ({"classes.tif"} if classes > 1 else set())
    assert set(found) == names
    for name in ("mmse", "std"):
        whole = np.concatenate([getattr(band, name) for band in bands], axis=1)
        np.testing.assert_array_equal(found[f"{name}.tif"], whole[0] if classes == 1 else whole.transpose(1, 2, 0))
    labels = np.concatenate([band.labels for band in bands])
    np.testing.assert_array_equal(found["mask.tif"], (labels > 0) * np.uint8(255))
    probability = np.concatenate([band.probability for band in bands])
    np.testing.assert_array_equal(found["probability.tif"], np.round(probability * 255).astype(np.uint8))
    if classes > 1:
        np.testing.assert_array_equal(found["classes.tif"], labels)
    with tifffile.TiffFile(tmp_path / "mmse.tif") as file:
        page = file.pages[0]
        assert page.is_tiled  # type: ignore[union-attr]
        assert page.dtype == np.float32


@pytest.mark.parametrize("heights", [[], [10], [300], [300, 299]])
def test_an_image_that_fails_leaves_no_thread(tmp_path: Path, heights: list[int]) -> None:
    def interrupted() -> None:
        with band_writer(tmp_path, (600, 300)) as write:
            for band in random_bands((600, 300), 1, heights) if heights else []:
                write(band)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not [thread.name for thread in threading.enumerate() if thread.name.endswith(".tif")]


def test_bands_must_make_up_the_image(tmp_path: Path) -> None:
    (band,) = random_bands((10, 30), 1, [10])
    with pytest.raises(ValueError, match="10 of 11 rows"), band_writer(tmp_path, (11, 30)) as write:
        write(band)
    with pytest.raises(ValueError, match="rows of shape"), band_writer(tmp_path, (9, 30)) as write:
        write(band)
    with pytest.raises(FileNotFoundError), band_writer(tmp_path / "nowhere", (10, 30)) as write:
        write(band)
