"""Anybody's folder: `images/` and `masks/` (or `labels/`, or a folder per rater) with equal stems.

The two may also lie below `train/`, `val/` and `test/`. An optional `split.csv` (image, split, group), or `groups.csv`
(image, group), says who belongs where and together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast, get_args

import numpy as np

from data.images import SUFFIXES, read_image, read_labels, read_table, two_valued
from data.sources.record import Archive, Record, Sample, Split, consensus, files_of, fitting, number_labels, raw_folder
from utils.data_schema import DataConfig
from utils.errors import DataError

ADVICE = "; set data.instances: true, data.foreground: [values] or data.classes: [values]"
TABLES = ("split.csv", "groups.csv")
SINGLE = ("masks", "labels", "mask", "label")
_RATER = re.compile(r"(masks?|labels?|raters?|annotators?)[-_ ]?[A-Za-z0-9]+")
_SPLIT = re.compile("train|val|test|dev|eval", re.IGNORECASE)  # what a folder of a split may be called elsewhere
_NAME_COLUMNS = ("image", "image_id", "filename", "name", "stem")


def _numbered(path: Path, data: DataConfig) -> bool:
    return path.parent.name.startswith("label") if data.instances is None else data.instances


def _check_values(path: Path, key: str, fits: bool = False) -> None:
    """Raises DataError for a JPEG whose values are asked for, of which it keeps none but 0 and 255."""
    if path.suffix.lower() in (".jpg", ".jpeg") and not fits:
        raise DataError(f"{path}: a JPEG cannot keep the values that data.{key} asks for; save masks as PNG")


def _mask(values: np.ndarray, path: Path, data: DataConfig) -> np.ndarray:
    if data.foreground is not None:
        _check_values(path, "foreground", 255 in data.foreground)
        return np.isin(values, data.foreground)
    return values > 0 if _numbered(path, data) else two_valued(values, path, ADVICE)


def read_sample(image: Path, masks: Sequence[Path], data: DataConfig) -> Sample:
    """One picture with its mask, or with the masks of several raters."""
    pixels = read_image(image, data.max_pixels, deep=True, window=data.window)
    values = [fitting(read_labels(path, data.max_pixels), pixels, path) for path in masks]
    if data.classes is not None:
        _check_values(masks[0], "classes")
        return Sample(pixels, values[0] > 0, classes=values[0])
    raters = tuple(_mask(own, path, data) for own, path in zip(values, masks, strict=True))
    if len(raters) > 1:
        return Sample(pixels, consensus(raters), raters=raters)
    numbered = data.foreground is None and _numbered(masks[0], data)
    return Sample(pixels, raters[0], number_labels(values[0], masks[0]) if numbered else None)


def read_split_table(path: Path, group_column: str, problems: list[str]) -> dict[str, tuple[Split | None, str]]:
    """Stem to (split, group) of a table; either column may be absent."""
    table = read_table(path)
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
            problems.append(f"{path} row {number}: {stem} is listed twice")
        rows[stem] = (cast("Split | None", split), str(row.get(group, "")).strip())
    return rows


def _natural(path: Path) -> list[tuple[int, str]]:
    """mask-2 before mask-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split("([0-9]+)", path.name)]


def mask_folders(folder: Path) -> list[Path]:
    """The one folder of masks, or those of the raters. Raises DataError where there is none, or both kinds."""
    below = sorted((path for path in folder.iterdir() if path.is_dir()), key=_natural)
    single = [path for path in below if path.name in SINGLE]
    raters = [path for path in below if path not in single and _RATER.fullmatch(path.name)]
    if len(single) > 1 or (single and raters):
        names = ", ".join(path.name for path in single + raters)
        raise DataError(f"{folder}: which are the masks? {names}; keep one folder, or one for each rater")
    if not single and not raters:
        raise DataError(f"{folder}: no folder masks/ or labels/ beside images/, nor one for each rater (masks_a/, ...)")
    return single or raters


def _list_pairs(folder: Path, split: Split | None, table: dict[str, tuple[Split | None, str]],
                splits: dict[str, Split], data: DataConfig, problems: list[str]) -> list[Record]:  # fmt: skip
    """splits: of groups, for images that have none of their own."""
    annotations = mask_folders(folder)
    if len(annotations) > 1 and data.classes is not None:
        raise DataError(f"{folder}: several raters and data.classes do not go together; use data.foreground")
    records = []
    for stem, files in files_of(folder / "images", annotations, problems).items():
        own, group = table.get(stem, (None, ""))
        name = f"{split}_{stem}" if split else stem  # train/ and test/ may both begin with 1.png
        read = partial(read_sample, files[0], files[1:], data)
        attributes = {"group": group} if group else {}
        records.append(Record(name, split or own or splits.get(group, "train"), group or name, read, files, attributes))
    return records


def _splits_of(table: dict[str, tuple[Split | None, str]], path: Path, problems: list[str]) -> dict[str, Split]:
    """The split of each group that has one; groups with several are problems."""
    splits: dict[str, Split] = {}
    for split, group in table.values():
        if group and split and splits.setdefault(group, split) != split:
            problems.append(f"{path}: group {group} is in {splits[group]} and in {split}; a group stays together")
    return splits


def records(data: DataConfig) -> Archive:
    """All pairs of image and mask. Raises DataError where the folders cannot be told."""
    raw = raw_folder(data, "a folder with images/ and masks/")
    problems: list[str] = []
    parts: list[tuple[Path, Split | None]] = [(raw, None)]
    if not (raw / "images").is_dir():
        parts = [(raw / split, split) for split in get_args(Split) if (raw / split / "images").is_dir()]
        others = {path.parent for path in raw.glob("*/images")} - {folder for folder, _ in parts}
        names = ", ".join(get_args(Split))
        problems += [f"{p}: is none of {names}, and would be left out" for p in sorted(others) if _SPLIT.match(p.name)]
    if not parts:
        raise DataError(f"{raw}: no folder images/ in it, nor train/images/")
    tables = [raw / name for name in TABLES if (raw / name).is_file()]
    if len(tables) > 1:
        raise DataError(f"{raw}: {' and '.join(TABLES)} both; keep one, with columns image, split and group")
    path = tables[0] if tables else raw
    table = read_split_table(path, data.group_column, problems) if tables else {}
    splits = _splits_of(table, path, problems)
    found = [r for folder, split in parts for r in _list_pairs(folder, split, table, splits, data, problems)]
    several = dict.fromkeys(tuple(path.name for path in mask_folders(folder)) for folder, _ in parts)
    if len(several) > 1 and max(map(len, several)) > 1:
        names = " and ".join("/".join(each) for each in several)
        problems.append(f"{raw}: the folders of masks differ between splits, {names}; a rater is one person throughout")
    if not found and not problems:
        raise DataError(f"{raw}: no pictures in images/ ({', '.join(SUFFIXES)})")
    stems = {file.stem for record in found for file in record.files}
    problems += [f"{path}: lists {stem}, which is not in images/" for stem in sorted(table.keys() - stems)]
    if table:  # whoever is not listed would be a group by itself
        problems += [f"{r.files[0]}: not listed in {path.name}" for r in found if r.files[0].stem not in table]
    return Archive(found, problems)
