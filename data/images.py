"""Reading pictures, label maps and tables, with one clear error for whatever is wrong with a file.

Every reader checks the size in the header before it decodes a pixel.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import DataError

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".npy")
FORMATS = ("PNG", "TIFF", "BMP", "JPEG")  # Pillow knows others, some of which start other programs
ROWS = 4096  # of a table at a time
MAX_PIXELS, MAX_TILE = 100_000_000, 25_000_000
ORIENTATION, TILE_WIDTH, TILE_LENGTH = 274, 322, 323  # tags of a TIFF
PERCENTILES = (0.1, 99.9)  # what is stretched to 0 .. 255 where pixels are wider than a byte
Image.MAX_IMAGE_PIXELS = None  # our own limit stands before every decoder
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters of a damaged file is raised

_BYTES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def check_size(path: Path, height: int, width: int, max_pixels: int) -> None:
    """Raises DataError for pictures without pixels and for those above the limit."""
    if height < 1 or width < 1:
        raise DataError(f"{path}: {width} x {height} pixels")
    if height * width > max_pixels:
        raise DataError(
            f"{path}: {width} x {height} is {height * width / 1e6:.0f} megapixels; data.max_megapixels allows "
            f"{max_pixels / 1e6:g}"
        )


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Whatever a decoder raises for a damaged file becomes a DataError of one line that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: cannot be read as PNG, TIFF, BMP or JPEG") from None
    except Exception as error:  # decoders raise anything: zlib.error, TokenError, struct.error, TypeError, ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from None


def _check_pixels(path: Path, shape: tuple[int, ...], dtype: np.dtype, max_pixels: int) -> None:
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (3, 4)):
        raise DataError(f"{path}: an array of shape {shape}; (H, W), (H, W, 3) or (H, W, 4) is expected")
    if dtype.kind not in "buif":
        raise DataError(f"{path}: an array of {dtype}; numbers are expected")
    check_size(path, shape[0], shape[1], max_pixels)


def check_tile(path: Path, height: int, width: int) -> None:
    """Raises DataError for tiles of a TIFF that no writer makes: decoders allocate a whole one, however small the
    picture."""
    if height * width > MAX_TILE:
        raise DataError(f"{path}: tiles of {width} x {height} pixels; at most {MAX_TILE / 1e6:g} megapixels are read")


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """A CSV file, every cell as text, '' where there is nothing. Raises DataError."""
    with readable(path):
        return pd.read_csv(path, dtype=str, keep_default_na=False, **options).fillna("")


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file as `read_table` has them, a few thousand in memory at a time. Raises DataError."""
    with readable(path):
        for part in pd.read_csv(path, dtype=str, keep_default_na=False, chunksize=ROWS):
            yield from part.fillna("").to_dict("records")


def load_npy(path: Path) -> np.ndarray:
    """An array that stays on disk. Raises DataError, also for pickled objects, which are never loaded."""
    with readable(path):
        with path.open("rb") as file:
            if not file.read(6).startswith(b"\x93NUMPY"):
                raise DataError(f"{path}: not a .npy file")
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except ValueError as error:
            if "object" in str(error).lower():
                raise DataError(f"{path}: holds pickled Python objects, which are never loaded") from None
            raise


def _numbers(path: Path, max_pixels: int) -> np.ndarray:
    array = load_npy(path)
    if array.ndim == 3 and array.shape[0] == 1 and array.shape[2] > 4:
        array = array[0]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    _check_pixels(path, array.shape, array.dtype, max_pixels)
    return np.array(array)


def _load_tiff(path: Path, max_pixels: int) -> np.ndarray:
    """What Pillow cannot: colours of 16 bits and floats of any width."""
    with tifffile.TiffFile(path) as file:
        if len(file.pages) != 1:
            raise DataError(f"{path}: {len(file.pages)} pages; one picture is expected")
        page: Any = file.pages[0]
        if page.dtype is None:
            raise DataError(f"{path}: pixels of an unknown type")
        _check_pixels(path, page.shape, page.dtype, max_pixels)
        check_tile(path, page.tilelength, page.tilewidth)
        return np.asarray(page.asarray())


def _load(path: Path, max_pixels: int, modes: dict[str, str]) -> tuple[np.ndarray, bool]:
    """The array of a picture file, without alpha, and whether its pixels are wider than a byte; modes: conversions for
    8 bits."""
    array, deep = _decode(path, max_pixels, modes)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{path}: has NaN or infinite values")
    return array[..., :3] if array.ndim == 3 else array, deep


