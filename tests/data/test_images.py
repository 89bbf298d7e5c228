"""Reading pictures and label maps of any format, and refusing the broken ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.images import picture_shape, read_image, read_labels, stretch
from tests.pictures import save
from utils.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 4096, (9, 7), dtype=np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp", "npy"])
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_formats_give_the_pixels_back(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    path = tmp_path / f"a.{suffix}"
    np.save(path, pixels) if suffix == "npy" else save(path, pixels)
    np.testing.assert_array_equal(read_image(path), pixels)


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = np.tile(np.arange(0, 160, 10, dtype=np.uint8), (16, 1))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).max() < 8


def test_alpha_is_dropped_and_palettes_become_colours(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.full((9, 7), 3, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgba)), RGB)
    palette = Image.fromarray(GREY % 3).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png")
    values = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[np.asarray(palette)]
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), values)
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png"), np.asarray(palette))


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
def test_sixteen_bits_only_where_they_are_expected(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    np.save(path, DEEP) if suffix == "npy" else save(path, DEEP)
    with pytest.raises(DataError, match=r"a\.\w+: has more than 8 bits per pixel; an 8-bit image is expected"):
        read_image(path)
    low = read_image(path, deep=True, window=(0, 4095))
    np.testing.assert_allclose(low, DEEP / 4095 * 255, atol=0.51)
    own = read_image(path, deep=True)
    assert (own.min(), own.max()) == (0, 255)


def test_sixteen_bit_colours(tmp_path: Path) -> None:
    colours = RNG.integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", deep=True, window=(0, 65535)), colours / 257, atol=0.51)
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(tmp_path / "a.tif")
    header = struct.pack(">IIBBBBB", 7, 9, 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(tmp_path / "a.png")


def test_labels_keep_their_values(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_labels(save(tmp_path / "a.png", DEEP)), DEEP)
    np.testing.assert_array_equal(read_labels(save(tmp_path / "b.png", np.dstack([GREY] * 3))), GREY)
    np.testing.assert_array_equal(read_labels(save(tmp_path / "c.png", GREY > 99)), GREY > 99)
    np.save(tmp_path / "d.npy", DEEP.astype(np.float32))
    np.testing.assert_array_equal(read_labels(tmp_path / "d.npy"), DEEP)
    np.save(tmp_path / "e.npy", GREY > 99)
    np.testing.assert_array_equal(read_labels(tmp_path / "e.npy"), GREY > 99)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    np.testing.assert_array_equal(read_labels(save(tmp_path / "f.jpg", mask)), mask)


def test_stretch() -> None:
    np.testing.assert_array_equal(stretch(np.array([[0.0, 5.0, 10.0, 20.0]]), (0, 10)), [[0, 128, 255, 255]])
    assert not stretch(np.full((3, 3), 7.0), None).any()


def huge_png(path: Path) -> None:
    """A header of 20,000 x 20,000 pixels and hardly any data: a bomb for whoever decodes first and looks later."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def huge_npy(path: Path) -> None:
    np.lib.format.open_memmap(path, "w+", np.uint8, (20_000, 20_000)).flush()  # sparse on disk


def cut_npy(path: Path) -> None:
    np.save(path, GREY)
    path.write_bytes(path.read_bytes()[:140])


def pages(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint8), photometric="minisblack")


def animate(path: Path) -> None:
    Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(GREY + 1)])


def tiff(path: Path, pixels: np.ndarray, change: Callable[[bytearray, Any], None], **options: Any) -> None:
    """A TIFF, and what is changed in its bytes, given its first page."""
    tifffile.imwrite(path, pixels, **options)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        change(content, file.pages[0])
    path.write_bytes(content)


def set_tag(*codes: int, dtype: int = 4, value: int = 0) -> Callable[[bytearray, Any], None]:
    def change(content: bytearray, page: Any) -> None:
        for code in codes:
            struct.pack_into("<HHII", content, page.tags[code].offset, code, dtype, 1, value)

    return change


def spoil_tile(content: bytearray, page: Any) -> None:
    begin = page.dataoffsets[-1]
    content[begin + 10 : begin + 30] = b"x" * 20


def spoil_npy(path: Path) -> None:
    np.save(path, GREY)
    path.write_bytes(path.read_bytes().replace(b"(9, 7)", b"[[[[[["))


def as_png(format: str) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(GREY).save(path, format)


