"""From the records of an archive to a folder of patches with their SDFs, all cores at work, all or nothing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.images import read_image
from data.processing import FOLDERS, PrepareOptions, Written, read_sample, write_image
from data.sources.record import Archive, Record
from data.splits import cut_split
from data.stain import Stain, StainError, central_stain, fit_stain
from utils.data_schema import DataConfig
from utils.errors import DataError, problems_error
from utils.runs import file_hash

FORMAT = 2  # raise when the prepared files change for the same options
BAKED = ("size", "color", "truncation", "stain", "stain_target", "stretch", "test_patch", "classes")
TRAINING = ("patch",)  # options that only training patches depend on
CANDIDATES = 9  # training images among which the most typical stain is looked for


@dataclass
class Prepared:
    """images, patches: numbers per split. written: False where everything was there already.

    warnings: what was done otherwise than asked. notes: what archives left to be decided.
    """

    images: dict[str, int]
    patches: dict[str, int]
    written: bool
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)


def _inputs(records: Iterable[Record], options: PrepareOptions) -> dict[str, str]:
    """Raw file to hash, by its path inside the archive: a moved archive is the same archive."""
    paths = sorted({path for record in records for path in record.files})
    base = os.path.commonpath([path.parent for path in paths]) if paths else ""
    hashes = {os.path.relpath(path, base): file_hash(path) for path in paths if path.is_file()}
    if options.stain_target and Path(options.stain_target).is_file():
        hashes["stain target"] = file_hash(Path(options.stain_target))
    return hashes


def _listing(records: Iterable[Record]) -> str:
    """A hash of who is in which split, with the attributes that go into the CSV files."""
    lines = [json.dumps([r.image_id, r.split, r.group, dict(r.attributes)]) for r in records]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _named_files(table: pd.DataFrame) -> Iterator[str]:
    for column in ("filename", "maskname", "maskdtname", "instancename", "classname", "raternames", "raterdtnames"):
        if column in table:
            for cell in table[column]:
                yield from cell.split(";")


def _current(root: Path, description: dict[str, object]) -> Prepared | None:
    """What root holds, if that is what `description` says, with every file its CSV files name."""
    try:
        found = _described(root)
        if any(found.get(key) != value for key, value in json.loads(json.dumps(description)).items()):
            return None
        for name, digest in found["tables"].items():
            if file_hash(root / name) != digest:
                return None
            table = pd.read_csv(root / name, dtype=str, keep_default_na=False)
            if not all((root / path).is_file() for path in _named_files(table)):
                return None
        return Prepared(found["counts"], found["patches"], False)
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _check_target(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder")
    if root.is_dir() and any(root.iterdir()) and not (root / "dataset.json").is_file():
        raise DataError(f"data.root: {root} holds files that were not prepared here (no dataset.json); choose another")


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    """Processes that do not outlive an exception."""
    # Spawned, as forking a process that runs torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_leave_ctrl_c_to_the_parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _stain_or_none(record: Record, method: str) -> Stain | None:
    """None for images that cannot be used; whoever prepares them says why."""
    try:
        sample = read_sample(record)
        return None if sample is None else fit_stain(sample.image, method)
    except (DataError, StainError):
        return None


def _named_target(records: Sequence[Record], options: PrepareOptions) -> tuple[str, Stain]:
    name = options.stain_target or ""
    record = next((r for r in records if r.image_id == name), None)
    if record is None and not Path(name).is_file():
        known = ", ".join(r.image_id for r in records[:3])
        raise DataError(f"data.stain_target: {name} is neither a file nor an image of the archive ({known}, ...)")
    try:
        sample = read_sample(record) if record else None
        return name, fit_stain(sample.image if sample else read_image(Path(name)), options.stain)
    except StainError as error:
        raise DataError(f"data.stain_target: {name}: {error}; choose another image") from None


def stain_target(records: Sequence[Record], options: PrepareOptions, pool: Executor) -> tuple[str | None, Stain | None]:
    """Name and stain of the image all others are normalised to; by default the most typical of a few evenly chosen
    training images. Raises DataError if none has enough tissue."""
    if options.stain == "none" or not records:
        return None, None
    if options.stain_target is not None:
        return _named_target(records, options)
    training = [r for r in records if r.split == "train"] or list(records)
    chosen = [training[i] for i in np.unique(np.linspace(0, len(training) - 1, CANDIDATES).astype(int))]
    fitted = zip(chosen, pool.map(partial(_stain_or_none, method=options.stain), chosen), strict=True)
    usable = [(record, stain) for record, stain in fitted if stain is not None]
    if not usable:
        names = ", ".join(r.image_id for r in chosen)
        raise DataError(
            f"data.stain: none of {names} can be read and has enough tissue to be the target; set data.stain_target"
        )
    record, stain = usable[central_stain([stain for _, stain in usable])]
    return record.image_id, stain


def _described(root: Path) -> dict[str, Any]:
    """dataset.json of a prepared folder; empty where there is none, or it is no mapping."""
    try:
        content = json.loads((root / "dataset.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def stain_target_of(root: Path) -> dict[str, object] | None:
    """What the preparation wrote of the image all others were normalised to; None where there is nothing."""
    return _described(root).get("stain_target")


def _write_all(records: Sequence[Record], root: Path, options: PrepareOptions, workers: int, quiet: bool) -> tuple[
    list[Written], dict[str, object]
]:  # fmt: skip
    """What became of every record, and what dataset.json says of the stain target."""
    facts: dict[str, object] = {}
    with _pool(min(workers, max(1, len(records)))) as pool:
        problem, target = None, None
        try:
            name, target = stain_target(records, options, pool)
        except DataError as error:
            problem = str(error)
        job = partial(write_image, root=root, options=options, target=target)
        results = pool.map(job, records, chunksize=max(1, min(4, len(records) // (8 * workers))))
        written = list(tqdm(results, total=len(records), desc="preparing", unit="image", disable=quiet or not records))
    if problem:
        written.append(Written(problem=problem))
    if target is not None:
        facts["stain_target"] = {"image": name, "matrix": target.matrix.tolist(), "strength": target.strength.tolist()}
    return written, facts


def _save_tables(
    root: Path, records: Sequence[Record], written: Sequence[Written], description: dict[str, object]
) -> Prepared:
    result = Prepared({}, {}, True)
    hashes = {}
    for split in FOLDERS:
        own = [w for record, w in zip(records, written, strict=True) if record.split == split]
        rows = [row for w in own for row in w.rows]
        table = pd.DataFrame(rows, columns=None if rows else ["filename", "maskname", "maskdtname"])
        table.to_csv(root / f"{split}.csv", index=False)
        hashes[f"{split}.csv"] = file_hash(root / f"{split}.csv")
        result.images[split], result.patches[split] = sum(bool(w.rows) for w in own), len(rows)
    for record, w in zip(records, written, strict=True):
        if w.warning:
            result.warnings.append(f"{record.image_id}: {w.warning}")
        if w.notes or w.warning:
            result.notes[record.image_id] = [*w.notes, *([w.warning] if w.warning else [])]
    description |= {"counts": result.images, "patches": result.patches, "notes": result.notes, "tables": hashes}
    (root / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
    return result


def check_prepared(root: Path, options: PrepareOptions, *, training: bool) -> None:
    """Raises DataError if root was prepared here with other options than a config's that decide what its files mean.

    training: whether the training patches matter too. Folders that were not prepared by this program are taken as they
    are.
    """
    if options.source == "prepared":
        return
    before, now = _described(root).get("options"), json.loads(json.dumps(asdict(options)))
    if not isinstance(before, dict):
        return
    if before.get("color") == "rgb":
        del before["color"]  # grey is made of it as it is read
    for key in (*BAKED, *(TRAINING if training else ())):
        if key in before and before[key] != now[key]:
            raise DataError(
                f"{root}: prepared with data.{key}: {before[key]}, the config says {now[key]}; prepare it again with "
                "this config, or give the config a data.root of its own"
            )


def data_hash(root: Path, split: str) -> str:
    """SHA-256 of dataset.json, which lists the hashes of all raw files and tables; of the table where there is none."""
    listed = root / "dataset.json"
    return file_hash(listed if listed.is_file() else root / f"{split}.csv")


def prepare(
    archive: Archive, root: Path, options: PrepareOptions, *, workers: int = 0, quiet: bool = False
) -> Prepared:
    """Write the prepared folder.

    Does nothing where root already holds the result of the same inputs and options. Otherwise everything is written
    beside root and moved there at the end, so that an interruption leaves the old folder as it was.
    workers: processes, 0 for all cores.
    Raises DataError, with all problems of the archive together, for unusable raw data, and for a root that holds other
    people's files; OSError if not writable.
    """
    _check_target(root)
    records: Sequence[Record] = archive.records
    if not archive.problems:
        records = cut_split(records, "test", options.test_fraction, options.split_seed)
        records = cut_split(records, "val", options.validation_fraction, options.split_seed)
    description: dict[str, object] = {
        "tool_version": FORMAT,
        "source": options.source,
        "options": asdict(options),
        "inputs": _inputs(records, options),
        "listing": _listing(records),
    }
    if not archive.problems and (found := _current(root, description)):
        return found
    partial_root = root.with_name(root.name + ".partial")
    shutil.rmtree(partial_root, ignore_errors=True)
    try:
        for folder in FOLDERS.values():
            (partial_root / folder).mkdir(parents=True)
        written, stain = _write_all(records, partial_root, options, workers or os.cpu_count() or 1, quiet)
        problems = archive.problems + [w.problem for w in written if w.problem]
        if problems:
            raise problems_error("data.raw", problems)
        result = _save_tables(partial_root, records, written, description | stain)
        _replace_folder(root, partial_root)
    except BaseException:
        shutil.rmtree(partial_root, ignore_errors=True)
        raise
    return result


def _replace_folder(root: Path, new: Path) -> None:
    old = root.with_name(root.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if root.exists():
        root.rename(old)
    new.rename(root)
    for path in old.iterdir() if old.exists() else ():
        # Notes of the user's beside the prepared files stay; the inspection of the old files does not.
        if path.name != "inspection.html" and not (root / path.name).exists():
            path.rename(root / path.name)
    shutil.rmtree(old, ignore_errors=True)


def prepare_options_of(data: DataConfig, source_options: str = "") -> PrepareOptions:
    """As the config's data section says."""
    default_test = 0.0 if data.has_official_split else 0.2
    return PrepareOptions(
        source=data.source,
        size=data.size,
        color=data.color,
        truncation=data.truncation,
        validation_fraction=data.validation_fraction,
        split_seed=data.split_seed,
        source_options=source_options,
        test_fraction=default_test if data.test_fraction is None else data.test_fraction,
        stain=data.stain,
        stain_target=data.stain_target,
        stretch=data.stretch,
        patch=data.patch,
        stride=data.stride,
        test_patch=data.test_patch,
        crop=data.crop,
        classes=data.classes,
    )


def prepared_root(data: DataConfig, *, training: bool = False) -> Path:
    """data.root. Raises DataError if it was prepared with other options; see `check_prepared`."""
    check_prepared(Path(data.root), prepare_options_of(data), training=training)
    return Path(data.root)
