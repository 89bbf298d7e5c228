"""LIDC-IDRI nodule crops (Armato et al. 2011) with the masks of four raters.

Packed: `images/<patient>.png` and `masks/<patient>.png`, slices stacked downwards, bit k of a mask set where rater k
marked foreground, and `index.csv`. Plain: folders `images/` with `mask-0/` .. `mask-3/` beside them, at any depth, the
patient's number (LIDC-IDRI-0001) somewhere in the path.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from data.images import read_image, read_labels, read_table
from data.sources.record import Archive, Record, Sample, consensus, files_of, fitting, raw_folder
from utils.data_schema import DataConfig
from utils.errors import DataError

RATERS = 4
SIDE = 128  # height of a slice in a packed file
_PATIENT = re.compile(r"LIDC-IDRI-\d+")


def _sample(image: np.ndarray, raters: tuple[np.ndarray, ...]) -> Sample | None:
    """None where no rater marked anything."""
    if not any(rater.any() for rater in raters):
        return None
    return Sample(image, consensus(raters), raters=raters)


def read_packed(image: Path, masks: Path, row: int, max_pixels: int) -> Sample | None:
    """Slice `row` of a patient's file."""
    pixels, bits = read_image(image, max_pixels), read_labels(masks, max_pixels)
    window = slice(row * SIDE, (row + 1) * SIDE)
    if pixels.shape[0] < window.stop:
        raise DataError(f"{image}: {pixels.shape[0]} rows of pixels, but slice {row} ends at {window.stop}")
    fitting(bits, pixels, masks)
    return _sample(pixels[window], tuple((bits[window] >> k & 1).astype(bool) for k in range(RATERS)))


def read_plain(image: Path, masks: tuple[Path, ...], max_pixels: int) -> Sample | None:
    """One slice and the mask file of every rater."""
    return _sample(read_image(image, max_pixels), tuple(read_labels(path, max_pixels) > 0 for path in masks))


def _packed(raw: Path, max_pixels: int) -> Archive:
    path = raw / "index.csv"
    table = read_table(path)
    missing = {"patient", "nodule", "slice", "row"} - set(table.columns)
    if missing:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))}; found {', '.join(table.columns)}")
    problems: list[str] = []
    found: dict[str, Record] = {}
    absent: set[Path] = set()
    for number, line in enumerate(table.to_dict("records"), 2):
        patient, row = str(line["patient"]), str(line["row"])
        files = raw / "images" / f"{patient}.png", raw / "masks" / f"{patient}.png"
        absent |= {file for file in files if not file.is_file()}
        image_id = f"{patient}_{line['nodule']}_{line['slice']}"
        if re.fullmatch("[0-9]{1,6}", row) is None:
            problems.append(f"{path} row {number}: row {row!r} is not a number")
        elif image_id in found:
            problems.append(f"{path} row {number}: {image_id} is listed twice")
        elif not absent.intersection(files):
            read = partial(read_packed, *files, int(row), max_pixels)
            found[image_id] = Record(image_id, "train", patient, read, files, {"patient": patient})
    problems += [f"{file}: no such file, but {path.name} lists slices of it" for file in sorted(absent)]
    return Archive(list(found.values()), problems)


def _plain(raw: Path, max_pixels: int) -> Archive:
    problems: list[str] = []
    found: dict[str, Record] = {}
    for folder in sorted(path for path in raw.rglob("images") if path.is_dir()):
        raters = [folder.parent / f"mask-{k}" for k in range(RATERS)]
        lacking = [rater.name for rater in raters if not rater.is_dir()]
        if lacking:
            problems.append(f"{folder.parent}: no folder {', '.join(lacking)} beside images")
            continue
        for image, *masks in files_of(folder, raters, problems).values():
            name = str(image.relative_to(raw).with_suffix("")).replace("images/", "")
            match = _PATIENT.search(name)
            if match is None:
                problems.append(f"{image}: no patient (LIDC-IDRI-0001) in its path, so no patient-disjoint split")
            elif name in found:
                problems.append(f"{image}: the same name as {found[name].files[0]}")
            else:
                read = partial(read_plain, image, tuple(masks), max_pixels)
                found[name] = Record(name, "train", match[0], read, (image, *masks), {"patient": match[0]})
    return Archive(list(found.values()), problems)


def records(data: DataConfig) -> Archive:
    """Every slice with its four raters, one group per patient. Raises DataError where neither form is found."""
    raw = raw_folder(data, "LIDC slices, packed or as plain folders")
    archive = (_packed if (raw / "index.csv").is_file() else _plain)(raw, data.max_pixels)
    if not archive.records and not archive.problems:
        raise DataError(f"{raw}: neither index.csv nor folders images/ with mask-0/ .. mask-3/ beside them")
    return archive