TILED = np.zeros((40, 40), np.uint8)
BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "huge png": ("a.png", huge_png, r"20000 x 20000 is 400 megapixels; data\.max_megapixels allows 100"),
    "huge npy": ("a.npy", huge_npy, r"20000 x 20000 is 400 megapixels"),
    "nan": ("a.npy", lambda p: np.save(p, np.array([[1.0, np.nan]])), "NaN"),
    "nan tiff": ("a.tif", lambda p: tifffile.imwrite(p, np.full((4, 4), np.nan, np.float32)), "NaN"),
    "pickle": ("a.npy", lambda p: np.save(p, np.array([[{}]], object), allow_pickle=True), "pickled Python objects"),
    "pickle as npy": ("a.npy", lambda p: p.write_bytes(b"\x80\x04N."), r"not a \.npy file"),
    "text": ("a.npy", lambda p: np.save(p, np.array([["a"]])), "numbers are expected"),
    "dimensions": ("a.npy", lambda p: np.save(p, np.zeros((2, 3, 4, 5))), "shape"),
    "cut npy": ("a.npy", cut_npy, "cannot be read"),
    "cut png": ("a.png", lambda p: p.write_bytes(save(p, RGB).read_bytes()[:90]), "cannot be read"),
    "empty": ("a.png", lambda p: p.write_bytes(b""), "cannot be read"),
    "absent": ("a.tif", lambda p: None, "no such file"),
    "no tiff": ("a.tif", lambda p: p.write_text("no picture"), "cannot be read"),
    "pages": ("a.tif", pages, "3 pages"),
    "postscript": ("a.png", as_png("EPS"), "cannot be read as PNG, TIFF, BMP or JPEG"),
    "webp": ("a.jpg", as_png("WEBP"), "cannot be read as PNG, TIFF, BMP or JPEG"),
    "header of npy": ("a.npy", spoil_npy, "cannot be read"),
    "complex": ("a.tif", lambda p: tifffile.imwrite(p, np.zeros((4, 4), np.complex64)), "numbers are expected"),
    "tag": ("a.tif", lambda p: tiff(p, GREY, set_tag(256, dtype=2)), "cannot be read"),
    "tile": ("a.tif", lambda p: tiff(p, np.stack([DEEP] * 3, -1), spoil_tile, photometric="rgb", tile=(16, 16),
                                     compression="zlib"), "cannot be read"),
    "huge tile": ("a.tif", lambda p: tiff(p, TILED, set_tag(322, 323, value=100_000), tile=(16, 16)),
                  "tiles of 100000 x 100000 pixels"),
    "huge tile, deep": ("a.tif", lambda p: tiff(p, np.zeros((40, 40, 3), np.float64), set_tag(322, 323, value=100_000),
                                                photometric="rgb", tile=(16, 16)), "tiles of 100000 x 100000 pixels"),
    "frames": ("a.png", animate, "2 pages or frames"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_broken_files_are_refused(tmp_path: Path, kind: str) -> None:
    name, make, message = BAD[kind]
    make(tmp_path / name)
    for read in (read_image, read_labels):
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_impossible_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a mask in colours"):
        read_labels(save(tmp_path / "a.png", RGB))
    np.save(tmp_path / "b.npy", np.array([[0.5, 1.0]]))
    with pytest.raises(DataError, match="fractions"):
        read_labels(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([[-1, 1]]))
    with pytest.raises(DataError, match="negative"):
        read_labels(tmp_path / "c.npy")


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_of_few_bits_are_as_stored(tmp_path: Path, bits: int) -> None:
    labels = np.arange(4, dtype=np.uint8)[:, None].repeat(8, 1)
    Image.fromarray(labels).save(tmp_path / "palette.png")  # 8 bits, as they are
    packed = np.packbits(
        ((labels[..., None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(4, -1).astype(np.uint8), axis=1
    )
    rows = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 4, bits, 0, 0, 0, 0)
    png = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "few.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    np.testing.assert_array_equal(read_labels(tmp_path / "few.png"), labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "palette.png"), labels)
    assert read_image(tmp_path / "few.png").max() == 3 * (85 if bits == 2 else 17)  # a picture is seen as it is shown


def test_labels_with_an_inverting_table_are_as_stored(tmp_path: Path) -> None:
    """ImageJ saves 8 bits so whose 0 it shows white."""
    labels = (GREY > 128).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="miniswhite")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), labels)


def test_colours_of_16_bits_in_png_are_not_cut_in_silence(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for name, most in (("dark", 4095), ("full", 65535)):
        rows = b"".join(b"\0" + np.full(8 * 3, most, ">u2").tobytes() for _ in range(4))
        png = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 4, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png + chunk(b"IEND", b""))
    with pytest.raises(DataError, match="save it as TIFF"):
        read_image(tmp_path / "dark.png", deep=True)
    assert read_image(tmp_path / "full.png", deep=True, window=(0, 65535)).min() == 255
    with pytest.raises(DataError, match="save it as TIFF"):
        read_labels(tmp_path / "full.png")


def test_pictures_are_upright(tmp_path: Path) -> None:
    """As every program shows them: PNG and JPEG are turned by their tag, of TIFF programs differ."""
    exif = Image.Exif()
    exif[274] = 6
    for name in ("a.png", "a.jpg"):
        Image.fromarray(GREY).save(tmp_path / name, exif=exif, quality=100)
        assert picture_shape(tmp_path / name) == (7, 9)
        assert np.abs(read_image(tmp_path / name).astype(int) - np.rot90(GREY, -1)).max() < 8
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), np.rot90(GREY, -1))
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(274, "H", 1, 6, True)])
    for reader in (read_image, read_labels):
        with pytest.raises(DataError, match="orientation tag 6"):
            reader(tmp_path / "a.tif")
