"""Results of sample.py as layers of napari, which is not needed for it.

A layer is what napari's readers give: (data, attributes, "image" or "labels").
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from skimage.segmentation import find_boundaries

from data.dataset import Split
from data.images import MAX_PIXELS, SUFFIXES, read_table, readable, stretch
from data.pictures import Picture, SlidePicture, TiledPicture, open_picture
from data.scenes import Scene, scenes_of
from results.maps import STORE, StoredMaps, stored_maps
from results.predicted import Row
from results.read import Settings, read_draws, read_map
from results.sampled import object_table
from sampling.segmenter import Result, Segmenter, image_of
from utils.config import load_config
from utils.data_schema import DataConfig
from utils.errors import CheckpointError, ConfigError, DataError, UsageError
from utils.reading import damaged, read_array, read_json

LayerData = tuple[np.ndarray, dict[str, Any], str]

ERRORS = (CheckpointError, ConfigError, DataError, UsageError, OSError)  # of files, a line each
AMBER, BLUE = (1.0, 0.77, 0.0, 1.0), (0.34, 0.71, 0.91, 1.0)  # of contours, as in the report
TABLES = {"results.csv": ("look_rank", True), "metrics.csv": ("mean_std", False)}  # --input; samples of a data set
NUMBERS = ("area", "area_low", "area_high", "probability", "mean_std")


def ranked(folder: Path) -> list[str]:
    """The pictures of a folder of results, by the names of their folders, from the one to look at first.

    That is look_rank of results.csv, and in samples of a data set the largest mean std. Raises UsageError or DataError
    for other folders.
    """
    for name, (column, ascending) in TABLES.items():
        if (folder / name).is_file():
            table = read_table(folder / name)
            with damaged(folder / name):
                table[column] = table[column].astype(float)
                names = table.sort_values(column, ascending=ascending, kind="stable")["image_id"].tolist()
            there = {path.name for path in folder.iterdir() if path.is_dir()}
            if found := [name for name in names if name in there]:
                return found
    raise UsageError(f"{folder}: no results of sample.py in it; {' or '.join(TABLES)} and a folder for each picture "
                     "are expected")  # fmt: skip


def _contours(labels: np.ndarray, color: tuple[float, ...], **attributes: Any) -> LayerData:
    """The innermost pixels of labels (..., H, W), in one color: napari's readers cannot ask for contours."""
    planes = [plane * find_boundaries(plane, mode="inner") for plane in labels.reshape(-1, *labels.shape[-2:])]
    colors = {None: (0.0,) * 4, 0: (0.0,) * 4, **dict.fromkeys(np.unique(labels[labels > 0]).tolist(), color)}
    return np.stack(planes).reshape(labels.shape), {"colormap": colors, "opacity": 1.0, **attributes}, "labels"


def object_features(objects: pd.DataFrame) -> pd.DataFrame:
    """What napari shows of the object under the pointer. `index`: its label.

    objects: as `object_table` has them; the interval is nan where no draw was kept, and in folders of before it was
    measured.
    """
    unknown = {name: np.nan for name in ("area_low", "area_high") if name not in objects}
    table = objects.assign(index=objects["label"].astype(int), **unknown)
    return table[["index", *NUMBERS]].round({"area_low": 1, "area_high": 1, "probability": 3, "mean_std": 3})


