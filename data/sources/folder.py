"""Anybody's folder: `images/` and `masks/` (or `labels/`, or a folder per rater) with equal stems.

The two may also lie below `train/`, `val/` and `test/`. An optional `split.csv` (image, split, group) says who belongs
where and together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pandas as pd

from data.images import MAX_PIXELS, SUFFIXES, read_image, read_labels, safe_id
from data.sources.record import (
    Archive,
    Record,
    Sample,
    Split,
    consensus,
    existing_folder,
    files_by_stem,
    number_labels,
)
from utils.errors import DataError

SINGLE = ("masks", "labels", "mask", "label")
_RATER = re.compile(r"(masks?|labels?|raters?|annotators?)[-_ ]?[A-Za-z0-9]+")
_NAME_COLUMNS = ("image", "image_id", "filename", "name", "stem")


@dataclass(frozen=True)
class FolderOptions:
    """What the values in masks and pictures mean.

    instances: mask values number the objects; None: they do in `labels/` and do not in `masks/`.
    foreground: the mask values that count as foreground; others are background.
    classes: mask values that are classes of their own.
    window: raw intensities that become 0 and 255; None: 8-bit pictures as they are, others by their percentiles.
    group_column: column of split.csv with what must stay together.
    """

    instances: bool | None = None
    foreground: tuple[int, ...] | None = None
    classes: tuple[int, ...] | None = None
    window: tuple[float, float] | None = None
    group_column: str = "group"
    max_pixels: int = MAX_PIXELS


def _binary(values: np.ndarray, path: Path) -> np.ndarray:
    levels = np.unique(values)
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise DataError(
            f"{path}: {len(levels)} values, {levels[0]} to {levels[-1]}, where a mask has 0 and one other; set "
            "data.instances: true, data.foreground: [values] or data.classes: [values]"
        )
    return values > 0


def _mask(path: Path, options: FolderOptions) -> np.ndarray:
    values = read_labels(path, options.max_pixels)
    if options.foreground is not None:
        return np.isin(values, options.foreground)
    return values > 0 if _numbered(path, options) else _binary(values, path)


def _numbered(path: Path, options: FolderOptions) -> bool:
    return path.parent.name.startswith("label") if options.instances is None else options.instances


def read_sample(image: Path, masks: Sequence[Path], options: FolderOptions) -> Sample:
    """One picture with its mask, or with the masks of several raters."""
    pixels = read_image(image, options.max_pixels, deep=True, window=options.window)
    if len(masks) > 1:
        raters = tuple(_mask(path, options) for path in masks)
        for path, rater in zip(masks, raters, strict=True):
            if rater.shape != pixels.shape[:2]:
                raise DataError(f"{path}: {rater.shape} pixels, the image {pixels.shape[:2]}")
        return Sample(pixels, consensus(raters), raters=raters)
    if options.classes is not None:
        values = read_labels(masks[0], options.max_pixels)
        return Sample(pixels, values > 0, classes=values)
    mask = _mask(masks[0], options)
    if options.foreground is None and _numbered(masks[0], options):
        return Sample(pixels, mask, number_labels(read_labels(masks[0], options.max_pixels), masks[0]))
    return Sample(pixels, mask)


def read_split_table(path: Path, group_column: str, problems: list[str]) -> dict[str, tuple[Split | None, str]]:
    """Stem to (split, group) of split.csv; either column may be absent."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None
    table.columns = [column.strip().lower() for column in table.columns]
    name = next((c for c in _NAME_COLUMNS if c in table), None)
    group = group_column.lower()
    if name is None or not {"split", group} & set(table.columns):
        raise DataError(
            f"{path}: needs a column image and one of split and {group_column}; found {', '.join(table.columns)}"
        )
    rows: dict[str, tuple[Split | None, str]] = {}
    for number, row in enumerate(table.to_dict("records"), 2):
        cell = str(row[name]).strip()
        stem = Path(cell).stem if Path(cell).suffix.lower() in SUFFIXES else Path(cell).name
        split = str(row.get("split", "")).strip().lower() or None
        if split is not None and split not in get_args(Split):
            problems.append(f"{path} row {number}: split {split!r}; one of train, val, test")
            continue
        if stem in rows:
            problems.append(f"{path} row {number}: {stem} stands twice")
        rows[stem] = (cast("Split | None", split), str(row.get(group, "")).strip())
    return rows


