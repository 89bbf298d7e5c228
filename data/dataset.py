"""Prepared data: CSV files of patches to checked arrays in memory (README, "Prepared data")."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data.errors import DataError
from data.sdf import signed_distance

_SAFE_ID = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Patch:
    """One row of a CSV file.

    key: unique in the split, fit for a file name; the image_id where that is unique.
    image: (H, W) or (H, W, 3) uint8. sdf: (H, W) float32 in [-1, 1]. mask: (H, W) bool.
    """

    key: str
    image_id: str
    filename: str
    image: np.ndarray
    sdf: np.ndarray
    mask: np.ndarray


def _inside(root: Path, name: str, where: str) -> Path:
    """The file `name` below root. The published layout starts its paths with '/', which is root here."""
    path = (root / name.lstrip("/")).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{where}: {name} leads out of {root}")
    if not path.is_file():
        raise DataError(f"{where}: no file {name} under {root}")
    return path


_EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}


def _read_png(path: Path, mode: str, where: str) -> np.ndarray:
    try:
        with Image.open(path) as file:
            if file.mode not in _EIGHT_BIT:
                raise DataError(f"{where}: {path} is of mode {file.mode}; 8-bit images are expected")
            return np.asarray(file.convert(mode))
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: cannot read the image {path} ({error})") from None


def _read_mask(path: Path, where: str) -> np.ndarray:
    values = _read_png(path, "L", where)
    levels = np.unique(values)
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise DataError(
            f"{where}: {path} holds {len(levels)} values, {levels[0]} to {levels[-1]}; a mask has 0 and 255"
        )
    return values > 0


def _read_sdf(path: Path, where: str) -> np.ndarray:
    try:
        sdf = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{where}: cannot read the array {path} ({error})") from None
    if sdf.ndim == 3 and sdf.shape[0] == 1:
        sdf = sdf[0]
    if sdf.ndim != 2 or sdf.dtype.kind != "f":
        raise DataError(f"{where}: {path} holds {sdf.dtype} of shape {sdf.shape}, expected float32 (H, W)")
    if not np.isfinite(sdf).all():
        raise DataError(f"{where}: {path} has non-finite values")
    if np.abs(sdf).max(initial=0.0) > 1.0 + 1e-6:
        raise DataError(f"{where}: {path} leaves [-1, 1]; divide the distances by the truncation")
    return sdf.astype(np.float32)


def _read_row(root: Path, row: dict[str, str], key: str, where: str, rgb: bool, truncation: float) -> Patch:
    image = _read_png(_inside(root, row["filename"], where), "RGB" if rgb else "L", where)
    mask = _read_mask(_inside(root, row["maskname"], where), where)
    if min(mask.shape) < 1 or mask.shape != image.shape[:2]:
        raise DataError(f"{where}: mask {row['maskname']} is {mask.shape}, image {row['filename']} {image.shape[:2]}")
    if row.get("maskdtname"):
        sdf = _read_sdf(_inside(root, row["maskdtname"], where), where)
        if sdf.shape != mask.shape:
            raise DataError(f"{where}: {row['maskdtname']} is {sdf.shape}, the mask {mask.shape}")
    else:
        sdf = signed_distance(mask, truncation)
    return Patch(key, row.get("image_id") or key, row["filename"], image, sdf, mask)


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
    ids = [_SAFE_ID.sub("_", row.get("image_id") or Path(row["filename"]).stem).lstrip(".") or "_" for row in rows]
    counts = Counter(ids)
    keys = []
    for number, (key, row) in enumerate(zip(ids, rows, strict=True)):
        if counts[key] > 1:
            key += f"_{row['top']}_{row['left']}" if row.get("top") and row.get("left") else f"_row{number + 2}"
        keys.append(key)
    return keys


def read_split(root: Path, split: str, *, rgb: bool, truncation: float) -> Iterator[Patch]:
    """The patches of one CSV file, checked row by row.

    truncation: pixels, for rows without `maskdtname`.
    Raises DataError naming file and row (the header is row 1).
    """
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root}; run `python -m data.prepare` with this config first")
    rows = _read_table(root, split)
    for number, (row, key) in enumerate(zip(rows, _keys(rows), strict=True), 2):
        yield _read_row(root, row, key, f"{root / split}.csv row {number}", rgb, truncation)


def load_split(root: Path, split: str, *, rgb: bool, truncation: float, may_be_empty: bool = False) -> list[Patch]:
    """All patches of one split. Raises DataError, also where there is none unless `may_be_empty`."""
    patches = list(read_split(root, split, rgb=rgb, truncation=truncation))
    if not patches and not may_be_empty:
        raise DataError(f"{root / split}.csv lists no images")
    return patches


def same_size(patches: list[Patch], what: str) -> tuple[int, int]:
    """The common (H, W). Raises DataError naming the first patch that differs."""
    height, width = patches[0].mask.shape
    for patch in patches:
        if patch.mask.shape != (height, width):
            raise DataError(
                f"{what}: {patch.filename} is {patch.mask.shape}, the first patch {(height, width)}; "
                "patches to train on need one size"
            )
    return height, width


def image_array(patches: list[Patch]) -> np.ndarray:
    """(N, C, H, W) uint8 of patches of one size."""
    stacked = np.stack([patch.image for patch in patches])
    return np.ascontiguousarray(stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2))


def sdf_array(patches: list[Patch]) -> np.ndarray:
    """(N, 1, H, W) float32 of patches of one size."""
    return np.stack([patch.sdf for patch in patches])[:, None]


def hold_out(patches: list[Patch], fraction: float, seed: int) -> tuple[list[Patch], list[Patch]]:
    """Training and validation patches, cut by image, for folders without a val.csv."""
    ids = sorted({patch.image_id for patch in patches})
    count = min(len(ids) - 1, max(1, round(fraction * len(ids)))) if fraction else 0
    chosen = {ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]}
    return [p for p in patches if p.image_id not in chosen], [p for p in patches if p.image_id in chosen]
