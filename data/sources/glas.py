"""GlaS 2015 (Sirinukunwattana et al. 2017): one folder of `train_1.bmp`, `train_1_anno.bmp`, ..., `Grade.csv`."""

from __future__ import annotations

import re
from collections.abc import Set
from functools import partial
from pathlib import Path

from data.images import read_image, read_labels, read_table
from data.sources.record import Archive, Record, Sample, files_by_stem, number_labels, paired, raw_folder
from utils.data_schema import DataConfig
from utils.errors import DataError

EXPECTED = {"train": 85, "testA": 60, "testB": 20}
_NAME = re.compile(r"(train|testA|testB)_(\d+)(_anno)?")
SUFFIXES = (".bmp", ".png", ".tif", ".tiff")


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
    rows = ((row["name"].strip(), row[patient].strip(), row[grade].strip()) for _, row in table.iterrows())
    return {Path(name).stem if name.lower().endswith(SUFFIXES) else name: (p, g) for name, p, g in rows}


def find_files(folder: Path, problems: list[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and annotations by the image's name ('train_1'); what is there twice goes into `problems`."""
    files: tuple[dict[str, Path], dict[str, Path]] = {}, {}
    for stem, path in files_by_stem(folder, SUFFIXES, problems, _NAME).items():
        files[stem.endswith("_anno")][stem.removesuffix("_anno")] = path
    return files


def check_counts(raw: Path, names: Set[str], allow_partial: bool) -> list[str]:
    """The official split is complete, or the user said that it need not be."""
    counts = {part: sum(name.startswith(part + "_") for name in names) for part in EXPECTED}
    if counts == EXPECTED or (names and allow_partial):
        return []
    expected, got = (", ".join(f"{n} {part}" for part, n in each.items()) for each in (EXPECTED, counts))
    hint = "; data.allow_partial: true goes on with what there is" if names else ""
    return [f"{raw}: expected {expected}; found {got}{hint}"]


def records(data: DataConfig) -> Archive:
    """All images of the archive, split by name; test A and test B together are the test set.

    Images without annotation, an unusable Grade.csv and, without data.allow_partial, an official split that is not
    complete are problems. Raises DataError where there is no archive at all.
    """
    raw = raw_folder(data, "the unpacked GlaS archive")
    problems: list[str] = []
    images, annotations = find_files(raw, problems)
    problems += check_counts(raw, images.keys() | annotations.keys(), data.allow_partial)
    if not images and not annotations:
        raise DataError(problems[0])
    names = paired(images, annotations, "annotation", problems)
    try:
        grades = read_grades(raw, data.allow_partial)
    except DataError as error:
        problems.append(str(error))
        grades = {}
    if grades:
        problems += [f"{raw / 'Grade.csv'}: has no row of {name}" for name in sorted(set(names) - grades.keys())]
    result = []
    for name in sorted(names, key=lambda name: (name.split("_")[0], int(name.split("_")[1]))):
        part, files = name.split("_")[0], (images[name], annotations[name])
        patient, grade = grades.get(name, (name, ""))
        read = partial(read_sample, *files, data.max_pixels)
        attributes = {"part": part, "patient": patient, "grade": grade}
        result.append(Record(name, "train" if part == "train" else "test", patient, read, files, attributes))
    return Archive(result, problems)
