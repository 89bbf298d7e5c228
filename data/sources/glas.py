"""GlaS 2015 (Sirinukunwattana et al. 2017): one folder of `train_1.bmp`, `train_1_anno.bmp`, ..., `Grade.csv`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from data.images import read_image, read_labels, read_table
from data.sources.record import Archive, Record, Sample, number_labels, raw_folder
from utils.data_schema import DataConfig
from utils.errors import DataError

EXPECTED = {"train": 85, "testA": 60, "testB": 20}
_NAME = re.compile(r"(train|testA|testB)_(\d+)(_anno)?\.(bmp|png|tif|tiff)$")


def read_sample(image: Path, annotation: Path, max_pixels: int) -> Sample:
    """RGB image and instance labels (0 = background)."""
    labels = number_labels(read_labels(annotation, max_pixels), annotation)
    return Sample(image=read_image(image, max_pixels), mask=labels > 0, instances=labels)


def read_grades(folder: Path, allow_partial: bool) -> dict[str, tuple[str, str]]:
    """Image name to (patient, grade) from Grade.csv, whose column titles vary in spelling."""
    path = folder / "Grade.csv"
    if not path.is_file():
        if allow_partial:
            return {}
        raise DataError(f"{path} is missing, and the validation split is cut by patient (or data.allow_partial: true)")
    table = read_table(path, skipinitialspace=True)
    table.columns = [column.strip().lower() for column in table.columns]
    patient = next((c for c in table.columns if c.startswith("patient")), None)
    grade = next((c for c in table.columns if "glas" in c), None)
    if "name" not in table.columns or patient is None or grade is None:
        raise DataError(f"{path}: needs the columns name, patient and grade (GlaS); found {', '.join(table.columns)}")
    return {row["name"].strip(): (row[patient].strip(), row[grade].strip()) for _, row in table.iterrows()}


def find_files(folder: Path) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Stem ('train_1') to its {'image': path, 'anno': path}, and what is there twice."""
    found: dict[str, dict[str, Path]] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match:
            role = "anno" if match[3] else "image"
            parts = found.setdefault(f"{match[1]}_{match[2]}", {})
            if role in parts:
                problems.append(f"{folder}: {parts[role].name} and {path.name} are the same image twice")
            parts[role] = path
    return found, problems


def check_counts(raw: Path, found: dict[str, dict[str, Path]], allow_partial: bool) -> list[str]:
    """The official split is complete, or the user said that it need not be."""
    counts = {part: sum(stem.startswith(part + "_") for stem in found) for part in EXPECTED}
    if counts == EXPECTED or (found and allow_partial):
        return []
    expected = ", ".join(f"{n} {part}" for part, n in EXPECTED.items())
    got = ", ".join(f"{n} {part}" for part, n in counts.items())
    hint = "; data.allow_partial: true goes on with what there is" if found else ""
    return [f"{raw}: expected {expected}; found {got}{hint}"]


def records(data: DataConfig) -> Archive:
    """All images of the archive, split by name; test A and test B together are the test set.

    Images without annotation, an unusable Grade.csv and, without data.allow_partial, an official split that is not
    complete are problems. Raises DataError where there is no archive at all.
    """
    raw = raw_folder(data, "the unpacked GlaS archive")
    found, problems = find_files(raw)
    problems += check_counts(raw, found, data.allow_partial)
    if not found:
        raise DataError(problems[0])
    incomplete = [
        f"{stem} ({'no annotation' if 'image' in parts else 'no image'})"
        for stem, parts in found.items()
        if len(parts) < 2
    ]
    if incomplete:
        problems.append(f"{raw}: images and annotations do not pair up: {', '.join(incomplete)}")
    try:
        grades = read_grades(raw, data.allow_partial)
    except DataError as error:
        problems.append(str(error))
        grades = {}
    result = []
    for stem in sorted(found, key=lambda s: (s.split("_")[0], int(s.split("_")[1]))):
        if len(found[stem]) < 2:
            continue
        image, annotation = found[stem]["image"], found[stem]["anno"]
        patient, grade = grades.get(stem, (stem, ""))
        result.append(
            Record(
                image_id=stem,
                split="train" if stem.startswith("train") else "test",
                group=patient,
                read=partial(read_sample, image, annotation, data.max_pixels),
                files=(image, annotation),
                attributes={"part": stem.split("_")[0], "patient": patient, "grade": grade},
            )
        )
    return Archive(result, problems)