def mask_folders(folder: Path) -> list[Path]:
    """The one folder of masks, or those of the raters. Raises DataError where there is none, or both kinds."""
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    single = [path for path in below if path.name in SINGLE]
    raters = [path for path in below if path not in single and _RATER.fullmatch(path.name)]
    if len(single) > 1 or (single and raters):
        names = ", ".join(path.name for path in single + raters)
        raise DataError(f"{folder}: which are the masks? {names}; keep one folder, or one for each rater")
    if not single and not raters:
        raise DataError(f"{folder}: no folder masks/ or labels/ beside images/, nor one for each rater (masks_a/, ...)")
    return single or raters


def _list_pairs(folder: Path, split: Split | None, table: dict[str, tuple[Split | None, str]],
                options: FolderOptions, problems: list[str]) -> list[Record]:  # fmt: skip
    annotations = mask_folders(folder)
    if len(annotations) > 1 and options.classes is not None:
        raise DataError(f"{folder}: several raters and data.classes do not go together; use data.foreground")
    images = files_by_stem(folder / "images", SUFFIXES, problems, "have the same stem")
    masks = [files_by_stem(path, SUFFIXES, problems, "have the same stem") for path in annotations]
    for path, found in zip(annotations, masks, strict=True):
        problems += [f"{found[stem]}: no image of that name in images/" for stem in sorted(found.keys() - images)]
        problems += [f"{images[stem]}: no partner in {path.name}/" for stem in sorted(images.keys() - found)]
    records = []
    for stem in sorted(images.keys() & set.intersection(*(set(found) for found in masks))):
        own, group = table.get(stem, (None, ""))
        name = f"{split}_{stem}" if split else stem  # train/ and test/ may both begin with 1.png
        files = (images[stem], *(found[stem] for found in masks))
        read = partial(read_sample, files[0], files[1:], options)
        records.append(Record(safe_id(name), split or own or "train", group or name, read, files))
    return records


def records(raw: Path, options: FolderOptions) -> Archive:
    """All pairs of image and mask. Raises DataError where the folders cannot be told."""
    existing_folder(raw, "a folder with images/ and masks/")
    problems: list[str] = []
    parts: list[tuple[Path, Split | None]] = [(raw, None)]
    if not (raw / "images").is_dir():
        parts = [(raw / split, split) for split in get_args(Split) if (raw / split / "images").is_dir()]
    if not parts:
        raise DataError(f"{raw}: no folder images/ in it, nor train/images/")
    path = raw / "split.csv"
    table = read_split_table(path, options.group_column, problems) if path.is_file() else {}
    found = [r for folder, split in parts for r in _list_pairs(folder, split, table, options, problems)]
    if not found and not problems:
        raise DataError(f"{raw}: no pictures in images/ ({', '.join(SUFFIXES)})")
    stems = {file.stem for record in found for file in record.files}
    problems += [f"{path}: lists {stem}, which is not in images/" for stem in sorted(table.keys() - stems)]
    if table and any(split for split, _ in table.values()):
        problems += [f"{r.files[0]}: not listed in {path.name}" for r in found if r.files[0].stem not in table]
    by_id: dict[str, Record] = {}
    for record in found:
        if record.image_id in by_id:
            problems.append(f"{record.files[0]}: the same name as {by_id[record.image_id].files[0]}")
        by_id.setdefault(record.image_id, record)
    return Archive(list(by_id.values()), problems)
