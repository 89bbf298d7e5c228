"""Splits too large for memory: a packed copy beside the CSV files, of which a batch reads its own patches.

The CSV files and what they name stay the truth: a copy of other files than those of now, or a torn one, is made anew.
The different values of SDFs are few (distances between pixels), so that a byte or two say which it is, and nothing is
rounded; where they are many, as in SDFs of other programs, the float32 values themselves are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from typing_extensions import TypedDict

from data.dataset import (
    Patches,
    held_out,
    hold_out,
    is_published,
    largest_of,
    load_split,
    planes_of,
    rescaled,
    same_size,
    split_rows,
    table_rows,
    unchanged,
)
from data.description import COLUMNS, check_prepared
from data.pool import cores, in_order, pool_of
from data.rows import Patch, Row
from utils.data_schema import DataConfig
from utils.errors import DataError
from utils.files import remove_leftovers, restore_folder, whole_folder, write_json
from utils.locks import held
from utils.reading import read_json

FORMAT = 1
HELD = 2**30  # bytes of images and float32 SDFs up to which a split is held in memory
AT_ONCE = 32  # rows that a process reads at a time
CHUNK = 2**20  # values or bytes at a time
FILES = ("images.bin", "labels.bin", "maps.bin", "names.bin", "index.bin", "values.bin")
# Where a patch begins in images and labels (pixels), maps (values) and names (bytes of this length), and what is
# known of it.
ENTRY = np.dtype([("pixels", "<i8"), ("maps", "<i8"), ("names", "<i8"), ("length", "<i4"), ("height", "<i4"),
                  ("width", "<i4"), ("raters", "<i4"), ("marked", "?")])  # fmt: skip

log = logging.getLogger(__name__)
Between = Callable[[], object]  # called now and then during long work: what raises there ends it


class About(TypedDict):
    """about.json. made_of: see `_signature`. codes: type of the numbers in maps.bin. sums: see `_checksums`."""

    made_of: str
    channels: int
    classes: int
    codes: str
    sums: dict[str, int]


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _checksums(folder: Path, about: About) -> dict[str, int]:
    """CRC-32 of all files, and of what about.json says besides."""
    facts = [about["made_of"], about["channels"], about["classes"], about["codes"]]
    sums = {"about.json": zlib.crc32(json.dumps(facts).encode()), **dict.fromkeys(FILES, 0)}
    for name in FILES:
        for chunk in _chunks(folder / name):
            sums[name] = zlib.crc32(chunk, sums[name])
    return sums


def _signature(data: DataConfig, split: str, between: Between) -> str:
    """A hash of what a packed copy is made of: the rows of the table, size and time of every file they name, and how
    they are read."""
    options = data.model_dump(mode="json", include={"color", "classes", "truncation", "max_megapixels"})
    digest = hashlib.sha256(json.dumps([FORMAT, options]).encode())
    root = Path(data.root)
    for number, row in enumerate(table_rows(root, split)):
        digest.update(json.dumps(row).encode())
        for column in COLUMNS:
            for name in filter(None, row.get(column, "").split(";")):
                try:
                    status = os.stat(root / name.lstrip("/"))
                    digest.update(b"%d %d\n" % (status.st_size, status.st_mtime_ns))
                except (OSError, ValueError):  # whoever reads the row says what is wrong
                    digest.update(b"absent\n")
        if number % 1024 == 0:
            between()
    return digest.hexdigest()


class _MapWriter:
    """SDFs one after the other, as numbers of their different values while these fit into 16 bits."""

    KINDS = (("|u1", 2**8), ("<u2", 2**16))

    def __init__(self, path: Path) -> None:
        self.path, self.codes = path, "|u1"
        self.file: BinaryIO = path.open("wb")
        self.bits = np.empty(0, np.uint32)  # of the values, by number
        self.order = np.empty(0, np.int64)  # that sorts them

    def _coded(self, bits: np.ndarray) -> bytes:
        """Of values that are all known."""
        if self.codes == "<f4":
            return bits.tobytes()
        return self.order[np.searchsorted(self.bits, bits, sorter=self.order)].astype(self.codes).tobytes()

    def _learn(self, bits: np.ndarray) -> None:
        if len(self.bits):
            near = np.minimum(np.searchsorted(self.bits, bits, sorter=self.order), len(self.bits) - 1)
            bits = bits[self.bits[self.order[near]] != bits]
        if len(bits):
            self.bits = np.concatenate([self.bits, np.unique(bits)])
            self.order = np.argsort(self.bits)

    def add(self, sdf: np.ndarray) -> None:
        """float32 of any shape."""
        bits = np.ascontiguousarray(sdf, np.float32).reshape(-1).view(np.uint32)
        if self.codes != "<f4":
            self._learn(bits)
            fitting = next((kind for kind, most in self.KINDS if len(self.bits) <= most), "<f4")
            if fitting != self.codes:
                self._rewrite(fitting, lambda values: values.view(np.uint32))
        self.file.write(self._coded(bits))

    def _rewrite(self, codes: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """What is written so far in other codes, with the bits that `change` makes of float32 values."""
        self.file.close()
        old = self.path.with_suffix(".old")
        self.path.rename(old)
        self.file = self.path.open("wb")
        before, known = self.codes, self.bits.view(np.float32)
        self.codes = codes
        for chunk in _chunks(old):
            stored = np.frombuffer(chunk, before)
            bits = change(stored if before == "<f4" else known[stored])
            self.file.write(self._coded(bits))
        old.unlink()

    def close(self, published: bool) -> np.ndarray:
        """The values by number, empty where the maps have them; published: brought to [-1, 1]."""
        if published and self.codes == "<f4":
            self._rewrite("<f4", lambda values: rescaled(values).view(np.uint32))
        self.file.close()
        values = self.bits.view(np.float32)[: 0 if self.codes == "<f4" else None]
        return rescaled(values) if published else values


def _read(rows: Sequence[Row], data: DataConfig) -> list[Patch]:
    """In a process of its own; what is not packed stays there."""
    return [replace(row.read(data), raters=(), instances=None) for row in rows]


def _batched(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while some := list(islice(rows, AT_ONCE)):
        yield some


def _patches(data: DataConfig, split: str, between: Between) -> Iterator[Patch]:
    workers = data.workers or cores()
    with pool_of(workers) as pool:
        for patches in in_order(pool, partial(_read, data=data), _batched(split_rows(data, split)), 4 * workers):
            between()
            yield from patches


def _write(folder: Path, data: DataConfig, split: str, made_of: str, between: Between) -> About:
    """All files but about.json, and its content."""
    largest, pixels, maps, name_bytes, first = 0.0, 0, 0, 0, None
    with ExitStack() as stack:
        images, labels, names, index = (stack.enter_context((folder / f"{name}.bin").open("wb"))
                                        for name in ("images", "labels", "names", "index"))  # fmt: skip
        writer = _MapWriter(folder / "maps.bin")
        stack.callback(lambda: writer.file.close())
        for patch in _patches(data, split, between):
            first = first or patch
            height, width = patch.labels.shape
            marked = bool((patch.sdf <= 0).any())
            line = json.dumps([patch.key, patch.image_id, patch.filename, patch.owner]).encode()
            entry = (pixels, maps, name_bytes, len(line), height, width, len(patch.sdf), marked)
            index.write(np.array(entry, ENTRY).tobytes())
            images.write(patch.image.tobytes())
            labels.write(patch.labels.tobytes())
            writer.add(patch.sdf)
            names.write(line)
            largest = max(largest, largest_of(patch))
            pixels, maps, name_bytes = pixels + height * width, maps + patch.sdf.size, name_bytes + len(line)
        table = Path(data.root, f"{split}.csv")
        if first is None:
            raise DataError(f"{table} lists no images")
        values = writer.close(is_published(largest, table))
    (folder / "values.bin").write_bytes(values.astype("<f4").tobytes())
    channels, classes = 3 if first.image.ndim == 3 else 1, first.sdf.shape[1]
    about = About(made_of=made_of, channels=channels, classes=classes, codes=writer.codes, sums={})
    return {**about, "sums": _checksums(folder, about)}


def _mapped(path: Path, kind: str | np.dtype) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, kind)
    return np.asarray(np.memmap(path, kind, "r"))


@dataclass(frozen=True)
class Packed(Patches):
    """Patches of a packed copy, without masks of raters and objects.

    Files are mapped: memory holds the pages that were read last, and gives them back. numbers: which of the copy, (N,).
    """

    folder: Path
    about: About
    numbers: np.ndarray
    _files: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def opened(cls, folder: Path, about: About) -> Packed:
        kinds: dict[str, str | np.dtype] = {"maps.bin": about["codes"], "index.bin": ENTRY, "values.bin": "<f4"}
        files = {name: _mapped(folder / name, kinds.get(name, "|u1")) for name in FILES}
        return cls(folder, about, np.arange(len(files["index.bin"])), files)

    def only(self, which: np.ndarray) -> Packed:
        """which: (N,) bool."""
        return replace(self, numbers=self.numbers[which])

    def __len__(self) -> int:
        return len(self.numbers)

    def patch(self, index: int) -> Patch:
        entry = self._entry(index)
        key, image_id, filename, owner = self._names(entry)
        height, width = int(entry["height"]), int(entry["width"])
        labels = self._files["labels.bin"][entry["pixels"] :][: height * width].reshape(height, width)
        return Patch(key, image_id, filename, self._image(entry), self._sdf(entry), labels, owner=owner)

    def _entry(self, index: int) -> np.void:
        entry: np.void = self._files["index.bin"][self.numbers[index]]
        return entry

    def _names(self, entry: np.void) -> list[str]:
        names: list[str] = json.loads(self._files["names.bin"][entry["names"] :][: entry["length"]].tobytes())
        return names

    def _image(self, entry: np.void) -> np.ndarray:
        """(H, W) or (H, W, 3)."""
        channels, shape = self.about["channels"], (int(entry["height"]), int(entry["width"]))
        start, size = channels * entry["pixels"], channels * shape[0] * shape[1]
        pixels = self._files["images.bin"][start : start + size]
        return pixels.reshape(shape if channels == 1 else (*shape, channels))

    def _values(self, start: int, stop: int) -> np.ndarray:
        """Of the maps, (stop - start,) float32, a copy."""
        codes = self._files["maps.bin"][start:stop]
        return codes.copy() if self.about["codes"] == "<f4" else self._table[codes]

    @cached_property
    def _table(self) -> np.ndarray:
        return np.array(self._files["values.bin"])

    def _sdf(self, entry: np.void, rater: int | None = None) -> np.ndarray:
        """(R, K, H, W), or (1, K, H, W) of one rater."""
        shape = self.about["classes"], int(entry["height"]), int(entry["width"])
        first, count = (0, int(entry["raters"])) if rater is None else (rater, 1)
        start, size = int(entry["maps"]) + first * int(np.prod(shape)), count * int(np.prod(shape))
        return self._values(start, start + size).reshape(count, *shape)

    def column(self, name: str) -> np.ndarray:
        """A field of ENTRY of all patches, (N,)."""
        return np.asarray(self._files["index.bin"][name][self.numbers])

    def groups(self) -> list[str]:
        names = (self._names(self._entry(i)) for i in range(len(self)))
        return [owner or image_id for _, image_id, _, owner in names]

    def flat_values(self, start: int, stop: int) -> np.ndarray:
        """Of the maps of all patches one after the other, as `mean_square` asks for them."""
        ends = self._ends
        parts = []
        for i in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            before = ends[i] - self._lengths[i]
            if before >= stop:
                break
            offset = int(self._entry(i)["maps"]) - before
            parts.append(self._values(offset + max(start, before), offset + min(stop, ends[i])))
        return np.concatenate(parts)

    @cached_property
    def _lengths(self) -> np.ndarray:
        area = self.column("height").astype(np.int64) * self.column("width")
        return np.asarray(area * self.column("raters") * self.about["classes"])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self._lengths)

    @property
    def size_of_maps(self) -> int:
        """Values in the maps of all patches."""
        return int(self._ends[-1])

    def images_of(self, indices: Sequence[int]) -> np.ndarray:
        """(B, C, H, W) uint8 of patches of one size."""
        return planes_of([self._image(self._entry(i)) for i in indices])

    def sdfs_of(self, indices: Sequence[int], raters: Sequence[int] | None, most: int) -> np.ndarray:
        """(B, K, H, W) float32 of one rater of each patch, or (B, most, K, H, W) of all; see `sdf_array`."""
        entries = [self._entry(i) for i in indices]
        if raters is not None:
            return np.concatenate([self._sdf(e, rater) for e, rater in zip(entries, raters, strict=True)])
        height, width = int(entries[0]["height"]), int(entries[0]["width"])
        sdfs = np.ones((len(entries), most, self.about["classes"], height, width), np.float32)
        for own, entry in zip(sdfs, entries, strict=True):
            own[: entry["raters"]] = self._sdf(entry)
        return sdfs


def common_size(patches: Sequence[Patch], what: str) -> tuple[int, int]:
    """See `same_size`; of a packed copy without reading more than two patches."""
    if not isinstance(patches, Packed):
        return same_size(patches, what)
    height, width = patches.column("height"), patches.column("width")
    others = np.flatnonzero((height != height[0]) | (width != width[0]))
    return same_size([patches[0], *(patches[int(i)] for i in others[:1])], what)


def _whole(folder: Path, made_of: str) -> Packed | None:
    """The packed copy in the folder, if it is there, undamaged, and made of what is there now."""
    try:
        about: About = read_json(folder / "about.json", About, DataError)
        if about["made_of"] == made_of and about["sums"] == _checksums(folder, about):
            return Packed.opened(folder, about)
        log.info("%s is of other files, or damaged; made anew", folder)
    except (OSError, DataError):
        pass
    return None


def packed(data: DataConfig, split: str, between: Between = lambda: None) -> Packed:
    """The split's packed copy, made where there is none yet; other processes wait for it then.

    Raises DataError as `load_split` does, OSError where data.root cannot be written to.
    """
    root = Path(data.root)
    folder, made_of = root / "packed" / split, _signature(data, split, between)
    with held(root / f".packed.{split}.lock", str(folder), wait=-1):
        restore_folder(folder)
        remove_leftovers(folder.parent, f".*.{split}")
        if found := _whole(folder, made_of):
            return found
        log.info("packing %s", root / f"{split}.csv")
        with whole_folder(folder) as new, unchanged(root):
            about = _write(new, data, split, made_of, between)
            write_json(new / "about.json", about)
        return Packed.opened(folder, about)


def _size_in_memory(data: DataConfig, split: str) -> int:
    """Bytes of images and float32 SDFs, if all patches are as large as the first."""
    check_prepared(data, training=split == "train")
    patches, raters, first = 0, 1, None
    for row in table_rows(Path(data.root), split):
        patches, first = patches + 1, first or row
        raters = max(raters, row.get("raternames", "").count(";") + 1)
    if first is None:
        return 0
    patch = Row(first, "", f"{Path(data.root, split)}.csv row 2").read(data)
    return patches * (patch.image.size + 4 * raters * patch.sdf[0].size)


def open_split(
    data: DataConfig, split: str, *, may_be_empty: bool = False, between: Between = lambda: None
) -> list[Patch] | Packed:
    """The patches of a split in memory, or packed where they are more than `HELD`. Raises DataError."""
    if Path(data.root).is_dir() and _size_in_memory(data, split) > HELD:
        return packed(data, split, between)
    return load_split(data, split, may_be_empty=may_be_empty)


def open_training(data: DataConfig, between: Between = lambda: None) -> tuple[Sequence[Patch], Sequence[Patch]]:
    """Training and validation patches; without a val.csv, validation images are held out of train.csv."""
    with unchanged(Path(data.root)):
        training = open_split(data, "train", between=between)
        if Path(data.root, "val.csv").is_file():
            return training, open_split(data, "val", may_be_empty=True, between=between)
    if isinstance(training, Packed):
        out = held_out(training.groups(), data.validation_fraction, data.split_seed)
        return training.only(~out), training.only(out)
    return hold_out(training, data.validation_fraction, data.split_seed)
