"""Maps of large images as tiled TIFF, written row by row while they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np
import tifffile

from sampling.tiled import Band
from utils.files import naming

SIDE = 256  # of a tile of the file
CLASSIC = 2**31  # bytes of pixels above which a file is a BigTIFF


class _Aborted(Exception):
    """Ends a file that is not to be."""


class TiffStream:
    """One compressed, tiled TIFF (H, W) or (H, W, K) that takes rows from the top as they come.

    tifffile pulls tiles where bands are pushed, so it has a thread of its own; one piece of rows waits in between.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._rows = 0  # taken
        self._queue: Queue[np.ndarray | None] = Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._write, name=path.name, daemon=True)
        self._thread.start()

    def add(self, rows: np.ndarray) -> None:
        """Take the next rows (n, W) or (n, W, K). Raises what the writing has raised."""
        if self._error is not None:
            raise self._error
        if rows.shape[1:] != self.shape[1:] or self._rows + len(rows) > self.shape[0]:
            raise ValueError(f"{self.path}: rows of shape {rows.shape} after {self._rows} of {self.shape}")
        self._rows += len(rows)
        self._queue.put(np.ascontiguousarray(rows, self.dtype))

    def end(self) -> None:
        """Wait for what has been taken; no more is."""
        if self._thread.is_alive():
            self._queue.put(None)
        self._thread.join()

    def check(self) -> None:
        """After the end: raises what the writing has raised, or ValueError for missing rows."""
        if self._rows < self.shape[0]:
            raise ValueError(f"{self.path}: {self._rows} of {self.shape[0]} rows")
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        try:
            large = int(np.prod(self.shape)) * self.dtype.itemsize >= CLASSIC
            with naming(self.path), tifffile.TiffWriter(self.path, bigtiff=large) as file:
                file.write(
                    self._tiles(),
                    shape=self.shape,
                    dtype=self.dtype,
                    tile=(SIDE, SIDE),
                    photometric="minisblack",
                    planarconfig="contig" if len(self.shape) > 2 else None,
                    compression="adobe_deflate",
                    maxworkers=1,
                    metadata=None,
                )
        except _Aborted:
            return
        except BaseException as error:
            self._error = error
            while self._queue.get() is not None:  # nobody waits for this thread in vain
                pass

    def _tiles(self) -> Iterator[np.ndarray]:
        waiting = np.empty((0, *self.shape[1:]), self.dtype)
        for top in range(0, self.shape[0], SIDE):
            height = min(SIDE, self.shape[0] - top)
            while len(waiting) < height:
                rows = self._queue.get()
                if rows is None:
                    raise _Aborted
                waiting = np.concatenate([waiting, rows])
            for left in range(0, self.shape[1], SIDE):
                yield waiting[:height, left : left + SIDE]
            waiting = waiting[height:]


@contextmanager
def band_writer(folder: Path, shape: tuple[int, int], classes: int = 1) -> Iterator[Callable[[Band], None]]:
    """What writes the next band: mmse.tif and std.tif (float32, SDF units), probability.tif and mask.tif (uint8, 255 =
    all, foreground) of one image; with several classes also classes.tif (uint8 labels), and mmse.tif and std.tif are
    (H, W, K) then.

    shape: (H, W) of the image. The files in `folder` are whole at the end of the block. Raises OSError where the disk
    does, ValueError for bands that do not make up the image.
    """
    stacked, streams = shape if classes == 1 else (*shape, classes), dict[str, TiffStream]()
    for name in ("mmse", "std", "probability", "mask", *(["classes"] if classes > 1 else [])):
        kind = (stacked, np.float32) if name in ("mmse", "std") else (shape, np.uint8)
        streams[name] = TiffStream(folder / f"{name}.tif", *kind)

    def add(band: Band) -> None:
        mmse, std = (maps[0] if classes == 1 else np.moveaxis(maps, 0, -1) for maps in (band.mmse, band.std))
        probability, mask = np.round(band.probability * 255), (band.labels > 0) * 255
        for stream, maps in zip(streams.values(), (mmse, std, probability, mask, band.labels), strict=False):
            stream.add(maps)

    try:
        yield add
    finally:
        for stream in streams.values():
            stream.end()
    for stream in streams.values():
        stream.check()