def map_layers(
    mmse: np.ndarray,
    std: np.ndarray,
    probability: np.ndarray,
    classes: np.ndarray,
    instances: np.ndarray | None,
    objects: pd.DataFrame | None,
    draws: np.ndarray | None,
) -> list[LayerData]:
    """Layers of maps (K, H, W), (K, H, W), (H, W) and (H, W) as the report shows them, and contours of draws (D, H, W)
    along a slider. What a person corrects comes last: objects (H, W) with their features, or of several classes
    these."""
    hidden = {"visible": False}
    span = {"contrast_limits": (0.0, max(float(std.max(initial=0)), 1e-6)), "colormap": "magma"}
    layers: list[LayerData] = [
        (mmse.min(axis=0), {"name": "mean", "colormap": "PiYG", "contrast_limits": (-1.0, 1.0), **hidden}, "image"),
        (std.max(axis=0), {"name": "std", **span, **hidden}, "image"),
        (probability, {"name": "probability", "colormap": "viridis", "contrast_limits": (0.0, 1.0), **hidden}, "image"),
    ]
    if draws is not None:
        layers.append(_contours(draws, AMBER, name="draws"))
    if instances is not None and objects is not None:
        about = {"name": "objects", "opacity": 0.4, "visible": len(mmse) == 1, "features": object_features(objects)}
        layers.append((instances.astype(np.int32), about, "labels"))
    if len(mmse) > 1:
        about = {"name": "classes", "opacity": 0.4, "metadata": {"classes": True}}
        layers.append((classes.astype(np.uint8), about, "labels"))
    return layers


def result_layers(result: Result) -> list[LayerData]:
    """Of a picture that was just drawn from."""
    table = object_table(result.objects)
    maps = result.mmse, result.std, result.probability, result.classes
    return map_layers(*maps, result.instances, table, result.first_draws)


def predicted_layers(weights: Path, pixels: np.ndarray, name: str) -> list[LayerData]:
    """Of draws of given weights for an image (H, W), (H, W, 3) or (H, W, 4) of any numbers.

    weights: see `Segmenter.from_weights`, whose errors are raised. name: seeds the draws, as the stem of its file does.
    Raises UsageError for other arrays, DataError for images that are too large.
    """
    if (
        pixels.ndim not in (2, 3)
        or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4))
        or pixels.dtype.kind not in "uif"
    ):
        raise UsageError(f"{name}: {pixels.dtype} of shape {pixels.shape}; one image, grey or in colours, is expected")
    segmenter = Segmenter.from_weights(weights)
    pixels = pixels[..., :3] if pixels.ndim == 3 else pixels
    if pixels.dtype == np.uint8:
        return result_layers(segmenter(np.ascontiguousarray(pixels), name))
    picture = image_of(np.ascontiguousarray(stretch(pixels, segmenter.config.data.window)))
    return result_layers(segmenter(picture, name))


@lru_cache(maxsize=1)
def _scenes(run: Path, split: str) -> dict[str, Scene]:
    return {
        scene.key: scene for scene in scenes_of(Split(load_config(run / "config.yaml").data, split, instances=True))
    }


def _of_data_set(folder: Path) -> list[LayerData]:
    """Image and truth of an image of a run's data set."""
    settings = read_json(folder.parent / "settings.json", Settings)
    scene = _scenes(folder.parents[2], "val" if "val data" in settings else "test").get(folder.name)
    if scene is None:
        raise UsageError(f"{folder}: not an image of the data that its run is of")
    truth = scene.labels if scene.instances is None else scene.instances
    image: LayerData = scene.image, {"metadata": {"file": None}}, "image"
    return [image, _contours(truth, BLUE, name="truth", visible=False)]


def _of_picture(folder: Path, pictures: Path | None) -> list[LayerData]:
    row: Row = read_json(folder / "result.json", Row)
    path = pictures or Path(row.get("path", row["file"]))
    path = path / row["file"] if path.is_dir() else path
    picture: Picture = open_picture(path, DataConfig(root="unused"))
    if picture.shape != (row["height"], row["width"]):
        raise UsageError(f"{path}: {picture.shape} pixels, where {folder} is of {row['height'], row['width']}")
    copied = path.suffix.lower() in SUFFIXES and not isinstance(picture, (TiledPicture, SlidePicture))
    return [(picture.whole(), {"metadata": {"file": str(path.absolute()) if copied else None}}, "image")]


def _pixels(path: Path) -> np.ndarray:
    """The numbers of a .npy or .tif file."""
    if path.suffix == ".npy":
        return read_array(path)
    with readable(path):
        return np.asarray(tifffile.imread(path))


