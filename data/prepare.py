"""Raw archive to prepared patches: python -m data.prepare --config cfg/glas.yaml

All cores at work, all or nothing: the folder is written beside its place and moved there at the end. After a stop or a
kill the same command goes on with the images that are done.
"""

from __future__ import annotations

from utils.command import run_command

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from glob import escape
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.description import COLUMNS, formats_of, options_of, read_description
from data.images import read_image, read_table
from data.names import unique_names
from data.pool import cores, pool_of
from data.recipe import FOLDERS, Written, check_microns, read_sample, write_image
from data.sources import dsb2018, folder, glas, lidc, monuseg, phantom
from data.sources.record import Archive, Record
from data.splits import cut_split
from data.stain import Stain, StainError, central_stain, fit_stain
from utils.cli import common_parser, log_to_console, read_config
from utils.data_schema import DataConfig
from utils.errors import DataError, UsageError, problems_error
from utils.files import remove_leftovers, restore_folder, whole_folder, write_text
from utils.locks import held
from utils.runs import file_hash

JOURNAL = ".done.jsonl"
CANDIDATES = 9  # training images among which the most typical stain is looked for
ARCHIVES = {"phantom": phantom, "glas": glas, "monuseg": monuseg, "lidc": lidc, "dsb2018": dsb2018, "folder": folder}
ENDINGS = re.compile(r"(_\d+_\d+)?(_mask|_instances|_classes|_rater\d+)?$")  # of an image's files

log = logging.getLogger("prepare")


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


def list_archive(data: DataConfig) -> Archive:
    """The records of the configured source. Raises DataError where there is no such archive."""
    if data.source == "prepared":
        raise UsageError("data.source: prepared has nothing to prepare; its root holds the CSV files already")
    archive: Archive = ARCHIVES[data.source].records(data)
    return archive


def _with_unique_names(records: Sequence[Record]) -> list[Record]:
    """Records whose image_id is fit for files, of which no two come to have the same name."""
    ids = [record.image_id for record in records]
    names = unique_names(ids)
    endings = [name for name in names if (stem := ENDINGS.sub("", name)) != name and stem in names]  # a, a_mask
    return [replace(r, image_id=name) for r, name in zip(records, unique_names(ids, endings), strict=True)]


def _checked(check: Callable[[], None]) -> str | None:
    try:
        check()
    except DataError as error:
        return str(error)
    return None


def _problems(records: Iterable[Record], workers: int) -> list[str]:
    """What a quick look at the files finds wrong, of sources that have one."""
    checks = [record.check for record in records if record.check is not None]
    with pool_of(min(workers or cores(), max(1, len(checks)))) as pool:
        return [problem for problem in pool.map(_checked, checks) if problem is not None]


def _hashes(records: Iterable[Record], data: DataConfig) -> dict[Path, str]:
    """Of all raw files that are there."""
    paths = [path for path in sorted({path for record in records for path in record.files}) if path.is_file()]
    with ThreadPoolExecutor(data.workers or cores()) as pool:
        return dict(zip(paths, pool.map(file_hash, paths), strict=True))


def _inputs(records: Iterable[Record], hashes: Mapping[Path, str], data: DataConfig) -> dict[str, str]:
    """Raw file to hash, by its path inside the archive: a moved archive is the same archive."""
    folders = [path.parent for record in records for path in record.files]
    base = os.path.commonpath(folders) if folders else ""
    inputs = {os.path.relpath(path, base): digest for path, digest in hashes.items()}
    if data.stain_target and Path(data.stain_target).is_file():
        inputs["stain target"] = file_hash(Path(data.stain_target))
    return inputs


def _across_splits(records: Iterable[Record], hashes: Mapping[Path, str]) -> list[str]:
    """A line for each picture whose file is in two splits, perhaps under two names."""
    found: dict[str, dict[str, str]] = {}
    for record in records:
        if record.files and (digest := hashes.get(record.files[0])):
            found.setdefault(digest, {}).setdefault(record.split, record.image_id)
    twins = (" = ".join(f"{split}/{name}" for split, name in own.items()) for own in found.values() if len(own) > 1)
    return [f"the same picture in two splits: {twin}" for twin in twins]


def _listing(records: Iterable[Record]) -> str:
    """A hash of who is in which split, with the attributes that go into the CSV files."""
    lines = [json.dumps([r.image_id, r.split, r.group, dict(r.attributes)]) for r in records]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files_of(table: pd.DataFrame) -> Iterator[str]:
    """All files that a CSV file names."""
    for column in COLUMNS:
        for cell in table.get(column, ()):
            yield from cell.split(";")


