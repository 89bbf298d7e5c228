"""Prepared data: CSV files of patches, read row by row or at once (README, "Prepared data")."""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
from typing_extensions import TypedDict

from data.description import check_prepared, data_hash, read_description
from data.images import read_rows
from data.names import unique_names
from data.rows import Patch, Row
from utils.data_schema import DataConfig
from utils.errors import DataError
from utils.shipped import command

PIECE = 2**20  # values that are squared at a time
PUBLISHED_SCALE = 0.2  # the published code divides its VE distances by 5 once more

log = logging.getLogger(__name__)


def table_rows(root: Path, split: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, one after the other. Raises DataError for what they lack."""
    path = root / f"{split}.csv"
    if not path.is_file():
        raise DataError(f"{path} is missing: run `{command('prepare')}` with this config first")
    for number, row in enumerate(read_rows(path), 2):
        if missing := {"filename", "maskname"} - row.keys():
            raise DataError(f"{path}: no column {' or '.join(sorted(missing))}; found {', '.join(row)}")
        for column in ("filename", "maskname"):
            if not row[column].strip():
                raise DataError(f"{path} row {number}: {column} is empty")
        yield row


def _keys(rows: Iterable[dict[str, str]]) -> list[str]:
    """The image_id, or the file's stem; with the position where several patches share it."""
    names = [(row.get("image_id") or Path(row["filename"]).stem, row.get("top"), row.get("left")) for row in rows]
    counts = Counter(name for name, _, _ in names)
    places = (f"_{top}_{left}" if top and left else f"_row{number}" for number, (_, top, left) in enumerate(names, 2))
    return unique_names([name + place if counts[name] > 1 else name
                         for (name, _, _), place in zip(names, places, strict=True)])  # fmt: skip


def folder_identity(root: Path) -> int | None:
    """Another number after a preparation has replaced the folder."""
    return root.stat().st_ino if root.is_dir() else None


@contextmanager
def unchanged(root: Path, before: int | None = None) -> Iterator[None]:
    """Raises DataError where a preparation has replaced root meanwhile: what was read is of two folders.

    before: its `folder_identity` of an earlier moment that counts; None: of now.
    """
    before = before or folder_identity(root)
    try:
        yield
    except DataError:
        if folder_identity(root) == before:
            raise
    if folder_identity(root) != before:
        raise DataError(f"data.root: {root} was prepared anew while it was read; start again")


def split_rows(data: DataConfig, split: str) -> Iterator[Row]:
    """The rows of one CSV file of data.root, if root was prepared as the config says. Raises DataError."""
    root = Path(data.root)
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root}; run `{command('prepare')}` with this config first")
    check_prepared(data, training=split == "train")
    keys, number = _keys(table_rows(root, split)), 1
    for number, cells in enumerate(table_rows(root, split), 2):
        yield Row(cells, keys[number - 2] if number - 2 < len(keys) else "", f"{root / split}.csv row {number}")
    if number - 1 != len(keys):
        raise DataError(f"{root / split}.csv has changed while it was read")


def read_split(data: DataConfig, split: str, *, instances: bool = False) -> Iterator[Patch]:
    """The patches of one CSV file of data.root, checked row by row, if root was prepared as the config says.

    instances: read the numbers of the objects too, where the table names them.
    Raises DataError naming file and row (the header is row 1).
    """
    for row in split_rows(data, split):
        yield row.read(data, instances)


def largest_of(patch: Patch) -> float:
    """Absolute value of its SDFs."""
    return float(np.abs(patch.sdf).max(initial=0.0))


def is_published(largest: float, table: Path) -> bool:
    """Whether the SDFs of a split with this largest value are on the published scale: none exceeds it, and that is
    where they end."""
    if found := abs(largest - PUBLISHED_SCALE) < 1e-4:
        log.info("%s: SDFs end at 0.2, the published scale; multiplied by 5", table)
    return found


def rescaled(sdf: np.ndarray) -> np.ndarray:
    """From the published scale to [-1, 1]."""
    return np.asarray(np.clip(sdf / np.float32(PUBLISHED_SCALE), -1, 1))


def at_full_scale(patch: Patch) -> Patch:
    """With SDFs as `rescaled`."""
    return replace(patch, sdf=rescaled(patch.sdf))


def load_split(data: DataConfig, split: str, *, instances: bool = False, may_be_empty: bool = False) -> list[Patch]:
    """All patches of one split; SDFs in [-0.2, 0.2], as the published code writes them, are brought to [-1, 1].

    Raises DataError, also where there is none unless `may_be_empty`.
    """
    table = Path(data.root, f"{split}.csv")
    with unchanged(Path(data.root)):
        patches = list(read_split(data, split, instances=instances))
    if not patches and not may_be_empty:
        raise DataError(f"{table} lists no images")
    if is_published(max(map(largest_of, patches), default=0.0), table):
        patches = [at_full_scale(patch) for patch in patches]
    return patches


def _outline(patch: Patch) -> Patch:
    """The patch with shapes instead of pixels: all zeros, which take no memory."""
    image, sdf, labels = (np.broadcast_to(x.dtype.type(0), x.shape) for x in (patch.image, patch.sdf, patch.labels))
    return replace(patch, image=image, sdf=sdf, labels=labels, raters=(), instances=None)


class Patches(Sequence[Patch]):
    """Patches that are read when they are asked for, each by `patch`."""

    @abstractmethod
    def patch(self, index: int) -> Patch: ...

    @overload
    def __getitem__(self, index: int) -> Patch: ...

    @overload
    def __getitem__(self, index: slice) -> list[Patch]: ...

    def __getitem__(self, index: int | slice) -> Patch | list[Patch]:
        if isinstance(index, slice):
            return [self.patch(i) for i in range(*index.indices(len(self)))]
        return self.patch(index)


