"""Maps as OME-TIFF pyramids: tiled, compressed, with the size of a pixel."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from data.pixel_size import Microns
from results.pyramid import SIDE, Pyramid
from utils.files import naming

CLASSIC = 2**31  # bytes of pixels above which a file is a BigTIFF
ROWS = 16 * SIDE  # of an array that are handed on at once


class TiffPyramid(Pyramid):
    """One file (H, W), or (K, H, W) with a page for each channel, whose coarser levels are SubIFDs.

    A TIFF has its levels one after the other, so that tiles wait, compressed, in an unnamed file in the same folder.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: type[np.generic],
        averaged: bool,
        microns: Microns | None = None,
    ) -> None:
        super().__init__(path, shape, dtype, averaged)
        self.microns = microns
        with naming(path):
            self._spool = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115, `close` ends it
        self._pool = ThreadPoolExecutor()
        # Lengths and places of the tiles of each level and channel.
        self._tiles: list[list[list[tuple[int, int]]]] = [[[] for _ in range(shape[0])] for _ in self.levels]

    def store(self, level: int, top: int, block: np.ndarray) -> None:
        padded = np.pad(block, ((0, 0), (0, -block.shape[1] % SIDE), (0, -block.shape[2] % SIDE)))
        lefts = range(0, padded.shape[2], SIDE)
        with naming(self.path):
            for channel, tiles in zip(padded, self._tiles[level], strict=True):
                pieces = [channel[:, left : left + SIDE].tobytes() for left in lefts]
                for encoded in self._pool.map(zlib.compress, pieces):
                    tiles.append((len(encoded), self._spool.tell()))
                    self._spool.write(encoded)

    def finish(self) -> None:
        super().finish()
        names = [f"class {k + 1}" for k in range(self.shape[0])]
        metadata: dict[str, Any] = {"axes": "YX"} if self.shape[0] == 1 else {"axes": "CYX", "Channel": {"Name": names}}
        if self.microns is not None:
            height, width = self.microns
            metadata |= {"PhysicalSizeY": height, "PhysicalSizeYUnit": "µm",
                         "PhysicalSizeX": width, "PhysicalSizeXUnit": "µm"}  # fmt: skip
        large = int(np.prod(self.shape)) * self.dtype.itemsize >= CLASSIC
        with naming(self.path), tifffile.TiffWriter(self.path, bigtiff=large, ome=True) as file:
            for level, shape in enumerate(self.levels):
                file.write(
                    self._encoded(level),
                    shape=shape if self.shape[0] == 1 else (self.shape[0], *shape),
                    dtype=self.dtype,
                    tile=(SIDE, SIDE),
                    photometric="minisblack",
                    compression="adobe_deflate",
                    subifds=len(self.levels) - 1 if level == 0 else None,
                    subfiletype=int(level > 0),
                    metadata=metadata if level == 0 else None,
                    **self._resolution(shape),
                )

    def _resolution(self, shape: tuple[int, int]) -> dict[str, Any]:
        if self.microns is None:
            return {}
        (height, width), (rows, columns) = self.microns, shape
        across, down = 1e4 / width * columns / self.shape[2], 1e4 / height * rows / self.shape[1]
        return {"resolution": (across, down), "resolutionunit": "CENTIMETER"}

    def _encoded(self, level: int) -> Iterator[bytes]:
        for tiles in self._tiles[level]:
            for length, place in tiles:
                self._spool.seek(place)
                yield self._spool.read(length)

    def close(self) -> None:
        self._pool.shutdown()
        self._spool.close()


def write_tiff(path: Path, labels: np.ndarray, microns: Microns | None = None) -> None:
    """A file of labels (H, W). Raises OSError where the disk does."""
    pyramid = TiffPyramid(path, (1, *labels.shape), labels.dtype.type, averaged=False, microns=microns)
    try:
        for top in range(0, len(labels), ROWS):
            pyramid.add(labels[None, top : top + ROWS])
        pyramid.finish()
    finally:
        pyramid.close()