def _current(root: Path, description: dict[str, object]) -> Prepared | None:
    """What root holds, if that is what `description` says, with every file its CSV files name."""
    try:
        found = read_description(root)
        if any(found.get(key) != value for key, value in json.loads(json.dumps(description)).items()):
            return None
        for name, digest in found["tables"].items():
            if file_hash(root / name) != digest:
                return None
            if not all((root / path).is_file() for path in _files_of(read_table(root / name))):
                return None
        return Prepared(found["counts"], found["patches"], False)
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _stain_or_none(record: Record, method: str) -> Stain | None:
    """None for images that cannot be used; whoever prepares them says why."""
    try:
        sample = read_sample(record)
        return None if sample is None else fit_stain(sample.image, method)
    except (DataError, StainError):
        return None


def _named_target(records: Sequence[Record], name: str, method: str) -> tuple[str, Stain]:
    record = next((r for r in records if r.image_id == name), None)
    if record is None and not Path(name).is_file():
        known = ", ".join(r.image_id for r in records[:3])
        raise DataError(f"data.stain_target: {name} is neither a file nor an image of the archive ({known}, ...)")
    try:
        sample = read_sample(record) if record else None
        return name, fit_stain(sample.image if sample else read_image(Path(name)), method)
    except StainError as error:
        raise DataError(f"data.stain_target: {name}: {error}; choose another image") from None


def stain_target(records: Sequence[Record], data: DataConfig, pool: Executor) -> tuple[str | None, Stain | None]:
    """Name and stain of the image all others are normalised to; by default the most typical of a few evenly chosen
    training images. Raises DataError if none has enough tissue."""
    if data.stain == "none" or not records:
        return None, None
    if data.stain_target is not None:
        return _named_target(records, data.stain_target, data.stain)
    training = [r for r in records if r.split == "train"] or list(records)
    chosen = [training[i] for i in np.unique(np.linspace(0, len(training) - 1, CANDIDATES).astype(int))]
    fitted = zip(chosen, pool.map(partial(_stain_or_none, method=data.stain), chosen), strict=True)
    usable = [(record, stain) for record, stain in fitted if stain is not None]
    if not usable:
        names = ", ".join(r.image_id for r in chosen)
        raise DataError(
            f"data.stain: none of {names} can be read and has enough tissue to be the target; set data.stain_target"
        )
    record, stain = usable[central_stain([stain for _, stain in usable])]
    return record.image_id, stain


def _checksums(root: Path, written: Written) -> dict[str, int]:
    """CRC-32 of the files of an image."""
    names = {name for row in written.rows for column in COLUMNS for name in str(row.get(column, "")).split(";") if name}
    return {name: zlib.crc32((root / name).read_bytes()) for name in sorted(names)}


def _write_one(record: Record, root: Path, data: DataConfig, target: Stain | None) -> tuple[Written, dict[str, int]]:
    written = write_image(record, root, data, target)
    return written, _checksums(root, written)


class _Journal:
    """Which images are done in a folder that is being written, so that another process can go on.

    A line for what all of them follow from, then one for each. done: by image_id, those whose files are whole. Anything
    that follows from something else is removed.
    """

    def __init__(self, root: Path, description: Mapping[str, object]) -> None:
        self.root, self.path, self.done = root, root / JOURNAL, dict[str, Written]()
        head, kept = json.dumps(description), []
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        if lines[:1] != [head]:
            shutil.rmtree(root)
            root.mkdir(exist_ok=True)
        for line in lines[1:] if lines[:1] == [head] else ():
            with suppress(OSError, ValueError, TypeError, KeyError):  # torn, or of files that are
                name, rows, notes, warning, sums = json.loads(line)
                written = Written(tuple(rows), tuple(notes), warning)
                if _checksums(root, written) == sums:
                    self.done[name] = written
                    kept.append(line)
        write_text(self.path, "\n".join([head, *kept]) + "\n")

    def add(self, name: str, written: Written, sums: Mapping[str, int]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([name, written.rows, written.notes, written.warning, sums]) + "\n")