class Split(Patches):
    """The patches of one split as `load_split` has them, each read from its files when it is asked for.

    All are checked at the start. outlines: the patches without their pixels. Raises DataError, later too where
    data.root is no longer what it was.
    """

    def __init__(self, data: DataConfig, split: str, *, instances: bool = False) -> None:
        self.data, self.instances = data, instances
        self.outlines: list[Patch] = []
        self._rows: list[Row] = []
        table, largest = Path(data.root, f"{split}.csv"), 0.0
        self._folder = folder_identity(Path(data.root))
        with unchanged(Path(data.root)):
            for row in split_rows(data, split):
                patch = row.read(data, instances)
                largest = max(largest, largest_of(patch))
                self._rows.append(row)
                self.outlines.append(_outline(patch))
        if not self._rows:
            raise DataError(f"{table} lists no images")
        self._published = is_published(largest, table)

    def __len__(self) -> int:
        return len(self._rows)

    def patch(self, index: int) -> Patch:
        with unchanged(Path(self.data.root), self._folder):
            patch = self._rows[index].read(self.data, self.instances)
        return at_full_scale(patch) if self._published else patch


def same_size(patches: Sequence[Patch], what: str) -> tuple[int, int]:
    """The common (H, W). Raises DataError naming the first patch that differs."""
    first = patches[0]
    for patch in patches:
        if patch.labels.shape != first.labels.shape:
            raise DataError(
                f"{what}: {patch.filename} is {patch.labels.shape}, the first patch {first.labels.shape}; "
                "patches to train on must all have one size: set data.size or data.patch"
            )
    height, width = first.labels.shape
    return height, width


def image_array(patches: Sequence[Patch]) -> np.ndarray:
    """(N, C, H, W) uint8 of patches of one size."""
    return planes_of([patch.image for patch in patches])


def planes_of(images: Sequence[np.ndarray]) -> np.ndarray:
    """(N, C, H, W) of images (H, W) or (H, W, 3) of one size."""
    stacked = np.stack(images)
    return np.ascontiguousarray(stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2))


def rater_counts(patches: Sequence[Patch]) -> np.ndarray:
    """How many annotations each patch has, (N,)."""
    return np.array([len(patch.sdf) for patch in patches])


def sdf_array(patches: Sequence[Patch]) -> np.ndarray:
    """(N, R, K, H, W) float32 of patches of one size: R raters, K classes. A patch with fewer raters than another has
    maps of 1, where nothing is marked, behind its own (`rater_counts`)."""
    most = max(rater_counts(patches))
    sdfs = np.ones((len(patches), most, *patches[0].sdf.shape[1:]), np.float32)
    for own, patch in zip(sdfs, patches, strict=True):
        own[: len(patch.sdf)] = patch.sdf
    return sdfs


def mean_square(values: Callable[[int, int], np.ndarray], size: int) -> float:
    """Mean of the squares of `size` float32 values, in float64; values(start, stop): some of them.

    To the last bit as numpy has it of all at once: its sums are sums of halves, cut at a multiple of eight.
    """

    def total(start: int, stop: int) -> float:
        if stop - start <= PIECE:
            return float((values(start, stop).astype("float64") ** 2).sum())
        half = (stop - start) // 2
        middle = start + half - half % 8
        return total(start, middle) + total(middle, stop)

    return total(0, size) / size


class DataState(TypedDict, total=False):
    """What a run remembers of its data, in environment.json.

    data: `data_hash`. pixels: SHA-256 of all images and SDFs in their order. images, options: numbers of patches and
    options of the preparation, to say what has changed.
    """

    data: str
    pixels: str
    images: dict[str, int]
    options: dict[str, Any]


def data_state(data: DataConfig, training: Sequence[Patch], validation: Sequence[Patch]) -> DataState:
    digest = hashlib.sha256()
    for patch in chain(training, validation):  # one at a time in memory
        digest.update(patch.key.encode())
        digest.update(np.ascontiguousarray(patch.image).data)
        digest.update(np.ascontiguousarray(patch.sdf).data)
    root = Path(data.root)
    return {
        "data": data_hash(root, "train"),
        "pixels": digest.hexdigest(),
        "images": {"train": len(training), "val": len(validation)},
        "options": read_description(root).get("options", {}),
    }


def data_change(before: DataState, now: DataState) -> str | None:
    """What is no longer as it was, None where a training can go on."""
    if "pixels" not in before:  # a run from before there was such a hash
        before = {**now, "pixels": now["pixels"] if before.get("data") == now["data"] else ""}
    if before["pixels"] == now["pixels"]:
        return None
    for was, new, name in ((before.get("options", {}), now["options"], "the preparation's data.{}"),
                           (before.get("images", {}), now["images"], "the number of patches in {}.csv")):  # fmt: skip
        for key in new:
            if was.get(key) != new[key]:
                return f"{name.format(key)} was {was.get(key)!r} and is {new[key]!r} now"
    return "the images or masks of train.csv or val.csv have changed"


def held_out(groups: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Which patches of these groups are for validation, (N,) bool: by patient, group or image, for folders without a
    val.csv."""
    ids = sorted(set(groups))
    count = min(len(ids) - 1, max(1, round(fraction * len(ids)))) if fraction else 0
    chosen = {ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]}
    return np.array([group in chosen for group in groups])


def hold_out(patches: list[Patch], fraction: float, seed: int) -> tuple[list[Patch], list[Patch]]:
    """Training and validation patches, see `held_out`."""
    held = held_out([patch.group for patch in patches], fraction, seed).tolist()
    pairs = list(zip(patches, held, strict=True))
    return [patch for patch, out in pairs if not out], [patch for patch, out in pairs if out]
