"""Maps as OME-Zarr (OME-NGFF 0.4): one store for an image, which napari opens with its labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.patches import Window
from data.pixel_size import Microns
from results.pyramid import SIDE, Pyramid
from utils.errors import UsageError
from utils.files import naming

VERSION = "0.4"
ACROSS = 4 * SIDE  # columns of a chunk, which is a file: wide ones are fewer


def zarr() -> Any:
    """The library. Raises UsageError where it is not installed."""
    try:
        import zarr as library  # an extra
        from zarr import create_array as create_array  # versions before 3 have none
    except ImportError:
        raise UsageError(
            "sampling.large_maps: zarr needs zarr 3 and with it Python 3.11: pip install 'zarr>=3' (extra: slides)"
        ) from None
    return library


class ZarrPyramid(Pyramid):
    """A multiscale image (K, H, W), or labels (H, W), in the group `name` of the store at `path`, "" for its root.

    channels: (name, least and greatest value to show) of each channel; None for labels.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        shape: tuple[int, int, int],
        dtype: type[np.generic],
        channels: Sequence[tuple[str, float, float]] | None,
        microns: Microns | None = None,
    ) -> None:
        super().__init__(path, shape, dtype, averaged=channels is not None)
        self._flat = channels is None
        with naming(path):
            self._group = zarr().open_group(path, path=name or None, mode="a", zarr_format=2)
            self._arrays = [self._array(str(level), *sides) for level, sides in enumerate(self.levels)]
            self._group.attrs.update(self._attributes(name or path.stem, channels, microns))

    def _array(self, name: str, height: int, width: int) -> Any:
        import numcodecs  # comes with zarr

        leading = () if self._flat else (self.shape[0],)
        return self._group.create_array(
            name,
            shape=(*leading, height, width),
            chunks=(*(1 for _ in leading), SIDE, ACROSS),
            dtype=self.dtype,
            compressors=numcodecs.Zlib(),  # which every reader knows
            fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )

    def _attributes(
        self, name: str, channels: Sequence[tuple[str, float, float]] | None, microns: Microns | None
    ) -> dict[str, Any]:
        unit = {} if microns is None else {"unit": "micrometer"}
        axes = [{"name": axis, "type": "space", **unit} for axis in "yx"]
        scales = []
        for sides in self.levels:
            pairs = zip(microns or (1.0, 1.0), self.shape[1:], sides, strict=True)
            scales.append([side * whole / part for side, whole, part in pairs])
        if not self._flat:
            axes, scales = [{"name": "c", "type": "channel"}, *axes], [[1.0, *scale] for scale in scales]
        datasets = [
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            for level, scale in enumerate(scales)
        ]
        said: dict[str, Any] = {
            "multiscales": [{"version": VERSION, "name": name.rpartition("/")[2], "axes": axes, "datasets": datasets}]
        }
        if channels is None:
            return {**said, "image-label": {"version": VERSION, "source": {"image": "../../"}}}
        shown = [
            {"label": label, "active": True, "color": "FFFFFF", "window": {"start": a, "end": b, "min": a, "max": b}}
            for label, a, b in channels
        ]
        return {**said, "omero": {"version": VERSION, "channels": shown}}

    def store(self, level: int, top: int, block: np.ndarray) -> None:
        rows = slice(top, top + block.shape[1])
        with naming(self.path):
            if self._flat:
                self._arrays[level][rows] = block[0]
            else:
                self._arrays[level][:, rows] = block


def name_labels(path: Path, names: Sequence[str]) -> None:
    """Say which labels the store at `path` has."""
    with naming(path):
        zarr().open_group(path, path="labels", mode="a", zarr_format=2).attrs["labels"] = list(names)


def label_names(path: Path) -> list[str]:
    """What `name_labels` has said last."""
    names: list[str] = zarr().open_group(path, path="labels", mode="r").attrs["labels"]
    return names


def read_zarr(path: Path, name: str, level: int, channel: int | None, window: Window | None) -> np.ndarray:
    """A window of an array of the store at `path`: of labels (H, W), of a channel of the image, or of all (C, H, W)."""
    array = zarr().open_group(path, mode="r")[f"{name}/{level}".lstrip("/")]
    leading, part = () if channel is None else (channel,), (...,) if window is None else window.slices
    return np.asarray(array[(*leading, *part)])
