"""Reading pictures and label maps of any common format, with one clear error for whatever is wrong with a file.

Every reader checks the size in the header before it decodes a pixel.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from utils.errors import DataError

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".npy")
MAX_PIXELS = 100_000_000
PERCENTILES = (0.1, 99.9)  # what is stretched to 0 .. 255 where pixels are wider than a byte
Image.MAX_IMAGE_PIXELS = None  # our own limit stands before every decoder

_BYTES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def safe_id(name: str) -> str:
    """A name fit for files: letters, digits, '.', '_' and '-', no leading dot."""
    return _UNSAFE.sub("_", name).lstrip(".") or "_"


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
def readable(path: Path) -> Iterator[None]:
    """What decoders raise for damaged files becomes a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from None


def _check_shape(path: Path, array: np.ndarray) -> None:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(f"{path}: an array of shape {array.shape}; (H, W), (H, W, 3) or (H, W, 4) is expected")


def _load_npy(path: Path, max_pixels: int) -> np.ndarray:
    with path.open("rb") as file:
        if not file.read(6).startswith(b"\x93NUMPY"):
            raise DataError(f"{path}: not a .npy file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "object" in str(error).lower():
            raise DataError(f"{path}: holds pickled Python objects, which are never loaded") from None
        raise
    if array.ndim == 3 and array.shape[0] == 1 and array.shape[2] > 4:
        array = array[0]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    _check_shape(path, array)
    if array.dtype.kind not in "buif":
        raise DataError(f"{path}: an array of {array.dtype}; numbers are expected")
    check_size(path, array.shape[0], array.shape[1], max_pixels)
    return np.array(array)


def _load_tiff(path: Path, max_pixels: int) -> np.ndarray:
    """What Pillow cannot: colours of 16 bits and floats of any width."""
    with tifffile.TiffFile(path) as file:
        if len(file.pages) != 1:
            raise DataError(f"{path}: {len(file.pages)} pages; one picture is expected")
        page = file.pages[0]
        check_size(path, page.imagelength, page.imagewidth, max_pixels)  # type: ignore[union-attr]
        array = page.asarray()
    _check_shape(path, array)
    return array


def _is_deep(file: Image.Image) -> bool:
    """More than 8 bits a channel, also where Pillow would cut them off without a word (PNG colours)."""
    return file.mode not in _BYTES or any(";16" in str(tile[3]) for tile in getattr(file, "tile", ()))


def _deep_colors(path: Path, file: Image.Image, max_pixels: int) -> np.ndarray:
    if file.format == "TIFF":
        return _load_tiff(path, max_pixels)
    return np.asarray(file).astype(np.uint16) * 257


def _load(path: Path, max_pixels: int, modes: dict[str, str]) -> tuple[np.ndarray, bool]:
    """The array of a picture file and whether its pixels are wider than a byte; modes: conversions for 8 bits."""
    array, deep = _decode(path, max_pixels, modes)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{path}: has NaN or infinite values")
    return array, deep


def _decode(path: Path, max_pixels: int, modes: dict[str, str]) -> tuple[np.ndarray, bool]:
    with readable(path):
        if path.suffix.lower() == ".npy":
            array = _load_npy(path, max_pixels)
            return array, array.dtype.kind == "f" or array.dtype.itemsize > 1
        try:
            file = Image.open(path)
        except OSError:
            if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
                raise
            array = _load_tiff(path, max_pixels)
            return array, array.dtype != np.uint8
        with file:
            check_size(path, file.height, file.width, max_pixels)
            if getattr(file, "n_frames", 1) > 1 and file.format != "MPO":
                raise DataError(f"{path}: {file.n_frames} pages or frames; one picture is expected")  # type: ignore[attr-defined]
            deep = _is_deep(file)
            if deep and file.mode in _BYTES:  # Pillow has kept the upper byte of each channel
                return _deep_colors(path, file, max_pixels), True
            return np.asarray(file.convert(modes[file.mode]) if file.mode in modes else file), deep


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
    if array.ndim == 3:
        array = array[..., :3]
    if is_deep and not deep:
        raise DataError(f"{path}: has more than 8 bits per pixel; an 8-bit image is expected")
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if window is not None or array.dtype != np.uint8:
        return stretch(array, window)
    return array


_LABEL_MODES = {"LA": "L", "La": "L", "PA": "P", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB", "YCbCr": "L"}


def read_labels(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A mask or label map as it is stored: (H, W) integers, 0 = background; a palette file gives its indices.

    JPEG cannot keep labels: it is read as a mask, foreground from 128 on. Raises DataError.
    """
    array, _ = _load(path, max_pixels, _LABEL_MODES)
    if array.ndim == 3:
        array = array[..., :3]
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
