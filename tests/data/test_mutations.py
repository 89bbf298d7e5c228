"""Files damaged at random are read or refused in one line, in bounded memory; nothing else happens."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.dataset import load_split
from data.images import read_image, read_labels
from data.patches import Window
from data.pictures import open_picture
from data.prepare import prepare
from data.scenes import scenes_of
from data.sources import monuseg
from tests.commands import section
from utils.errors import DataError

TIMES = 20
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
XML = '<?xml version="1.0" encoding="utf-8"?><Annotations><Annotation><Regions>{}</Regions></Annotation></Annotations>'
VERTICES = '<Vertex X="4.5" Y="3"/><Vertex X="20" Y="3"/><Vertex X="20" Y="30"/>'


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, or with bytes changed, inserted or taken out, a bit flipped, a piece copied to another place."""
    place, other, length = int(rng.integers(len(content))), int(rng.integers(len(content))), int(rng.integers(1, 9))
    head, piece, tail = content[:place], content[place : place + length], content[place + length :]
    noise = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    flipped = bytes([piece[0] ^ 1 << int(rng.integers(8))]) + piece[1:]
    made = (head, head + noise + tail, head + noise + piece + tail, head + tail, head + flipped + tail,
            content[:other] + piece + content[other:])  # fmt: skip
    return made[int(rng.integers(len(made)))]


def write_prepared(root: Path) -> None:
    prepare(section("phantom", root=root, workers=1, phantom={"train": 2, "val": 1, "test": 1, "size": 32}), quiet=True)


def read_prepared(root: Path) -> None:
    assert scenes_of(load_split(section("phantom", root=root), "train", instances=True, may_be_empty=True)) is not None


def read_picture(path: Path) -> None:
    """As a mask, as an image, and region by region."""
    for read in (read_labels, read_image):
        with suppress(DataError):
            read(path)
    opened = open_picture(path, section())
    for top, left in ((0, 0), (opened.shape[0] - 1, opened.shape[1] - 1)):
        opened.read(Window(top, left, 1, 1))


def read_xml(path: Path) -> None:
    monuseg.fill_regions(monuseg.read_regions(path), (40, 50), str(path))


def write_pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(PIXELS, tile=(16, 16), photometric="rgb", subifds=1, compression="zlib")
        file.write(PIXELS[::2, ::2], tile=(16, 16), photometric="rgb", subfiletype=1)


def write_image(path: Path) -> None:
    Image.fromarray(PIXELS).save(path)


PREPARED = ("train.csv", "dataset.json", "Training_patches/phantom_0000.png", "Training_patches/phantom_0000_mask.png",
            "Training_patches/phantom_0000_sdf.npy", "Training_patches/phantom_0000_instances.png")  # fmt: skip
KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    **dict.fromkeys(PREPARED, (write_prepared, read_prepared)),
    "a.png": (write_image, read_picture),
    "a.bmp": (write_image, read_picture),
    "a.jpg": (write_image, read_picture),
    "plain.tif": (write_image, read_picture),
    "deep.tif": (lambda p: tifffile.imwrite(p, PIXELS.astype(np.uint16), photometric="rgb"), read_picture),
    "pyramid.tif": (write_pyramid, read_picture),
    "a.npy": (lambda p: np.save(p, PIXELS), read_picture),
    "a.xml": (lambda p: p.write_text(XML.format(f"<Region Id='1'><Vertices>{VERTICES}</Vertices></Region>")), read_xml),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    write, read = KINDS[name]
    place = tmp_path if name in PREPARED else tmp_path / name
    write(place)
    read(place)
    path, before = tmp_path / name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content, refused = path.read_bytes(), []
    for seed in range(TIMES):
        path.write_bytes(mutated(content, np.random.default_rng(seed)))
        try:
            read(place)
        except DataError as error:
            refused.append(str(error))
    assert refused
    for line in refused:
        assert "\n" not in line
        assert len(line) < 600
        assert str(tmp_path) in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
