"""Prepared data: CSV files of patches to checked arrays in memory (README, "Prepared data")."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data.images import read_image, read_labels, safe_id
from data.sdf import signed_distance
from utils.data_schema import DataConfig
from utils.errors import DataError

PUBLISHED_SCALE = 0.2  # the published code divides its VE distances by 5 once more

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How to read a prepared folder.

    rgb: colour of the images. truncation: in pixels, for rows without an SDF file. classes: class values, or None.
    instances: read the numbers of the objects too, where the table names them.
    """

    rgb: bool
    truncation: float
    classes: tuple[int, ...] | None = None
    instances: bool = False


@dataclass(frozen=True)
class Patch:
    """One row of a CSV file.

    key: unique in the split, fit for a file name; the image_id where that is unique.
    image: (H, W) or (H, W, 3) uint8.
    sdf: (R, K, H, W) float32 in [-1, 1], of R raters (1 where there is a single annotation) and K classes.
    labels: (H, W) uint8, 0 = background, k = the k-th class; 1 where there is one class.
    raters: (H, W) bool for each rater, empty where there is a single annotation.
    place: (top, left) in the image, where the table says it.
    instances: (H, W) integers, the object of each pixel, 0 = background; None where not known or not read.
    """

    key: str
    image_id: str
    filename: str
    image: np.ndarray
    sdf: np.ndarray
    labels: np.ndarray
    raters: tuple[np.ndarray, ...] = ()
    place: tuple[int, int] | None = None
    instances: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, the foreground of any class."""
        return np.asarray(self.labels > 0)


def _inside(root: Path, name: str) -> Path:
    """The file `name` below root. The published layout starts its paths with '/', which is root here."""
    path = (root / name.lstrip("/")).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{name} leads out of {root}")
    if not path.is_file():
        raise DataError(f"no file {name} under {root}")
    return path


def _read_sdf(path: Path, classes: int) -> np.ndarray:
    """(K, H, W) float32."""
    try:
        sdf = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read the array {path} ({error})") from None
    if sdf.ndim == 2:
        sdf = sdf[None]
    if sdf.ndim != 3 or sdf.shape[0] != classes or sdf.dtype.kind != "f":
        shape = "(H, W)" if classes == 1 else f"({classes}, H, W)"
        raise DataError(f"{path} holds {sdf.dtype} of shape {sdf.shape}, expected float32 {shape}")
    if not np.isfinite(sdf).all():
        raise DataError(f"{path} has non-finite values")
    if np.abs(sdf).max(initial=0.0) > 1.0 + 1e-6:
        raise DataError(f"{path} leaves [-1, 1]; divide the distances by the truncation")
    return sdf.astype(np.float32)


def _read_mask(path: Path) -> np.ndarray:
    values = read_image(path)
    values = values if values.ndim == 2 else values.max(axis=2)
    levels = np.unique(values)
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise DataError(f"{path} holds {len(levels)} values, {levels[0]} to {levels[-1]}; a mask has 0 and 255")
    return values > 0


def _read_classes(path: Path, classes: Sequence[int]) -> np.ndarray:
    values = read_labels(path)
    unknown = sorted(set(np.unique(values).tolist()) - {0, *classes})
    if unknown:
        raise DataError(f"{path} holds the value {unknown[0]}; data.classes are {list(classes)}")
    labels = np.zeros(values.shape, np.uint8)
    for k, value in enumerate(classes, 1):
        labels[values == value] = k
    return labels


class _RowReader:
    """The files of one row, every complaint with the row's place in front."""

    def __init__(self, root: Path, row: dict[str, str], reading: Reading) -> None:
        self.root, self.row, self.reading = root, row, reading
        self.classes = reading.classes or (1,)

    def path(self, name: str) -> Path:
        return _inside(self.root, name)

    def image(self) -> np.ndarray:
        pixels = read_image(self.path(self.row["filename"]))
        if self.reading.rgb:
            return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))

    def labels(self) -> np.ndarray:
        if self.reading.classes is None:
            return _read_mask(self.path(self.row["maskname"])).astype(np.uint8)
        if not self.row.get("classname"):
            raise DataError("data.classes needs a column classname, a PNG of class values")
        return _read_classes(self.path(self.row["classname"]), self.reading.classes)

    def instances(self, labels: np.ndarray) -> np.ndarray | None:
        name = self.row.get("instancename")
        if not name or not self.reading.instances:
            return None
        values = read_labels(self.path(name))
        if values.shape != labels.shape:
            raise DataError(f"{name} is {values.shape}, the mask {labels.shape}")
        return values

    def sdf(self, labels: np.ndarray, name: str | None) -> np.ndarray:
        """(K, H, W), from the file or else from the labels."""
        if not name:
            masks = [labels == k for k in range(1, len(self.classes) + 1)]
            return np.stack([signed_distance(mask, self.reading.truncation) for mask in masks])
        sdf = _read_sdf(self.path(name), len(self.classes))
        if sdf.shape[1:] != labels.shape:
            raise DataError(f"{name} is {sdf.shape[1:]}, the mask {labels.shape}")
        mask = labels > 0
        if mask.any() and not mask.all() and sdf.min(axis=0)[mask].mean() > sdf.min(axis=0)[~mask].mean():
            raise DataError(f"{name} is greater inside the mask than outside; an SDF is negative inside")
        return sdf

    def annotations(self, labels: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """SDFs (R, K, H, W) and the masks of the raters."""
        masks = [name for name in self.row.get("raternames", "").split(";") if name]
        sdfs = [name for name in self.row.get("raterdtnames", "").split(";") if name]
        if not masks or self.reading.classes is not None:
            return self.sdf(labels, self.row.get("maskdtname"))[None], ()
        if sdfs and len(sdfs) != len(masks):
            raise DataError(f"{len(masks)} raternames, but {len(sdfs)} raterdtnames")
        raters = tuple(_read_mask(self.path(name)) for name in masks)
        for name, rater in zip(masks, raters, strict=True):
            if rater.shape != labels.shape:
                raise DataError(f"mask {name} is {rater.shape}, the others {labels.shape}")
        names: Sequence[str | None] = sdfs or [None] * len(masks)
        return np.stack([self.sdf(r.astype(np.uint8), n) for r, n in zip(raters, names, strict=True)]), raters


def _read_row(root: Path, row: dict[str, str], key: str, where: str, reading: Reading) -> Patch:
    reader = _RowReader(root, row, reading)
    try:
        image, labels = reader.image(), reader.labels()
        if labels.shape != image.shape[:2]:
            raise DataError(f"mask {row['maskname']} is {labels.shape}, image {row['filename']} {image.shape[:2]}")
        sdf, raters = reader.annotations(labels)
        instances = reader.instances(labels)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    top, left = row.get("top", ""), row.get("left", "")
    place = (int(top), int(left)) if top.isdigit() and left.isdigit() else None
    return Patch(key, row.get("image_id") or key, row["filename"], image, sdf, labels, raters, place, instances)


def _read_table(root: Path, split: str) -> list[dict[str, str]]:
    path = root / f"{split}.csv"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `python -m data.prepare` with this config first") from None
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path}: {error}") from None
    missing = {"filename", "maskname"} - set(table.columns)
    if missing:
        raise DataError(f"{path}: no column {' or '.join(sorted(missing))}; found {', '.join(table.columns)}")
    rows: list[dict[str, str]] = table.to_dict("records")
    for number, row in enumerate(rows, 2):
        for column in ("filename", "maskname"):
            if not row[column].strip():
                raise DataError(f"{path} row {number}: {column} is empty")
    return rows