def _whole_maps(folder: Path) -> StoredMaps:
    """What the folder has, in whichever files; instances None where it has none."""
    if (folder / STORE).is_dir():
        with damaged(folder / STORE):
            return stored_maps(folder)
    suffix, image = ("tif", "tif") if (folder / "mmse.tif").is_file() else ("npy", "png")  # of large pictures
    mmse, std = (_pixels(folder / f"{name}.{suffix}") for name in ("mmse", "std"))
    with damaged(folder):
        if mmse.shape != std.shape or mmse.ndim not in (2, 3):
            raise ValueError(f"mean of shape {mmse.shape}, std of {std.shape}")
        mmse, std = (maps[None] if maps.ndim == 2 else maps for maps in (mmse, std))
    shape = mmse.shape[1:]
    classes = read_map(folder / f"{'mask' if len(mmse) == 1 else 'classes'}.{image}", shape)
    probability = read_map(folder / f"probability.{image}", shape) / np.float32(255)
    labelled = next((path for s in ("png", "tif") if (path := folder / f"instances.{s}").is_file()), None)
    return StoredMaps(mmse, std, probability, classes, read_map(labelled, shape) if labelled else None)


def _maps(folder: Path) -> list[LayerData]:
    maps, objects = _whole_maps(folder), None
    if maps.instances is None and len(maps.mmse) == 1:
        raise UsageError(f"{folder}: no instances in it; sample it again")
    if maps.instances is not None:
        with damaged(folder / "objects.csv"):
            objects = pd.read_csv(folder / "objects.csv")
            object_features(objects)
    return map_layers(*maps, objects, read_draws(folder / "draws.png", maps.probability.shape))


def _lay_on(layers: list[LayerData], shape: tuple[int, int]) -> None:
    """Give maps of other pixels the place that they have on the picture (H, W), whose pixels are the unit."""
    for data, attributes, _ in layers:
        factors = [whole / part for whole, part in zip(shape, data.shape[-2:], strict=True)]
        if factors != [1.0, 1.0]:
            rest = data.ndim - 2
            attributes["scale"] = [1.0] * rest + factors
            # napari puts the middle of the first pixel at 0.
            attributes["translate"] = [0.0] * rest + [(factor - 1) / 2 for factor in factors]


def picture_layers(folder: Path, pictures: Path | None = None) -> list[LayerData]:
    """Layers of one picture from its folder in the results: the image, what `map_layers` has, and of a data set the
    truth.

    pictures: where the picture is now, or the folder that it is in; default: where sample.py has read it. One that
    cannot be read is left out, with a warning. Raises UsageError, DataError or OSError where results are damaged, and
    for pictures of more than 100 megapixels.
    """
    predicted = (folder / "result.json").is_file()
    if predicted:
        row: Row = read_json(folder / "result.json", Row)
        if row["height"] * row["width"] > MAX_PIXELS:
            raise UsageError(f"{folder}: more than {MAX_PIXELS // 10**6} megapixels; open its maps one by one")
    image: list[LayerData] = []
    try:
        image = _of_picture(folder, pictures) if predicted else _of_data_set(folder)
    except ERRORS as error:
        warnings.warn(f"the image is left out: {error}", stacklevel=2)
    *maps, last = _maps(folder)
    if predicted:
        _lay_on([*maps, last], (row["height"], row["width"]))
    layers = [*image[:1], *maps, *image[1:], last]
    if image:
        image[0][1]["name"] = folder.name
    for _, attributes, _ in layers:
        about = {"results": str(folder.parent.absolute()), "picture": folder.name}
        attributes["metadata"] = {**attributes.get("metadata", {}), **about}
    return layers


def get_reader(path: str | list[str]) -> Callable[[str], list[LayerData]] | None:
    """napari's reader of a folder of results (its first picture to look at), of its results.csv, or of the folder of a
    picture; None for anything else."""
    folder = Path(path) if isinstance(path, str) else Path()
    if folder.name in TABLES:
        folder = folder.parent
    if any((folder / name).is_file() for name in ("result.json", "scores.json")):
        return lambda _: picture_layers(folder)
    try:
        first = ranked(folder)[0]
    except ERRORS:
        return None
    return lambda _: picture_layers(folder / first)
