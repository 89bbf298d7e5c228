"""One row of a prepared CSV file, and the arrays of its files, checked (README, "Prepared data")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import load_npy, read_image, read_labels, two_valued
from data.sdf import signed_distance
from utils.data_schema import DataConfig
from utils.errors import DataError, cut

GROUPS = ("patient", "group")  # columns of what stays on one side of a split


@dataclass(frozen=True)
class Patch:
    """One row of a CSV file.

    key: unique in the split, fit for a file name; the image_id where that is unique.
    image: (H, W) or (H, W, 3) uint8.
    sdf: (R, K, H, W) float32 in [-1, 1], of R raters (1 where there is a single annotation) and K classes.
    labels: (H, W) uint8, 0 = background, k = the k-th class; 1 where there is one class.
    raters: (H, W) bool for each rater, empty where there is a single annotation.
    corner: (top, left) in the image, where the table says it.
    instances: (H, W) integers, the object of each pixel, 0 = background; None where not known or not read.
    owner: the patient, or whatever images stay together, of the table's column patient or group; "" where neither is.
    """

    key: str
    image_id: str
    filename: str
    image: np.ndarray
    sdf: np.ndarray
    labels: np.ndarray
    raters: tuple[np.ndarray, ...] = ()
    corner: tuple[int, int] | None = None
    instances: np.ndarray | None = None
    owner: str = ""

    @property
    def group(self) -> str:
        """What stays together in a split."""
        return self.owner or self.image_id

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, the foreground of any class."""
        return np.asarray(self.labels > 0)

    def target(self, representation: str) -> np.ndarray:
        """(R, K, H, W), what a right draw would be, by data.representation: SDFs, or -1 inside and 1 outside."""
        return self.sdf if representation == "sdf" else np.where(self.sdf <= 0, np.float32(-1), np.float32(1))


def _read_sdf(path: Path, classes: int) -> np.ndarray:
    """(K, H, W) float32."""
    sdf = load_npy(path)
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


class _RowReader:
    """The files of one row."""

    def __init__(self, row: dict[str, str], data: DataConfig) -> None:
        self.root, self.row, self.data = Path(data.root), row, data
        self.classes = data.classes or (1,)

    def path(self, name: str) -> Path:
        """The file `name` below root. The published layout starts its paths with '/', which is root here."""
        path = (self.root / name.lstrip("/")).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise DataError(f"{name} leads out of {self.root}")
        if not path.is_file():
            raise DataError(f"no file {name} under {self.root}")
        return path

    def mask(self, name: str) -> np.ndarray:
        values = read_image(self.path(name), self.data.max_pixels)
        return two_valued(values if values.ndim == 2 else values.max(axis=2), self.path(name))

    def image(self) -> np.ndarray:
        pixels = read_image(self.path(self.row["filename"]), self.data.max_pixels)
        if self.data.color == "rgb":
            return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))

    def labels(self) -> np.ndarray:
        if self.data.classes is None:
            return self.mask(self.row["maskname"]).astype(np.uint8)
        name = self.row.get("classname")
        if not name:
            raise DataError("data.classes needs a column classname, a PNG of class values")
        values = read_labels(self.path(name), self.data.max_pixels)
        unknown = sorted(set(np.unique(values).tolist()) - {0, *self.classes})
        if unknown:
            raise DataError(f"{name} holds the value {unknown[0]}; data.classes are {list(self.classes)}")
        labels = np.zeros(values.shape, np.uint8)
        for k, value in enumerate(self.classes, 1):
            labels[values == value] = k
        return labels

    def instances(self, labels: np.ndarray) -> np.ndarray | None:
        name = self.row.get("instancename")
        if not name:
            return None
        values = read_labels(self.path(name), self.data.max_pixels)
        if values.shape != labels.shape:
            raise DataError(f"{name} is {values.shape}, the mask {labels.shape}")
        return values

    def sdf(self, labels: np.ndarray, name: str | None) -> np.ndarray:
        """(K, H, W), from the file or else from the labels."""
        if not name:
            masks = [labels == k for k in range(1, len(self.classes) + 1)]
            return np.stack([signed_distance(mask, self.data.truncation) for mask in masks])
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
        if not masks or self.data.classes is not None:
            return self.sdf(labels, self.row.get("maskdtname"))[None], ()
        if sdfs and len(sdfs) != len(masks):
            raise DataError(f"{len(masks)} raternames, but {len(sdfs)} raterdtnames")
        raters = tuple(self.mask(name) for name in masks)
        for name, rater in zip(masks, raters, strict=True):
            if rater.shape != labels.shape:
                raise DataError(f"mask {name} is {rater.shape}, the others {labels.shape}")
        names: Sequence[str | None] = sdfs or [None] * len(masks)
        return np.stack([self.sdf(r.astype(np.uint8), n) for r, n in zip(raters, names, strict=True)]), raters


def _corner(row: dict[str, str]) -> tuple[int, int] | None:
    top, left = row.get("top", ""), row.get("left", "")
    if not top or not left:
        return None
    if not re.fullmatch("[0-9]{1,7},[0-9]{1,7}", f"{top},{left}"):
        raise DataError(f"top, left: {cut(f'{top}, {left}')} are not numbers of pixels")
    return int(top), int(left)


@dataclass(frozen=True)
class Row:
    """One row of a CSV file, before its files are read. where: what errors name."""

    cells: dict[str, str]
    key: str
    where: str

    def read(self, data: DataConfig, instances: bool = False) -> Patch:
        """Raises DataError naming file and row."""
        row, key, reader = self.cells, self.key, _RowReader(self.cells, data)
        try:
            image, labels = reader.image(), reader.labels()
            if labels.shape != image.shape[:2]:
                raise DataError(f"mask {row['maskname']} is {labels.shape}, image {row['filename']} {image.shape[:2]}")
            sdf, raters = reader.annotations(labels)
            objects = reader.instances(labels) if instances else None
            corner = _corner(row)
        except (OSError, ValueError, RuntimeError) as error:  # of names, too: too long, a NUL, a circle of links
            raise DataError(f"{self.where}: {cut(error, 400)}") from None
        owner = next((row[column] for column in GROUPS if row.get(column)), "")
        name, file = row.get("image_id") or key, row["filename"]
        return Patch(key, name, file, image, sdf, labels, raters, corner, objects, owner)
