"""What every archive yields, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from data.images import SUFFIXES
from utils.data_schema import DataConfig
from utils.errors import DataError

Split = Literal["train", "val", "test"]
ANY = re.compile(".*", re.DOTALL)
MOST_OBJECTS = 65_535  # of an image: labels have 16 bits


@dataclass(frozen=True)
class Sample:
    """One annotated image, as arrays.

    image: (H, W, 3) RGB or (H, W) grey, uint8.
    mask: (H, W) bool, True inside the objects; of several raters, what at least half of them marked.
    instances: (H, W) uint16 labels, 0 = background, or None where the archive has none.
    raters: one (H, W) bool mask per rater, empty where there is a single annotation.
    classes: (H, W) class values, 0 = background, or None where all objects are of one kind.
    notes: what a careful reader of the data should know of this image.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray | None = None
    raters: tuple[np.ndarray, ...] = ()
    classes: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def maps(self) -> list[np.ndarray]:
        """Everything that lies on the image pixel by pixel."""
        return [m for m in (self.mask, self.instances, *self.raters, self.classes) if m is not None]


@dataclass(frozen=True)
class Record:
    """A promise of one `Sample`: listed cheaply, read later and in another process.

    image_id: any name, unique in the archive.
    group: what must not be torn apart by a split (a patient).
    read: a picklable function without arguments; None where there is nothing to learn (no rater marked anything).
    files: the raw inputs that `read` opens; empty for generated images.
    attributes: more columns for the CSV files, such as a grade.
    stratum: splits take their share of every stratum.
    check: a quick look at the files, before anything is written; raises the DataErrors of `read` that it finds.
    """

    image_id: str
    split: Split
    group: str
    read: Callable[[], Sample | None]
    files: tuple[Path, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    stratum: str = ""
    check: Callable[[], None] | None = None


@dataclass(frozen=True)
class Archive:
    """All that listing an archive found: its images and everything wrong with it so far."""

    records: list[Record]
    problems: list[str] = field(default_factory=list)


def consensus(raters: tuple[np.ndarray, ...]) -> np.ndarray:
    """(H, W) bool: at least half of the raters marked the pixel."""
    return np.asarray(2 * np.sum(raters, axis=0, dtype=np.int64) >= len(raters))


def number_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    """Instance labels as uint16, renumbered only where they do not fit. Raises DataError for over 65,535 objects."""
    if labels.max(initial=0) > MOST_OBJECTS:
        values, index = np.unique(np.append(labels, 0), return_inverse=True)
        if len(values) - 1 > MOST_OBJECTS:
            raise DataError(f"{path}: {len(values) - 1} objects; at most 65,535 fit into 16 bits")
        labels = index[:-1].reshape(labels.shape)
    return labels.astype(np.uint16)


def raw_folder(data: DataConfig, what: str) -> Path:
    """data.raw. Raises DataError where it is not the folder it should be."""
    raw = Path(data.raw or "")
    if raw.is_file():
        raise DataError(f"data.raw: {raw} is a file; unpack it and give the folder (expected: {what})")
    if not raw.is_dir():
        raise DataError(f"data.raw: {raw} is not a folder (expected: {what})")
    return raw


def check_shape(mask: tuple[int, ...], image: tuple[int, ...], where: Path | str) -> None:
    """Raises DataError if a mask is not of the image's (H, W)."""
    if mask != image[:2]:
        raise DataError(f"{where}: mask of {mask[1]} x {mask[0]}, image of {image[1]} x {image[0]} pixels")


def fitting(labels: np.ndarray, image: np.ndarray, where: Path | str) -> np.ndarray:
    """The labels (H, W). Raises DataError if they are not of the image's size."""
    check_shape(labels.shape, image.shape, where)
    return labels


def paint(objects: Sequence[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) uint16 of objects given by their rows and columns, counted from 1, and how many claim each pixel.

    Where several do, the smallest keeps it, so that no object vanishes under a larger one.
    """
    labels, claims = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
    for label, where in sorted(enumerate(objects, 1), key=lambda item: -len(item[1][0])):
        labels[where] = label
        claims[where] += 1
    return labels, claims


def files_by_stem(
    folder: Path, suffixes: tuple[str, ...], problems: list[str], stems: re.Pattern = ANY
) -> dict[str, Path]:
    """The visible files of these suffixes and stems by their stem; one that is there twice goes into `problems`.

    A folder that does not exist has no files.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and stems.fullmatch(path.stem):
            if path.stem in found:
                problems.append(f"{folder}: {found[path.stem].name} and {path.name} have the same stem")
            found[path.stem] = path
    return found


def paired(images: dict[str, Path], masks: dict[str, Path], what: str, problems: list[str]) -> list[str]:
    """The names that images and masks have in common; those without the other go into `problems`, `what` an image
    lacks."""
    problems += [f"{masks[name]}: no image of that name" for name in sorted(masks.keys() - images)]
    problems += [f"{images[name]}: no {what}" for name in sorted(images.keys() - masks)]
    return sorted(images.keys() & masks)


def files_of(images: Path, folders: Sequence[Path], problems: list[str]) -> dict[str, tuple[Path, ...]]:
    """By stem, each image with the mask of that stem in each folder; whatever has no partner goes into `problems`."""
    pictures = files_by_stem(images, SUFFIXES, problems)
    masks = [files_by_stem(folder, SUFFIXES, problems) for folder in folders]
    for folder, own in zip(folders, masks, strict=True):
        paired(pictures, own, f"partner in {folder.name}/", problems)
    whole = sorted(pictures.keys() & set.intersection(*map(set, masks)))
    return {stem: (pictures[stem], *(own[stem] for own in masks)) for stem in whole}
