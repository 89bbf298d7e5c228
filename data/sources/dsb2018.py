"""Data Science Bowl 2018 (Caicedo et al. 2019), nuclei in fluorescence and stained tissue.

Packed: `images/<id>.png`, `labels/<id>.png` (16-bit instance labels), `index.csv`. Official: `stage1_train/<id>/` with
`images/<id>.png` and a file in `masks/` for every nucleus.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from data.images import read_image, read_labels, read_table
from data.sources.record import Archive, Record, Sample, files_of, fitting, number_labels, paint, raw_folder
from utils.data_schema import DataConfig
from utils.errors import DataError

COLORED = 8.0  # mean difference of the channels above which a picture counts as stained


def read_packed(image: Path, labels: Path, max_pixels: int) -> Sample:
    instances = number_labels(read_labels(labels, max_pixels), labels)
    return Sample(read_image(image, max_pixels), instances > 0, instances)


def read_official(image: Path, masks: tuple[Path, ...], max_pixels: int) -> Sample:
    """One mask file per nucleus; the few pixels that two claim stay with the smaller one."""
    pixels = read_image(image, max_pixels)
    nuclei = [np.nonzero(fitting(read_labels(path, max_pixels), pixels, path)) for path in masks]
    instances, claims = paint(nuclei, pixels.shape[:2])  # type: ignore[arg-type]
    contested = np.count_nonzero(claims > 1)
    notes = (f"nuclei overlap in {contested} pixels; the smaller keeps them",) if contested else ()
    return Sample(pixels, instances > 0, instances, notes=notes)


def is_stained(image: Path, max_pixels: int) -> bool:
    """Whether a picture has colours, as tissue has and fluorescence has not."""
    pixels = read_image(image, max_pixels)[::8, ::8].astype(int)
    return pixels.ndim == 3 and float(np.ptp(pixels, axis=2).mean()) > COLORED


def _packed(raw: Path, max_pixels: int) -> Archive:
    modality: dict[str, str] = {}
    if (raw / "index.csv").is_file():
        table = read_table(raw / "index.csv")
        if {"id", "modality"} <= set(table.columns):
            modality = dict(zip(table["id"], table["modality"], strict=True))
    problems: list[str] = []
    pairs = files_of(raw / "images", [raw / "labels"], problems)
    lost = sorted(modality.keys() - {path.stem for path in (raw / "images").iterdir()})
    problems += [f"{raw / 'index.csv'}: lists {stem}, whose image is missing" for stem in lost]
    found = []
    for stem, (image, labels) in pairs.items():
        kind, read = modality.get(stem, ""), partial(read_packed, image, labels, max_pixels)
        found.append(Record(stem, "train", stem, read, (image, labels), {"modality": kind}, kind))
    return Archive(found, problems)


def _official(folders: list[Path], max_pixels: int) -> Archive:
    """All folders are looked at before a picture is: the kind of a picture is told by its colours."""
    files = {f: (sorted((f / "images").glob("*.png")), tuple(sorted((f / "masks").glob("*.png")))) for f in folders}
    problems = [
        f"{folder}: {len(images)} images and {len(masks)} masks; one image and its masks expected"
        for folder, (images, masks) in files.items()
        if len(images) != 1 or not masks
    ]
    found = []
    for folder, ((image, *_), masks) in files.items() if not problems else ():
        try:
            kind = "stained_colour" if is_stained(image, max_pixels) else "fluorescence"
        except DataError as error:
            problems.append(str(error))
            continue
        read = partial(read_official, image, masks, max_pixels)
        found.append(Record(folder.name, "train", folder.name, read, (image, *masks), {"modality": kind}, kind))
    return Archive(found, problems)


def records(data: DataConfig) -> Archive:
    """All images, each a group of its own, strata by modality. Raises DataError where neither form is found."""
    raw = raw_folder(data, "DSB 2018, packed or stage1_train")
    if (raw / "images").is_dir() and (raw / "labels").is_dir():
        archive = _packed(raw, data.max_pixels)
    else:
        below = raw / "stage1_train" if (raw / "stage1_train").is_dir() else raw
        archive = _official([p for p in sorted(below.iterdir()) if (p / "images").is_dir()], data.max_pixels)
    if not archive.records and not archive.problems:
        raise DataError(f"{raw}: neither images/ and labels/ nor folders <id>/images and <id>/masks")
    return archive
