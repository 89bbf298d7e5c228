"""What every archive yields, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from utils.data_schema import DataConfig
from utils.errors import DataError

Split = Literal["train", "val", "test"]
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
    """

    image_id: str
    split: Split
    group: str
    read: Callable[[], Sample | None]
    files: tuple[Path, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    stratum: str = ""


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


def files_by_stem(folder: Path, suffixes: tuple[str, ...], problems: list[str], complaint: str) -> dict[str, Path]:
    """The visible files of these suffixes by their stem; a stem that is there twice goes into `problems`.

    A folder that does not exist has no files.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                problems.append(f"{folder}: {found[path.stem].name} and {path.name} {complaint}")
            found[path.stem] = path
    return found