def _write(
    records: list[Record], root: Path, data: DataConfig, journal: _Journal, quiet: bool
) -> tuple[list[Written], dict[str, object]]:
    """What became of every record, and what dataset.json says of the stain target. Raises DataError with the problems
    of all images."""
    workers, done = data.workers or cores(), journal.done
    left = [record for record in records if record.image_id not in done]
    if done:
        log.info("going on with %d images; %d are done", len(left), len(done))
    with pool_of(min(workers, max(1, len(left)))) as pool:
        name, target = stain_target(records, data, pool)
        job = partial(_write_one, root=root, data=data, target=target)
        results = pool.map(job, left, chunksize=max(1, min(4, len(left) // (8 * workers))))
        bar = tqdm(results, total=len(left), desc="preparing", unit="image", disable=quiet or not left)
        for record, (written, sums) in zip(left, bar, strict=True):
            done[record.image_id] = written
            if not written.problem:
                journal.add(record.image_id, written, sums)
    if problems := [w.problem for record in records if (w := done[record.image_id]).problem]:
        raise problems_error("data.raw", problems)
    written_all = [done[record.image_id] for record in records]
    if target is None:
        return written_all, {}
    stains = {"matrix": target.matrix.tolist(), "strength": target.strength.tolist()}
    return written_all, {"stain_target": {"image": name, **stains}}


def _save_tables(root: Path, records: list[Record], written: list[Written], description: dict[str, object]) -> Prepared:
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


def _carry_over(root: Path, new: Path) -> None:
    """The user's own files of the old folder into the new one: all that the preparation and the inspection did not
    write."""
    tables = [root / f"{split}.csv" for split in FOLDERS]
    ours = {"dataset.json", "inspection.html", *(table.name for table in tables), *(f"packed/{s}" for s in FOLDERS)}
    for table in tables:
        with suppress(DataError):  # of a table that nobody can read any more, files are kept as the user's own
            ours |= {name.lstrip("/") for name in _files_of(read_table(table))}

    def left_out(where: str, names: list[str]) -> set[str]:
        paths = {name: os.path.relpath(os.path.join(where, name), root) for name in names}
        return {name for name, path in paths.items() if path in ours or (new / path).is_file()}

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(source, target, follow_symlinks=False)

    shutil.copytree(root, new, symlinks=True, ignore=left_out, copy_function=link, dirs_exist_ok=True)


def prepare(data: DataConfig, *, quiet: bool = False) -> Prepared:
    """Write the prepared folder data.root from the archive data.raw.

    Does nothing where root already holds the result of the same inputs and options. Otherwise everything is written
    beside root and moved there at the end, so that an interruption leaves the old folder as it was; images done by then
    are not made again where inputs and options are still the same.
    Raises DataError, with all problems of listing the archive or else all of reading its images, for unusable raw data,
    and for a root that holds other people's files; UsageError where another process prepares it; OSError if not
    writable.
    """
    root, archive = Path(data.root).resolve(), list_archive(data)
    if not root.name:
        raise DataError(f"data.root: {root} holds more than prepared data; choose another")
    if archive.problems:
        raise problems_error("data.raw", [*archive.problems, *_problems(archive.records, data.workers)])
    records = cut_split(_with_unique_names(archive.records), "test", data.test_share, data.split_seed)
    records = cut_split(records, "val", data.validation_fraction, data.split_seed)
    with held(root.with_name(f".{root.name}.lock"), f"data.root: {data.root}"):
        restore_folder(root)
        remove_leftovers(root.parent, f".*.{escape(root.name)}")
        if root.exists() and not root.is_dir():
            raise DataError(f"data.root: {root} is not a folder")
        if root.is_dir() and any(root.iterdir()) and not (root / "dataset.json").is_file():
            raise DataError(f"data.root: {root} holds files not prepared here (no dataset.json); choose another")
        hashes = _hashes(records, data)
        description: dict[str, object] = {
            **formats_of(data),
            "source": data.source,
            "options": options_of(data),
            "inputs": _inputs(records, hashes, data),
            "listing": _listing(records),
        }
        sizes = [_checked(partial(check_microns, record, data.microns_per_pixel)) for record in records]
        if sizes := [problem for problem in sizes if problem is not None]:
            raise problems_error("data.raw", sizes)  # also where the files are as they were
        if found := _current(root, description):
            return found
        if problems := _problems(records, data.workers):
            raise problems_error("data.raw", problems)
        with whole_folder(root, part=root.with_name(f".part.{root.name}")) as new:
            journal = _Journal(new, description)
            for name in FOLDERS.values():
                (new / name).mkdir(exist_ok=True)
            written, stain = _write(records, new, data, journal, quiet)
            result = _save_tables(new, records, written, description | stain)
            if root.is_dir():
                _carry_over(root, new)
            journal.path.unlink()
    result.warnings += _across_splits(records, hashes)
    return result


def main(argv: list[str] | None = None) -> None:
    args = common_parser("Prepare a data set: resize, signed distances, CSV files.").parse_args(argv)
    log_to_console(args.quiet)
    config = read_config(args)
    if config is None:
        return
    data = config.data
    result = prepare(data, quiet=args.quiet)
    for warning in result.warnings:
        log.warning("warning: %s", warning)
    if result.notes:
        name, notes = next(iter(result.notes.items()))
        log.info("notes on %d images in %s/dataset.json, such as %s: %s", len(result.notes), data.root, name, notes[0])
    images = ", ".join(f"{n} {split}" for split, n in result.images.items())
    patches = ", ".join(f"{n}" for n in result.patches.values())
    cut = "" if result.images == result.patches else f" images; {patches} patches"
    print(f"{'prepared' if result.written else 'up to date, nothing to do'}: {data.root} ({images}{cut})")


def run() -> int:
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
