"""What stands in the folders of a sampling run, read again: samples/<id>/..."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from annotated_types import Len
from pydantic import ConfigDict
from typing_extensions import NotRequired, TypedDict

from data.images import read_labels
from data.scenes import Scene
from evaluation.calibration import ImageRecord
from evaluation.conformal import RISK_THRESHOLDS, RiskCurve
from evaluation.spread import JITTER, SpreadRecord
from report.layers import ImageLayers
from utils.reading import damaged, read_array, read_json


class Scores(TypedDict):
    """scores.json. mmse, draws: counts of each class, see `Counts`."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    mmse: list[tuple[int, int, int]]
    draws: Annotated[list[list[tuple[int, int, int]]], Len(1)]
    mean_std: float
    nfe: int | float
    seconds: float
    peak_memory_mib: float


OBJECT_SCORES = ("aji", "pq", "dq", "sq", "f1", "dice", "hausdorff")
# What `_object_details` makes.
ObjectDetails = TypedDict("ObjectDetails", {  # noqa: UP013
    "aji": float, "pq": float, "dq": float, "sq": float, "f1": float, "dice": float, "hausdorff": float, "objects": int,
    "true_objects": int, "true_areas": list[int], "drawn_areas": list[list[int]]})  # fmt: skip


class Details(TypedDict):
    """details.json, see `_details`."""

    uncertainty: dict[str, Any]
    risk: RiskCurve
    objects: ObjectDetails
    raters: NotRequired[dict[str, float | None]]
    spread: NotRequired[SpreadRecord]  # not in folders of before it was measured


def read_details(folder: Path) -> Details:
    """Of an image in its folder. Raises UsageError where it is damaged."""
    path = folder / "details.json"
    details: Details = read_json(path, Details)
    with damaged(path):
        ImageRecord.from_dict(details["uncertainty"])
        risk, objects = details["risk"], details["objects"]
        if {len(risk.missed), len(risk.size)} != {len(RISK_THRESHOLDS)}:
            raise ValueError(f"{len(RISK_THRESHOLDS)} thresholds of risk are expected")
        if len(objects["true_areas"]) != len(objects["drawn_areas"]) or not all(objects["drawn_areas"]):
            raise ValueError("areas in the draws are expected for each true object")
        spread = details.get("spread")
        if spread and (len(spread.jitter), len(spread.areas)) != (len(JITTER), spread.draws):
            raise ValueError(f"{len(JITTER)} scores of the reference and an area in each draw are expected")
    return details


def read_scores(folder: Path, classes: int) -> Scores:
    """Of an image in its folder. Raises UsageError where it is damaged."""
    path = folder / "scores.json"
    scores: Scores = read_json(path, Scores)
    with damaged(path):
        if {len(scores["mmse"]), *map(len, scores["draws"])} != {classes}:
            raise ValueError(f"counts of {classes} classes are expected")
    return scores


def read_metrics(path: Path, numbers: Collection[str] = ()) -> pd.DataFrame:
    """A CSV table of images: image_id as text, and these columns of numbers. Raises UsageError."""
    with damaged(path):
        table = pd.read_csv(path, dtype=dict.fromkeys(numbers, float))
        if absent := {"image_id", *numbers} - set(table.columns):
            raise ValueError(f"no column {', '.join(sorted(absent))}")
        names = pd.read_csv(path, usecols=["image_id"], dtype=str, keep_default_na=False)  # an image may be called NA
        return table.assign(image_id=names["image_id"])


def read_map(path: Path, shape: Sequence[int]) -> np.ndarray:
    """Labels or grey values (H, W). Raises UsageError or DataError where it is damaged or of another shape."""
    values = read_labels(path)
    with damaged(path):
        if values.shape != tuple(shape):
            raise ValueError(f"{values.shape} pixels, where the image has {tuple(shape)}")
    return values


def read_draws(path: Path, shape: Sequence[int]) -> np.ndarray | None:
    """Labels (D, H, W) of draws one below the other, as `write_maps` puts them; None without the file, as in folders of
    before. Raises UsageError or DataError where it is damaged."""
    if not path.is_file():
        return None
    stacked, (height, width) = read_labels(path), shape
    with damaged(path):
        if stacked.shape[1] != width or stacked.shape[0] % height:
            raise ValueError(f"{stacked.shape} pixels are not draws of {height} x {width}")
        return stacked.reshape(-1, height, width)


def read_layers(
    folder: Path, image: np.ndarray, draws: float, scene: Scene | None = None, representation: str = "sdf"
) -> ImageLayers:
    """What was written of an image in its folder, for the report; with the truth of a scene, in the draws'
    representation. Raises UsageError or DataError where it is damaged."""
    shape = image.shape[:2]
    with damaged(folder):
        mmse, std = (read_array(folder / name).reshape(-1, *shape) for name in ("mmse.npy", "std.npy"))
    labels = read_map(folder / ("mask.png" if len(mmse) == 1 else "classes.png"), shape)
    target = None if scene is None else scene.target(representation)
    return ImageLayers(
        image,
        mmse,
        labels > 0 if len(mmse) == 1 else labels,
        read_map(folder / "probability.png", shape) / np.float32(255),
        std if draws > 1 or std.any() else None,
        None if scene is None else scene.labels,
        None if target is None else target.mean(axis=0),
        None if scene is None else scene.raters,
        None if target is None or len(target) < 2 else target.std(axis=0, ddof=1),
        read_draws(folder / "draws.png", shape),
    )


# What is read of a settings.json, see `settings_of`.
Settings = TypedDict("Settings", {"checkpoint": str, "members": list[str], "val data": str, "test data": str,
                                  "sampling": dict[str, Any], "seed": int}, total=False)  # fmt: skip