def _keys(rows: list[dict[str, str]]) -> list[str]:
    """The image_id, or the file's stem; with the position where several patches share it."""
    ids = [safe_id(row.get("image_id") or Path(row["filename"]).stem) for row in rows]
    counts = Counter(ids)
    keys = []
    for number, (key, row) in enumerate(zip(ids, rows, strict=True)):
        if counts[key] > 1:
            key += f"_{row['top']}_{row['left']}" if row.get("top") and row.get("left") else f"_row{number + 2}"
        keys.append(key)
    return keys


def read_split(root: Path, split: str, reading: Reading) -> Iterator[Patch]:
    """The patches of one CSV file, checked row by row.

    Raises DataError naming file and row (the header is row 1).
    """
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root}; run `python -m data.prepare` with this config first")
    rows = _read_table(root, split)
    for number, (row, key) in enumerate(zip(rows, _keys(rows), strict=True), 2):
        yield _read_row(root, row, key, f"{root / split}.csv row {number}", reading)


def _is_scaled_down(patches: Sequence[Patch]) -> bool:
    """Whether the distances are the published code's, divided by 5: none exceeds 0.2, and that is where they end."""
    largest = max((float(np.abs(patch.sdf).max(initial=0.0)) for patch in patches), default=0.0)
    return abs(largest - PUBLISHED_SCALE) < 1e-4


def load_split(root: Path, split: str, reading: Reading, *, may_be_empty: bool = False) -> list[Patch]:
    """All patches of one split; SDFs in [-0.2, 0.2], as the published code writes them, are brought to [-1, 1].

    Raises DataError, also where there is none unless `may_be_empty`.
    """
    patches = list(read_split(root, split, reading))
    if not patches and not may_be_empty:
        raise DataError(f"{root / split}.csv lists no images")
    if _is_scaled_down(patches):
        log.info("%s.csv: SDFs end at 0.2, the published scale; multiplied by 5", root / split)
        patches = [replace(patch, sdf=np.clip(patch.sdf / np.float32(PUBLISHED_SCALE), -1, 1)) for patch in patches]
    return patches


def same_size(patches: list[Patch], what: str) -> tuple[int, int]:
    """The common (H, W). Raises DataError naming the first patch that differs in size or number of raters."""
    first = patches[0]
    for patch in patches:
        if patch.labels.shape != first.labels.shape:
            raise DataError(
                f"{what}: {patch.filename} is {patch.labels.shape}, the first patch {first.labels.shape}; "
                "patches to train on need one size: set data.size or data.patch"
            )
        if len(patch.sdf) != len(first.sdf):
            raise DataError(f"{what}: {patch.filename} has {len(patch.sdf)} raters, the first patch {len(first.sdf)}")
    height, width = first.labels.shape
    return height, width


def image_array(patches: list[Patch]) -> np.ndarray:
    """(N, C, H, W) uint8 of patches of one size."""
    stacked = np.stack([patch.image for patch in patches])
    return np.ascontiguousarray(stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2))


def sdf_array(patches: list[Patch]) -> np.ndarray:
    """(N, R, K, H, W) float32 of patches of one size: R raters, K classes."""
    return np.stack([patch.sdf for patch in patches])


def hold_out(patches: list[Patch], fraction: float, seed: int) -> tuple[list[Patch], list[Patch]]:
    """Training and validation patches, cut by image, for folders without a val.csv."""
    ids = sorted({patch.image_id for patch in patches})
    count = min(len(ids) - 1, max(1, round(fraction * len(ids)))) if fraction else 0
    chosen = {ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]}
    return [p for p in patches if p.image_id not in chosen], [p for p in patches if p.image_id in chosen]


def reading_of(data: DataConfig, *, instances: bool = False) -> Reading:
    return Reading(rgb=data.color == "rgb", truncation=data.truncation, classes=data.classes, instances=instances)