def _decode(path: Path, max_pixels: int, modes: dict[str, str]) -> tuple[np.ndarray, bool]:
    with readable(path):
        if path.suffix.lower() == ".npy":
            array = _numbers(path, max_pixels)
            return array, array.dtype.kind == "f" or array.dtype.itemsize > 1
        try:
            file = Image.open(path, formats=FORMATS)
        except OSError:
            if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
                raise
            array = _load_tiff(path, max_pixels)
            return array, array.dtype != np.uint8
        with file:
            check_size(path, file.height, file.width, max_pixels)
            if getattr(file, "n_frames", 1) > 1 and file.format != "MPO":
                raise DataError(f"{path}: {file.n_frames} pages or frames; one picture is expected")  # type: ignore[attr-defined]
            tags, stored = getattr(file, "tag_v2", {}), str([tile[3] for tile in getattr(file, "tile", ())])
            check_tile(path, tags.get(TILE_LENGTH, 0), tags.get(TILE_WIDTH, 0))
            check_upright(path, tags.get(ORIENTATION, 1))
            if file.mode in _BYTES and ";16" in stored:
                # Colours of 16 bits, of which Pillow has kept the upper byte without a word.
                if file.format == "TIFF":
                    return _load_tiff(path, max_pixels), True
                ImageOps.exif_transpose(file, in_place=True)
                upper = np.asarray(file)
                if modes is _LABEL_MODES or upper.max() < 128:
                    raise DataError(f"{path}: colours of 16 bits, of which PNG gives 8 here; save it as TIFF")
                return upper.astype(np.uint16) * 257, True
            deep = file.mode not in _BYTES
            if file.format != "TIFF":
                ImageOps.exif_transpose(file, in_place=True)
            array = np.asarray(file.convert(modes[file.mode]) if file.mode in modes else file)
            return _as_stored(array, stored) if modes is _LABEL_MODES else array, deep


def _as_stored(labels: np.ndarray, stored: str) -> np.ndarray:
    """Labels of a grey file without what Pillow does for pictures: white for 0 in TIFFs that say so, as ImageJ's may,
    and 255 for the largest value of 2 or 4 bits. stored: Pillow's names of the ways pixels are stored."""
    if "'L;I'" in stored or "'L;2I'" in stored or "'L;4I'" in stored:
        labels = 255 - labels
    return labels // 85 if "'L;2" in stored else labels // 17 if "'L;4" in stored else labels


def check_upright(path: Path, orientation: int) -> None:
    """Raises DataError for TIFFs that are to be shown turned: programs differ in whether they do. Of PNG and JPEG all
    turn them."""
    if orientation != 1:
        raise DataError(f"{path}: to be shown turned (orientation tag {orientation}); save it upright")


def picture_shape(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(H, W) of a PNG, TIFF, BMP or JPEG, of which no more than the header is read. Raises DataError."""
    with readable(path), Image.open(path, formats=FORMATS) as file:
        check_size(path, file.height, file.width, max_pixels)
        # Pillow decodes a whole PNG to look for a tag behind its pixels.
        tagged = file.format != "PNG" or "exif" in file.info
        turned = tagged and file.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (file.width, file.height) if turned else (file.height, file.width)


def stretch_window(values: np.ndarray) -> tuple[float, float]:
    """The range of values that `stretch` brings to 0 .. 255 by itself."""
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def stretch(values: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Any numbers to uint8: `window` becomes 0 .. 255, linearly and cut off there.

    window None: from the 0.1th to the 99.9th percentile of the picture itself.
    """
    low, high = window or stretch_window(values)
    share = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


_IMAGE_MODES = {"1": "L", "LA": "L", "La": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB",
                "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}  # fmt: skip


def read_image(
    path: Path, max_pixels: int = MAX_PIXELS, *, deep: bool = False, window: tuple[float, float] | None = None
) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8. Alpha is dropped, palettes become colours.

    deep: accept more than 8 bits a channel, brought to 8 by `stretch`; `window` applies to all files then.
    Raises DataError.
    """
    array, is_deep = _load(path, max_pixels, _IMAGE_MODES)
    if is_deep and not deep:
        raise DataError(f"{path}: has more than 8 bits per pixel; an 8-bit image is expected")
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if window is not None or array.dtype != np.uint8:
        return stretch(array, window)
    return array


def two_valued(values: np.ndarray, path: Path, advice: str = "") -> np.ndarray:
    """(H, W) bool of a mask of 0 and one other value. Raises DataError for more of them."""
    found = np.unique(values)
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        raise DataError(f"{path}: {len(found)} values, {found[0]} to {found[-1]}; a mask has 0 and one other{advice}")
    return values > 0


_LABEL_MODES = {"LA": "L", "La": "L", "PA": "P", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB", "YCbCr": "L"}


def read_labels(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A mask or label map as it is stored: (H, W) integers, 0 = background; a palette file gives its indices.

    JPEG cannot keep labels: it is read as a mask, 0 and 255, foreground from 128 on. Raises DataError.
    """
    array, _ = _load(path, max_pixels, _LABEL_MODES)
    if array.ndim == 3:
        if (array != array[..., :1]).any():
            raise DataError(f"{path}: a mask in colours; grey or palette values are expected")
        array = array[..., 0]
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return (array >= 128).astype(np.uint8) * 255
    if array.dtype.kind == "f":
        if (array != np.round(array)).any():
            raise DataError(f"{path}: a mask with fractions; whole numbers are expected")
        array = array.astype(np.int64)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.min() < 0:
        raise DataError(f"{path}: a mask with negative values, down to {array.min()}")
    return array
