"""Maps of large images as tiled TIFF, written row by row while they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType

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


class BandWriter:
    """mmse.tif and std.tif (float32, SDF units), probability.tif and mask.tif (uint8, 255 = all, foreground) of one
    image; with several classes also classes.tif (uint8 labels), and mmse.tif and std.tif are (H, W, K) then.

    shape: (H, W) of the image. A context manager: the files in `folder` are whole at its end. Raises OSError where the
    disk does, ValueError for bands that do not make up the image.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], classes: int = 1) -> None:
        self.folder, self.shape, self.classes = folder, shape, classes
        self._streams: dict[str, TiffStream] = {}

    def __enter__(self) -> BandWriter:
        stacked = self.shape if self.classes == 1 else (*self.shape, self.classes)
        kinds: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "mmse": (stacked, np.float32),
            "std": (stacked, np.float32),
            "probability": (self.shape, np.uint8),
            "mask": (self.shape, np.uint8),
        }
        if self.classes > 1:
            kinds["classes"] = (self.shape, np.uint8)
        self._streams = {name: TiffStream(self.folder / f"{name}.tif", *kind) for name, kind in kinds.items()}
        return self

    def add(self, band: Band) -> None:
        """Write the next band."""
        maps = {
            "mmse": self._stacked(band.mmse),
            "std": self._stacked(band.std),
            "probability": np.round(band.probability * 255),
            "mask": (band.labels > 0) * 255,
            "classes": band.labels,
        }
        for name, stream in self._streams.items():
            stream.add(maps[name])

    def _stacked(self, maps: np.ndarray) -> np.ndarray:
        return maps[0] if self.classes == 1 else np.moveaxis(maps, 0, -1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self._streams.values():
            stream.end()
        if kind is None:
            for stream in self._streams.values():
                stream.check()
