"""Maps of large images in a folder: OME-TIFF pyramids, or one OME-Zarr store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.patches import Window
from data.pictures import TiledPicture
from data.pixel_size import Microns
from results.ngff import ZarrPyramid, label_names, name_labels, read_zarr
from results.pyramid import Pyramid
from results.tiff import TiffPyramid
from sampling.tiled import Band

STORE = "maps.zarr"


@contextmanager
def band_writer(
    folder: Path, shape: tuple[int, int], classes: int = 1, microns: Microns | None = None, kind: str = "tiff"
) -> Iterator[Callable[[Band], None]]:
    """What writes the next band of one image (H, W).

    kind: "tiff" makes mmse.tif and std.tif (float32, SDF units; (K, H, W) with several classes), probability.tif and
    mask.tif (uint8, 255 = all, foreground), with several classes also classes.tif (uint8 labels). "zarr" makes
    maps.zarr: an image whose channels are mmse and std of each class and probability (float32, 1 = all), with the
    labels mask (uint8, 1 = foreground) or classes. microns: size of a pixel. All is whole at the end of the block.
    Raises OSError where the disk does, ValueError for bands that do not make up the image, UsageError without zarr.
    """
    pyramids: dict[str, Pyramid] = {}
    try:
        if kind == "zarr":
            pyramids |= _zarr_pyramids(folder / STORE, shape, classes, microns)
        else:
            for name in ("mmse", "std", "probability", "mask", *(["classes"] if classes > 1 else [])):
                stacked = (classes if name in ("mmse", "std") else 1, *shape)
                dtype = np.float32 if name in ("mmse", "std") else np.uint8
                averaged = name not in ("mask", "classes")
                pyramids[name] = TiffPyramid(folder / f"{name}.tif", stacked, dtype, averaged, microns)

        def add(band: Band) -> None:
            mask, probability = band.labels > 0, band.probability[None]
            if kind == "zarr":
                rows = [np.concatenate([band.mmse, band.std, probability]), mask[None]]
            else:
                rows = [band.mmse, band.std, np.round(probability * 255), mask[None] * 255]
            for pyramid, some in zip(pyramids.values(), [*rows, band.labels[None]], strict=False):
                pyramid.add(some)

        yield add
        for pyramid in pyramids.values():
            pyramid.finish()
    finally:
        for pyramid in pyramids.values():
            pyramid.close()


def _zarr_pyramids(
    path: Path, shape: tuple[int, int], classes: int, microns: Microns | None
) -> Iterator[tuple[str, Pyramid]]:
    ends = [""] if classes == 1 else [f" of class {k + 1}" for k in range(classes)]
    channels = [(f"{name}{end}", low, 1.0) for name, low in (("mmse", -1.0), ("std", 0.0)) for end in ends]
    channels.append(("probability", 0.0, 1.0))
    yield "", ZarrPyramid(path, "", (len(channels), *shape), np.float32, channels, microns)
    names = ["mask", *(["classes"] if classes > 1 else [])]
    for name in names:
        yield name, ZarrPyramid(path, f"labels/{name}", (1, *shape), np.uint8, None, microns)
    name_labels(path, names)


@contextmanager
def instance_writer(
    folder: Path, shape: tuple[int, int], microns: Microns | None = None
) -> Iterator[Callable[[np.ndarray], None]]:
    """What writes the next rows (n, W) of the objects' labels beside the maps: instances.tif (uint32), or labels in the
    store. Raises as `band_writer`."""
    store, stacked = folder / STORE, (1, *shape)
    pyramid: Pyramid
    if store.is_dir():
        pyramid = ZarrPyramid(store, "labels/instances", stacked, np.uint32, None, microns)
    else:
        pyramid = TiffPyramid(folder / "instances.tif", stacked, np.uint32, False, microns)
    try:
        yield lambda rows: pyramid.add(rows[None])
        pyramid.finish()
    finally:
        pyramid.close()
    if store.is_dir():
        name_labels(store, ["mask", "instances"])


def map_window(folder: Path, name: str, level: int = 0, window: Window | None = None) -> np.ndarray:
    """A window of mmse or std (H, W) of an image of one class, or of the mask of any, halved `level` times."""
    store = folder / STORE
    if store.is_dir():
        channel = None if name == "mask" else ("mmse", "std").index(name)
        return read_zarr(store, "labels/mask" if name == "mask" else "", level, channel, window)
    picture = TiledPicture(folder / f"{name}.tif", level)
    return picture.whole() if window is None else picture.read(window)


class StoredMaps(NamedTuple):
    """All maps of an image: mmse and std (K, H, W), probability (H, W) from 0 to 1, classes (H, W), of a single one
    the mask, and instances (H, W), which several classes have none of."""

    mmse: np.ndarray
    std: np.ndarray
    probability: np.ndarray
    classes: np.ndarray
    instances: np.ndarray | None


def stored_maps(folder: Path) -> StoredMaps:
    """Those of maps.zarr. Raises UsageError without zarr, and what zarr does where the store is damaged."""
    store = folder / STORE
    image, names = read_zarr(store, "", 0, None, None), label_names(store)
    several = len(image) // 2
    labels = {name: read_zarr(store, f"labels/{name}", 0, None, None) for name in names}
    mask = labels["mask" if several == 1 else "classes"]
    return StoredMaps(image[:several], image[several:-1], image[-1], mask, labels.get("instances"))
