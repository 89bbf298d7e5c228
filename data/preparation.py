"""From the records of an archive to a folder of patches with their SDFs, all cores at work, all or nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from data.errors import DataError
from data.sdf import signed_distance
from data.sources.record import Record, Sample

FORMAT = 1  # raise when the prepared files change for the same options
FOLDERS = {"train": "Training_patches", "val": "Validation_patches", "test": "Test_patches"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareOptions:
    """What decides the prepared files, besides the raw ones.

    source: name of the archive format, for the record.
    size: (height, width) all images are resized to, or None.
    color: "grey" or "rgb".
    truncation: delta of eq. 1 in pixels of the prepared image.
    validation_fraction: share of training images moved to val, by group, where the archive has no val split.
    """

    source: str
    size: tuple[int, int] | None
    color: str
    truncation: float
    validation_fraction: float
    split_seed: int = 0
    source_options: str = ""


def cut_validation(records: Sequence[Record], fraction: float, seed: int) -> list[Record]:
    """Move whole groups of the training split to val until about `fraction` of its images are there."""
    training = [r for r in records if r.split == "train"]
    if fraction == 0 or not training or any(r.split == "val" for r in records):
        return list(records)
    groups: dict[str, int] = {}
    for record in training:
        groups[record.group] = groups.get(record.group, 0) + 1
    if len(groups) < 2:
        raise DataError(
            "the training images are all of one patient: no validation split can be cut; set validation_fraction: 0"
        )
    target = max(1, round(fraction * len(training)))
    names = sorted(groups)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    chosen: set[str] = set()
    for name in order:
        if sum(groups[g] for g in chosen) + groups[name] <= target:
            chosen.add(name)
    chosen = chosen or {min(order, key=lambda g: groups[g])}
    return [replace(r, split="val") if r.split == "train" and r.group in chosen else r for r in records]


def transform(sample: Sample, options: PrepareOptions) -> Sample:
    """Colour and size; labels are sampled at pixel centres, images averaged."""
    image = Image.fromarray(sample.image).convert("L" if options.color == "grey" else "RGB")
    if options.size is None:
        return replace(sample, image=np.asarray(image))
    height, width = options.size

    def nearest(labels: np.ndarray) -> np.ndarray:
        rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
        return labels[rows[:, None], columns]

    return Sample(
        image=np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None)),
        mask=nearest(sample.mask),
        instances=None if sample.instances is None else nearest(sample.instances),
        raters=tuple(nearest(rater) for rater in sample.raters),
    )


def _save_mask(mask: np.ndarray, root: Path, name: str) -> str:
    Image.fromarray(mask.astype(np.uint8) * 255).save(root / name)
    return name


def write_patch(record: Record, root: Path, options: PrepareOptions) -> dict[str, str | int]:
    """Write the files of one record below root; return its CSV row."""
    try:
        sample = transform(record.read(), options)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        names = ", ".join(str(path) for path in record.files) or record.image_id
        raise DataError(f"{names}: {error}") from None
    stem = f"{FOLDERS[record.split]}/{record.image_id}"
    height, width = sample.mask.shape
    Image.fromarray(sample.image).save(root / f"{stem}.png")
    np.save(root / f"{stem}_sdf.npy", signed_distance(sample.mask, options.truncation))
    row: dict[str, str | int] = {
        "filename": f"{stem}.png",
        "maskname": _save_mask(sample.mask, root, f"{stem}_mask.png"),
        "maskdtname": f"{stem}_sdf.npy",
        "image_id": record.image_id,
        "top": 0,
        "left": 0,
        "height": height,
        "width": width,
    }
    if sample.instances is not None:
        row["instancename"] = f"{stem}_instances.png"
        Image.fromarray(sample.instances.astype(np.uint16)).save(root / f"{stem}_instances.png")
    if sample.raters:
        raters = [_save_mask(m, root, f"{stem}_rater{k}.png") for k, m in enumerate(sample.raters)]
        row["raternames"] = ";".join(raters)
    return {**row, **record.attributes}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _inputs(records: Iterable[Record]) -> dict[str, str]:
    """Raw file name to hash. Names only: a moved archive is the same archive."""
    return {path.name: file_hash(path) for record in records for path in record.files}


def _listing(records: Iterable[Record]) -> str:
    """A hash of who is in which split, with the attributes that go into the CSV files."""
    lines = [json.dumps([r.image_id, r.split, r.group, dict(r.attributes)]) for r in records]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_current(root: Path, description: dict[str, object]) -> bool:
    """Whether root holds what `description` says, with every file its CSV files name."""
    try:
        found = json.loads((root / "dataset.json").read_text())
        if any(found.get(key) != value for key, value in json.loads(json.dumps(description)).items()):
            return False
        for name, digest in found["tables"].items():
            if file_hash(root / name) != digest:
                return False
            table = pd.read_csv(root / name, dtype=str, keep_default_na=False)
            columns = [c for c in ("filename", "maskname", "maskdtname", "instancename") if c in table]
            if not all((root / path).is_file() for column in columns for path in table[column]):
                return False
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    return True


def _check_target(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder")
    if root.is_dir() and any(root.iterdir()) and not (root / "dataset.json").is_file():
        raise DataError(f"data.root: {root} holds files that were not prepared here (no dataset.json); choose another")


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_all(
    records: Sequence[Record], root: Path, options: PrepareOptions, workers: int, quiet: bool
) -> dict[str, list[dict[str, str | int]]]:
    rows: dict[str, list[dict[str, str | int]]] = {split: [] for split in FOLDERS}
    job = partial(write_patch, root=root, options=options)
    # Spawned, as forking a process that runs torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(records)), context, initializer=_leave_ctrl_c_to_the_parent) as pool:
        try:
            results = pool.map(job, records, chunksize=max(1, len(records) // (8 * workers)))
            progress = tqdm(results, total=len(records), desc="preparing", unit="image", disable=quiet)
            for record, row in zip(records, progress, strict=True):
                rows[record.split].append(row)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return rows


def prepare(
    records: Sequence[Record],
    root: Path,
    options: PrepareOptions,
    *,
    workers: int = 0,
    quiet: bool = False,
) -> tuple[dict[str, int], bool]:
    """Write the prepared folder; return the number of images per split and whether anything was written.

    Does nothing where root already holds the result of the same inputs and options. Otherwise everything is written
    beside root and moved there at the end, so that an interruption leaves the old folder as it was.
    workers: processes, 0 for all cores.
    Raises DataError for unusable raw data and for a root that holds other people's files; OSError if not writable.
    """
    records = cut_validation(records, options.validation_fraction, options.split_seed)
    counts = {split: sum(r.split == split for r in records) for split in FOLDERS}
    description: dict[str, object] = {
        "tool_version": FORMAT,
        "source": options.source,
        "options": asdict(options),
        "counts": counts,
        "inputs": _inputs(records),
        "listing": _listing(records),
    }
    _check_target(root)
    if _is_current(root, description):
        return counts, False
    partial_root = root.with_name(root.name + ".partial")
    shutil.rmtree(partial_root, ignore_errors=True)
    try:
        for folder in FOLDERS.values():
            (partial_root / folder).mkdir(parents=True)
        rows = _write_all(records, partial_root, options, workers or os.cpu_count() or 1, quiet)
        for split, split_rows in rows.items():
            table = pd.DataFrame(split_rows, columns=None if split_rows else ["filename", "maskname", "maskdtname"])
            table.to_csv(partial_root / f"{split}.csv", index=False)
        description["tables"] = {f"{split}.csv": file_hash(partial_root / f"{split}.csv") for split in rows}
        (partial_root / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
        _replace_folder(root, partial_root)
    except BaseException:
        shutil.rmtree(partial_root, ignore_errors=True)
        raise
    return counts, True


def _replace_folder(root: Path, new: Path) -> None:
    old = root.with_name(root.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if root.exists():
        root.rename(old)
    new.rename(root)
    for path in old.iterdir() if old.exists() else ():
        if not (root / path.name).exists():  # notes of the user's beside the prepared files stay
            path.rename(root / path.name)
    shutil.rmtree(old, ignore_errors=True)
