"""Slides, pyramids and pixel sizes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.inputs import PreparedPicture, in_pixels_of
from data.patches import Window
from data.pictures import NEEDS, Picture, ScaledPicture, SlidePicture, TiledPicture, open_picture
from data.pixel_size import microns_of, slide_microns
from tests.commands import section
from tests.pictures import write_svs
from utils.errors import DataError, UsageError

WINDOWS = (Window(0, 0, 300, 411), Window(63, 47, 2, 2), Window(299, 410, 1, 1), Window(128, 0, 64, 411))


def smooth(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 of low frequencies, which resizing in any way leaves alike."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 31 + k) * np.cos(columns / 23 - k) for k in range(3)]
    return ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)


def test_slides_are_read_region_by_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("openslide", reason="needs OpenSlide: pip install openslide-python openslide-bin")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    write_svs(tmp_path / "slide.svs", pixels, 0.25)
    assert library.OpenSlide.detect_format(tmp_path / "slide.svs") == "aperio"
    slide = open_picture(tmp_path / "slide.svs", section())
    assert (slide.shape, slide.microns) == ((300, 411), (0.25, 0.25))
    for window in WINDOWS:
        np.testing.assert_array_equal(slide.read(window), pixels[window.slices])
    coarse = slide.coarser(4)
    assert coarse.shape == (75, 103)
    np.testing.assert_array_equal(coarse.whole(), pixels[::4, ::4])
    assert slide.coarser(3.9).shape == slide.shape


STATED = {"bounds-x": "30", "bounds-y": "20", "bounds-width": "50", "bounds-height": "40",
          "background-color": "0A141E", "mpp-x": "0.5", "mpp-y": "0.4"}  # fmt: skip


def test_tiff_of_jpeg_tiles_is_read_by_openslide(tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason="needs OpenSlide: pip install openslide-python openslide-bin")
    pytest.importorskip("imagecodecs", reason="needs a JPEG encoder: pip install imagecodecs")
    pixels = smooth(400, 300)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg"}
        file.write(pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)
    opened = open_picture(tmp_path / "slide.tif", section())
    assert isinstance(opened, SlidePicture)
    assert (opened.shape, opened.microns, opened.coarser(2).shape) == ((400, 300), (0.5, 0.5), (200, 150))
    window = Window(100, 50, 120, 90)
    assert np.abs(opened.read(window).astype(int) - pixels[window.slices]).mean() < 3


class FakeSlide:
    """A scanned rectangle on a larger, transparent slide, as of scanners that say which part they scanned."""

    level_downsamples, dimensions = (1.0,), (100, 90)

    def __init__(self, path: Path) -> None:
        self.properties = {f"openslide.{name}": value for name, value in STATED.items()}
        self.pixels = np.zeros((90, 100, 4), np.uint8)
        self.pixels[20:60, 30:70] = (200, 100, 50, 255)  # the last ten columns of the bounds are empty

    @staticmethod
    def detect_format(path: Path) -> str:
        return "fake"

    def read_region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        left, top = corner
        return Image.fromarray(self.pixels[top : top + size[1], left : left + size[0]])


def test_only_the_scanned_area_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", type(sys)("openslide"))
    monkeypatch.setattr(sys.modules["openslide"], "OpenSlide", FakeSlide, raising=False)
    (tmp_path / "a.mrxs").write_bytes(b"x")
    slide = open_picture(tmp_path / "a.mrxs", section())
    assert (slide.shape, slide.microns) == ((40, 50), (0.4, 0.5))
    assert (slide.read(Window(0, 0, 40, 40)) == (200, 100, 50)).all()
    assert (slide.read(Window(0, 40, 40, 10)) == (10, 20, 30)).all()


def test_without_openslide_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    write_svs(tmp_path / "slide.svs", smooth(60, 60), 0.25)
    with pytest.raises(UsageError, match="pip install openslide-python openslide-bin") as error:
        open_picture(tmp_path / "slide.svs", section())
    assert str(error.value) == NEEDS


def test_what_is_no_slide_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason="needs OpenSlide: pip install openslide-python openslide-bin")
    write_svs(tmp_path / "cut.svs", np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8), 0.25)
    whole = (tmp_path / "cut.svs").read_bytes()
    for content in (b"no slide", whole[:5000], whole[: len(whole) // 2]):
        (tmp_path / "cut.svs").write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.svs") as error:
            open_picture(tmp_path / "cut.svs", section()).whole()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(150, 206), (37, 50), (300, 411), (450, 700)])
def test_windows_of_a_resized_picture_are_those_of_the_whole(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    scaled = ScaledPicture(Picture(pixels, (0.5, 0.5)), shape)
    whole = Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BILINEAR)
    assert np.abs(scaled.whole().astype(int) - np.asarray(whole)).max() <= 1
    for window in (Window(0, 0, 5, 7), Window(shape[0] - 3, shape[1] - 9, 3, 9), Window(11, 13, 20, 30)):
        assert np.abs(scaled.read(window).astype(int) - np.asarray(whole)[window.slices]).max() <= 1
    assert scaled.microns == pytest.approx((0.5 * 300 / shape[0], 0.5 * 411 / shape[1]))


def test_a_resized_pyramid_is_read_from_its_coarser_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = smooth(800, 640)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "adobe_deflate"}
        file.write(pixels, subifds=2, **options)
        for step in (2, 4):
            file.write(pixels[::step, ::step], subfiletype=1, **options)
    opened = open_picture(tmp_path / "slide.tif", section())
    assert isinstance(opened, TiledPicture)
    assert [opened.coarser(by).shape for by in (1, 1.9, 2, 3, 4, 100)] == [
        (800, 640), (800, 640), (400, 320), (400, 320), (200, 160), (200, 160)]  # fmt: skip
    decoded = []
    tile = TiledPicture._tile
    monkeypatch.setattr(TiledPicture, "_tile", lambda self, index: decoded.append(self.shape) or tile(self, index))  # type: ignore[func-returns-value]
    shown = ScaledPicture(opened, (300, 240)).whole()
    assert set(decoded) == {(400, 320)}
    expected = np.asarray(Image.fromarray(pixels).resize((240, 300), Image.Resampling.BILINEAR))
    assert np.abs(shown.astype(int) - expected).max() <= 12  # half a pixel of the finer level, which was thinned out


UNITS = {"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm"}
GREY = np.zeros((20, 30), np.uint8)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}, (0.5, 0.25)),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, (0.5, 0.5)),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (4, 4), "resolutionunit": "NONE"}, None),
        ({"resolution": (0, 0), "resolutionunit": "CENTIMETER"}, None),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "pixel"}}, None),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}}, (0.5, 0.25)),
        ({"ome": True, "metadata": UNITS}, (0.5, 0.25)),
        ({"ome": True, "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}, None),  # OME-XML goes first
        ({"description": "<OME><Pixels PhysicalSizeX='x'/></OME>"}, None),
    ],
)
def test_pixel_sizes_are_those_that_the_file_states(
    tmp_path: Path, options: dict[str, Any], expected: tuple[float, float] | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, **options)
    assert microns_of(tmp_path / "a.tif") == (expected if expected is None else pytest.approx(expected))
    assert open_picture(tmp_path / "a.tif", section()).shape == (20, 30)


def test_other_files_state_no_pixel_size(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", dpi=(50800, 50800))
    (tmp_path / "b.tif").write_bytes(b"no picture")
    assert [microns_of(tmp_path / name) for name in ("a.png", "b.tif", "absent.tif")] == [None] * 3
    assert slide_microns({}) is None
    assert slide_microns({"openslide.mpp-x": "nan", "openslide.mpp-y": "0.5"}) is None


def test_pictures_get_the_pixels_of_the_network() -> None:
    pixels = smooth(120, 200)
    for microns in ((0.5, 0.5), (0.49, 0.52)):  # as scanners differ
        near = Picture(pixels, microns)
        assert in_pixels_of(near, 0.5) == (near, None)
    unknown, warning = in_pixels_of(Picture(pixels), 0.5)
    assert unknown.shape == (120, 200)
    assert warning == "does not state the size of its pixels; taken for 0.5 micrometres"
    assert in_pixels_of(Picture(pixels), None)[1] is None
    fine, warning = in_pixels_of(Picture(pixels, (0.25, 0.125)), 0.5)
    assert (fine.shape, warning, fine.microns) == ((60, 50), None, (0.5, 0.5))
    assert in_pixels_of(Picture(pixels, (2.0, 2.0)), 0.5)[0].shape == (480, 800)
    with pytest.raises(DataError, match=r"pixels of 2\.1 micrometres, .* have 0\.5; at most 2 can"):
        in_pixels_of(Picture(pixels, (2.1, 2.1)), 0.5)


def test_the_preparation_resizes_first() -> None:
    data = section(color="rgb", microns_per_pixel=0.5)
    prepared = PreparedPicture(Picture(smooth(120, 200), (0.25, 0.25)), data, None)
    assert (prepared.shape, prepared.microns, prepared.warning) == ((60, 100), (0.5, 0.5), None)
    assert np.abs(prepared.whole().astype(int) - smooth(120, 200)[::2, ::2]).max() <= 12


@pytest.mark.parametrize("axes", ["CYX", "ZYX"])
def test_a_pyramid_of_several_planes_is_not_its_first(tmp_path: Path, axes: str) -> None:
    planes = np.stack([np.full((512, 512), value, np.uint8) for value in (10, 100, 200)])
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        options: dict[str, Any] = {"tile": (256, 256), "photometric": "minisblack", "metadata": {"axes": axes}}
        file.write(planes, subifds=1, **options)
        file.write(planes[:, ::2, ::2], subfiletype=1, tile=(256, 256), photometric="minisblack")
    with pytest.raises(DataError, match="3 channels or planes"):
        open_picture(tmp_path / "a.ome.tif", section())
