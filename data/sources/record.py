"""What every archive yields, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Sample:
    """One annotated image, as arrays.

    image: (H, W, 3) RGB or (H, W) grey, uint8.
    mask: (H, W) bool, True inside the objects.
    instances: (H, W) uint16 labels, 0 = background, or None where the archive has none.
    raters: one (H, W) bool mask per rater, empty where there is a single annotation.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray | None = None
    raters: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Record:
    """A promise of one `Sample`: listed cheaply, read later and in another process.

    image_id: unique in the archive; letters, digits, '.', '_' and '-'.
    group: what must not be torn apart by a split (a patient).
    files: the raw inputs that `read` opens; empty for generated images.
    read: a picklable function without arguments.
    attributes: more columns for the CSV files, such as a grade.
    """

    image_id: str
    split: Split
    group: str
    read: Callable[[], Sample]
    files: tuple[Path, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
