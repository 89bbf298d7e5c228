"""Pictures to predict on: of any size, without masks or tables, brought into the form of the training images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from data.images import check_size, check_tile, read_image, readable, stretch, stretch_window
from data.patches import Window
from data.recipe import normalise_stain, stain_of, transform_image, with_stain
from data.stain import Stain
from utils.data_schema import DataConfig
from utils.errors import DataError

WHOLE = 4_000_000  # pixels up to which statistics of a picture are of all its pixels, as in the preparation
PROBES, PROBE = 8, 256  # of larger ones: windows each way, and their side
REGIONS = 16_000_000  # pixels from which a tiled TIFF is read region by region


class Picture:
    """Pixels in memory. shape: (height, width)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.shape: tuple[int, int] = (pixels.shape[0], pixels.shape[1])

    def read(self, window: Window) -> np.ndarray:
        """(h, w) or (h, w, 3) uint8 of a window inside the picture."""
        return self._pixels[window.slices]

    def whole(self) -> np.ndarray:
        return self.read(Window(0, 0, *self.shape))


class TiledPicture(Picture):
    """The full resolution of a tiled TIFF, possibly a pyramid; only the tiles that are asked for are decoded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with readable(path):
            self._file = tifffile.TiffFile(path)
            self._page = self._file.series[0].levels[0].keyframe
            check_tile(path, self._page.tilelength, self._page.tilewidth)
        self.shape = (self._page.imagelength, self._page.imagewidth)

    def read(self, window: Window) -> np.ndarray:
        page = self._page
        height, width = page.tilelength, page.tilewidth
        first_row, first_column = window.top // height, window.left // width
        rows = range(first_row, math.ceil((window.top + window.height) / height))
        columns = range(first_column, math.ceil((window.left + window.width) / width))
        tiles = np.zeros((len(rows) * height, len(columns) * width, page.samplesperpixel), np.uint8)
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
            return np.zeros((1, 1, page.samplesperpixel), np.uint8)
        handle.seek(page.dataoffsets[index])
        decoded = page.decode(handle.read(page.databytecounts[index]), index, jpegtables=page.jpegtables)[0]
        if decoded is None:
            raise ValueError(f"tile {index} is damaged")
        return decoded[0]


def _is_regional(path: Path) -> bool:
    """A TIFF of which regions are read: tiled bytes, and a pyramid or a large picture."""
    if path.suffix.lower() not in (".tif", ".tiff", ".svs"):
        return False
    with readable(path), tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = series.levels[0].keyframe
        plain = page.is_tiled and page.dtype == np.uint8 and page.planarconfig == 1 and page.imagedepth == 1
        large = page.imagelength * page.imagewidth > REGIONS and len(file.pages) == 1
        return bool(plain and page.samplesperpixel in (1, 3, 4) and (len(series.levels) > 1 or large))


def open_picture(path: Path, data: DataConfig) -> Picture:
    """A picture of any supported format; alpha is dropped, 16 bits are brought to 8 by `stretch` with data.window.

    Raises DataError for what is no picture, for several pages or frames that are no pyramid, for NaN, and for pictures
    above data.max_megapixels that would have to be read whole.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: an empty file")
    if _is_regional(path):
        return TiledPicture(path)
    return Picture(read_image(path, data.max_pixels, deep=True, window=data.window))


class PreparedPicture(Picture):
    """A picture as the preparation of the training images would have made it: stain, colour, stretch, size.

    warning: why a step was left out, or None. Raises DataError where it has to be resized and is above
    data.max_megapixels.
    """

    def __init__(self, picture: Picture, data: DataConfig, target: Stain | None) -> None:
        self._source, self._data, self._target = picture, data, target
        self.warning: str | None = None
        self._stain: Stain | None = None
        self._window: tuple[float, float] | None = None
        self._resized: np.ndarray | None = None
        self.shape = data.size or picture.shape
        if picture.shape[0] * picture.shape[1] <= WHOLE or data.size is not None:
            check_size(Path("the picture"), *picture.shape, data.max_pixels)
            image, self.warning = normalise_stain(picture.whole(), data.stain, target)
            self._resized = transform_image(image, data)
            return
        probes = np.concatenate([p.reshape(-1, *p.shape[2:]) for p in self._probes()])[:, None]
        if target is not None:
            self._stain, self.warning = stain_of(probes, data.stain)
        if data.stretch:
            probes = with_stain(probes, self._stain, target)
            self._window = stretch_window(transform_image(probes, data, stretched=False))

    def _probes(self) -> Iterator[np.ndarray]:
        """Windows all over a large picture, for its stain and range."""
        height, width = (min(PROBE, length) for length in self.shape)
        for top in np.linspace(0, self.shape[0] - height, PROBES).astype(int).tolist():
            for left in np.linspace(0, self.shape[1] - width, PROBES).astype(int).tolist():
                yield self._source.read(Window(top, left, height, width))

    def read(self, window: Window) -> np.ndarray:
        if self._resized is not None:
            return self._resized[window.slices]
        pixels = with_stain(self._source.read(window), self._stain, self._target)
        pixels = transform_image(pixels, self._data, stretched=False)
        return stretch(pixels, self._window) if self._window is not None else pixels

    def planes(self, window: Window) -> np.ndarray:
        """(C, h, w) uint8."""
        pixels = self.read(window)
        return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")
