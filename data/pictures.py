"""Pictures to predict on, read in windows: arrays, tiled TIFF, slides, and each of them in another pixel size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageColor

from data.images import ORIENTATION, check_tile, check_upright, read_image, readable
from data.patches import Window
from data.pixel_size import TIFF, Microns, microns_of, slide_microns, tiff_microns
from utils.data_schema import DataConfig
from utils.errors import DataError, UsageError

REGIONS = 16_000_000  # pixels from which a tiled TIFF is read region by region
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
NEEDS = "slides are read by OpenSlide: pip install openslide-python openslide-bin (extra: slides)"
JPEG = 7  # compression of tiles that tifffile alone does not decode
NEARLY = 1.01  # levels of a slide are rounded to whole pixels
AT_ONCE = 4096  # height and width in pixels of what is resized at once


class Picture:
    """Pixels in memory. shape: (height, width). microns: size of a pixel, None where it is not stated."""

    def __init__(self, pixels: np.ndarray, microns: Microns | None = None) -> None:
        self._pixels, self.microns = pixels, microns
        self.shape: tuple[int, int] = (pixels.shape[0], pixels.shape[1])

    def read(self, window: Window) -> np.ndarray:
        """(h, w) or (h, w, 3) uint8 of a window inside the picture."""
        return self._pixels[window.slices]

    def whole(self) -> np.ndarray:
        return self.read(Window(0, 0, *self.shape))

    def coarser(self, downsample: float) -> Picture:
        """The same picture as it is stored besides, `downsample` times smaller or less; itself where it is not."""
        return self


class TiledPicture(Picture):
    """One resolution of a tiled TIFF, possibly a pyramid; only the tiles that are asked for are decoded.

    Of files of any type of numbers it reads these; `open_picture` takes it for bytes only.
    """

    def __init__(self, path: Path, level: int = 0) -> None:
        self._path = path
        with readable(path):
            self._file = tifffile.TiffFile(path)
            self._levels = self._file.series[0].levels
            self._page = self._levels[level].keyframe
            check_tile(path, self._page.tilelength, self._page.tilewidth)
        self.shape = (self._page.imagelength, self._page.imagewidth)
        self.microns = tiff_microns(self._file) if level == 0 else None

    def coarser(self, downsample: float) -> Picture:
        pages = [level.keyframe for level in self._levels]
        fitting = [
            i
            for i, page in enumerate(pages)
            if self.shape[1] / page.imagewidth <= downsample * NEARLY and _alike(page, pages[0])
        ]
        return TiledPicture(self._path, max(fitting, key=lambda i: -pages[i].imagewidth)) if fitting else self

    def read(self, window: Window) -> np.ndarray:
        page = self._page
        height, width = page.tilelength, page.tilewidth
        first_row, first_column = window.top // height, window.left // width
        rows = range(first_row, math.ceil((window.top + window.height) / height))
        columns = range(first_column, math.ceil((window.left + window.width) / width))
        tiles = np.zeros((len(rows) * height, len(columns) * width, page.samplesperpixel), page.dtype)
        with readable(self._path):
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    tile = self._tile(row * math.ceil(self.shape[1] / width) + column)
                    tiles[i * height : i * height + tile.shape[0], j * width : j * width + tile.shape[1]] = tile
        top, left = window.top - first_row * height, window.left - first_column * width
        pixels = tiles[top : top + window.height, left : left + window.width, :3]
        return pixels[..., 0] if page.samplesperpixel < 3 else pixels

    def _tile(self, index: int) -> np.ndarray:
        """(h, w, samples); an empty one is black."""
        page, handle = self._page, self._file.filehandle
        if page.databytecounts[index] == 0:
            return np.zeros((1, 1, page.samplesperpixel), page.dtype)
        handle.seek(page.dataoffsets[index])
        decoded = page.decode(handle.read(page.databytecounts[index]), index, jpegtables=page.jpegtables)[0]
        if decoded is None:
            raise ValueError(f"tile {index} is damaged")
        return decoded[0]


def _alike(page: Any, other: Any) -> bool:
    """Whether both can be read by tiles, and have the same colours."""
    return bool(page.is_tiled and page.samplesperpixel == other.samplesperpixel and page.dtype == other.dtype)


def openslide() -> Any:
    """The library. Raises UsageError where it is not installed."""
    try:
        import openslide as library  # an extra
    except (ImportError, OSError):  # the second where its own library is absent
        raise UsageError(NEEDS) from None
    return library


class SlidePicture(Picture):
    """One resolution of a whole-slide image; only the regions that are asked for are decoded.

    Pixels are counted from the corner of the scanned area, where the scanner states one, as QuPath does. Where nothing
    was scanned, the slide's background colour is shown. Raises UsageError without OpenSlide, DataError for what it
    does not know.
    """

    def __init__(self, path: Path, level: int = 0) -> None:
        library, self._path = openslide(), path
        with readable(path):
            if library.OpenSlide.detect_format(path) is None:
                raise DataError(f"{path}: not a slide that OpenSlide knows")
            self._slide, self._level = library.OpenSlide(path), level
            stated = self._slide.properties
            self._scale: float = self._slide.level_downsamples[level]
            self._corner = [int(stated.get(f"openslide.bounds-{axis}", 0)) for axis in "yx"]
            width, height = self._slide.dimensions
            across, down = (
                int(stated.get(f"openslide.bounds-{side}", n)) for side, n in (("width", width), ("height", height))
            )
            self.shape = (max(1, round(down / self._scale)), max(1, round(across / self._scale)))
            self._background = ImageColor.getrgb("#" + stated.get("openslide.background-color", "ffffff"))
        self.microns = slide_microns(stated) if level == 0 else None

    def coarser(self, downsample: float) -> Picture:
        return SlidePicture(self._path, self._slide.get_best_level_for_downsample(downsample * NEARLY))

    def read(self, window: Window) -> np.ndarray:
        top, left = (
            corner + round(first * self._scale)
            for corner, first in zip(self._corner, (window.top, window.left), strict=True)
        )
        with readable(self._path):
            pixels = self._slide.read_region((left, top), self._level, (window.width, window.height))
        if pixels.getextrema()[3][0] == 255:  # all of it was scanned
            return np.asarray(pixels.convert("RGB"))
        return np.asarray(
            Image.alpha_composite(Image.new("RGBA", pixels.size, self._background), pixels).convert("RGB")
        )


class ScaledPicture(Picture):
    """A picture resized to `shape`, window by window; the windows are those of the resized whole, up to rounding."""

    def __init__(self, picture: Picture, shape: tuple[int, int]) -> None:
        down = min(picture.shape[0] / shape[0], picture.shape[1] / shape[1])
        self._source, self.shape, self.microns = picture.coarser(down), shape, None
        if picture.microns is not None:
            height, width = (
                side * before / now for side, before, now in zip(picture.microns, picture.shape, shape, strict=True)
            )
            self.microns = (height, width)

    def read(self, window: Window) -> np.ndarray:
        step = max(1, int(AT_ONCE * min(now / of for now, of in zip(self.shape, self._source.shape, strict=True))))
        bottom, right = window.top + window.height, window.left + window.width
        rows = []
        for top in range(window.top, bottom, step):
            lefts = range(window.left, right, step)
            parts = [Window(top, left, min(step, bottom - top), min(step, right - left)) for left in lefts]
            rows.append(np.concatenate([self._part(part) for part in parts], axis=1))
        return np.concatenate(rows)

    def _part(self, window: Window) -> np.ndarray:
        """A window whose source fits memory."""
        factors = [before / now for before, now in zip(self._source.shape, self.shape, strict=True)]
        starts, stops, box = [], [], []
        for part, factor, length in zip(window.slices, factors, self._source.shape, strict=True):
            halo = max(1.0, factor) + 1  # what the filter reaches, and a pixel
            starts.append(max(0, math.floor(part.start * factor - halo)))
            stops.append(min(length, math.ceil(part.stop * factor + halo)))
            box.append((part.start * factor - starts[-1], min(part.stop * factor, length) - starts[-1]))
        source = Window(starts[0], starts[1], stops[0] - starts[0], stops[1] - starts[1])
        corners = (box[1][0], box[0][0], box[1][1], box[0][1])
        image = Image.fromarray(self._source.read(source))
        return np.asarray(image.resize((window.width, window.height), Image.Resampling.BILINEAR, corners))


def _is_regional(path: Path) -> bool:
    """A TIFF of which regions are read: tiled bytes, and a pyramid or a large picture."""
    with readable(path), tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = series.levels[0].keyframe
        if len(series.levels) > 1 and len(series.levels[0].pages) > 1:
            raise DataError(f"{path}: {len(series.levels[0].pages)} channels or planes; one picture is expected")
        check_upright(path, int(page.tags.valueof(ORIENTATION, 1)))
        plain = page.is_tiled and page.dtype == np.uint8 and page.planarconfig == 1 and page.imagedepth == 1
        large = page.imagelength * page.imagewidth > REGIONS and len(file.pages) == 1
        plain = plain and page.photometric in (1, 2, 6)  # grey, RGB, YCbCr: others are decoded whole
        return bool(plain and page.samplesperpixel in (1, 3, 4) and (len(series.levels) > 1 or large))


def _is_slide(path: Path) -> bool:
    """A format of scanners, or a TIFF of JPEG tiles where OpenSlide is there to decode them."""
    if path.suffix.lower() in SLIDES:
        return True
    with readable(path), tifffile.TiffFile(path) as file:
        if file.series[0].levels[0].keyframe.compression != JPEG:
            return False
    try:
        return openslide().OpenSlide.detect_format(path) is not None
    except UsageError:
        return False


def open_picture(path: Path, data: DataConfig) -> Picture:
    """A picture of any supported format; alpha is dropped, 16 bits are brought to 8 by `stretch` with data.window.

    Raises DataError for what is no picture, for several pages or frames that are no pyramid, for NaN, and for pictures
    above data.max_megapixels that would have to be read whole; UsageError for slides without OpenSlide.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: an empty file")
    suffix = path.suffix.lower()
    if suffix in SLIDES or (suffix in TIFF and _is_regional(path)):
        return SlidePicture(path) if _is_slide(path) else TiledPicture(path)
    return Picture(read_image(path, data.max_pixels, deep=True, window=data.window), microns_of(path))
