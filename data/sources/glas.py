"""GlaS 2015 (Sirinukunwattana et al. 2017): one folder of `train_1.bmp`, `train_1_anno.bmp`, ..., `Grade.csv`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data.errors import DataError
from data.sources.record import Record, Sample

EXPECTED = {"train": 85, "testA": 60, "testB": 20}
_NAME = re.compile(r"(train|testA|testB)_(\d+)(_anno)?\.(bmp|png|tif|tiff)$")


def read_sample(image: Path, annotation: Path) -> Sample:
    """RGB image and instance labels (0 = background)."""
    with Image.open(image) as file:
        rgb = np.asarray(file.convert("RGB"))
    with Image.open(annotation) as file:
        labels = np.asarray(file)
    if labels.ndim != 2 or labels.shape != rgb.shape[:2]:
        raise DataError(f"{annotation}: labels of shape {labels.shape} for an image of {rgb.shape[:2]}")
    return Sample(image=rgb, mask=labels > 0, instances=labels.astype(np.uint16))


def read_grades(folder: Path, allow_partial: bool) -> dict[str, tuple[str, str]]:
    """Image name to (patient, grade) from Grade.csv, whose column titles vary in spelling."""
    path = folder / "Grade.csv"
    if not path.is_file():
        if allow_partial:
            return {}
        raise DataError(f"{path} is missing, and the validation split is cut by patient (or data.allow_partial: true)")
    table = pd.read_csv(path, dtype=str, skipinitialspace=True).fillna("")
    table.columns = [column.strip().lower() for column in table.columns]
    patient = next((c for c in table.columns if c.startswith("patient")), None)
    grade = next((c for c in table.columns if "glas" in c), None)
    if "name" not in table.columns or patient is None or grade is None:
        raise DataError(f"{path}: needs the columns name, patient and grade (GlaS); found {', '.join(table.columns)}")
    return {row["name"].strip(): (row[patient].strip(), row[grade].strip()) for _, row in table.iterrows()}


def find_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Stem ('train_1') to its {'image': path, 'anno': path}."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match:
            role = "anno" if match[3] else "image"
            parts = found.setdefault(f"{match[1]}_{match[2]}", {})
            if role in parts:
                raise DataError(f"{folder}: {parts[role].name} and {path.name} are the same image twice")
            parts[role] = path
    return found


def records(raw: Path, allow_partial: bool = False) -> list[Record]:
    """All images of the archive, split by name; test A and test B together are the test set.

    Raises DataError if images lack their annotation or, without allow_partial, if a part of the official
    split is not complete.
    """
    if not raw.is_dir():
        raise DataError(f"data.raw: {raw} is not a folder (expected the unpacked GlaS archive)")
    found = find_files(raw)
    incomplete = [
        f"{stem} ({'no annotation' if 'image' in parts else 'no image'})"
        for stem, parts in found.items()
        if len(parts) < 2
    ]
    if incomplete:
        raise DataError(f"{raw}: images and annotations do not pair up: {', '.join(incomplete)}")
    counts = {part: sum(stem.startswith(part + "_") for stem in found) for part in EXPECTED}
    if not found or (counts != EXPECTED and not allow_partial):
        expected = ", ".join(f"{n} {part}" for part, n in EXPECTED.items())
        got = ", ".join(f"{n} {part}" for part, n in counts.items())
        hint = "; data.allow_partial: true goes on with what there is" if found else ""
        raise DataError(f"{raw}: expected {expected}; found {got}{hint}")
    grades = read_grades(raw, allow_partial)
    result = []
    for stem in sorted(found, key=lambda s: (s.split("_")[0], int(s.split("_")[1]))):
        image, annotation = found[stem]["image"], found[stem]["anno"]
        patient, grade = grades.get(stem, (stem, ""))
        result.append(
            Record(
                image_id=stem,
                split="train" if stem.startswith("train") else "test",
                group=patient,
                read=partial(read_sample, image, annotation),
                files=(image, annotation),
                attributes={"part": stem.split("_")[0], "patient": patient, "grade": grade},
            )
        )
    return result
