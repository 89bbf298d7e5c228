"""Maps as tiled TIFF, whole or absent."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile

from results.maps import band_writer
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
        np.testing.assert_array_equal(found[f"{name}.tif"], whole[0] if classes == 1 else whole)
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


def means(rows: np.ndarray) -> np.ndarray:
    """Of two by two pixels (H, W), fewer at the ends."""
    padded = np.pad(rows.astype(float), [(0, n % 2) for n in rows.shape], constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2)
    return np.asarray(np.nanmean(blocks, axis=(1, 3)))


@pytest.mark.parametrize("classes", [1, 2])
def test_pyramids_are_ome_tiff(tmp_path: Path, classes: int) -> None:
    shape, heights = (1301, 1030), [300, 1, 700, 300]
    bands = random_bands(shape, classes, heights)
    with band_writer(tmp_path, shape, classes, (0.5, 0.25)) as write:
        for band in bands:
            write(band)
    names = ["mmse", "std", "probability", "mask", *(["classes"] if classes > 1 else [])]
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.tif" for name in names}
    for name in names:
        with tifffile.TiffFile(tmp_path / f"{name}.tif") as file:
            series = file.series[0]
            stacked = classes > 1 and name in ("mmse", "std")
            assert (series.kind, series.axes) == ("ome", "CYX" if stacked else "YX")
            levels = [level.asarray().reshape(-1, *level.shape[-2:]) for level in series.levels]
            assert [level.shape[1:] for level in levels] == [shape, (651, 515), (326, 258)]
            for finer, coarser in pairwise(levels):
                if name in ("mask", "classes"):
                    np.testing.assert_array_equal(coarser, finer[:, ::2, ::2])
                else:
                    expected = np.stack([means(channel) for channel in finer])
                    np.testing.assert_allclose(coarser, expected, atol=0.5 if name == "probability" else 1e-5)
            pixels = ElementTree.fromstring(file.ome_metadata or "").find(".//{*}Pixels")
            assert pixels is not None
            assert [pixels.attrib[f"PhysicalSize{axis}"] for axis in "YX"] == ["0.5", "0.25"]
            assert [pixels.attrib[f"PhysicalSize{axis}Unit"] for axis in "YX"] == ["µm", "µm"]
            sizes = [level.keyframe.get_resolution("MICROMETER") for level in series.levels]
            assert sizes[0] == (4, 2)
            assert sizes[1] == pytest.approx((4 * 515 / 1030, 2 * 651 / 1301))


def test_openslide_opens_masks(tmp_path: Path) -> None:
    """Its full resolution, with the size of a pixel; levels that are SubIFDs it does not look for."""
    openslide = pytest.importorskip("openslide", reason="needs OpenSlide: pip install openslide-python openslide-bin")
    (band,) = random_bands((700, 600), 1, [700])
    with band_writer(tmp_path, (700, 600), 1, (0.5, 0.5)) as write:
        write(band)
    slide = openslide.OpenSlide(tmp_path / "mask.tif")
    assert slide.dimensions == (600, 700)
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
    shown = np.asarray(slide.read_region((50, 60), 0, (300, 200)))
    np.testing.assert_array_equal(shown[..., 0], (band.labels > 0)[60:260, 50:350] * np.uint8(255))


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
