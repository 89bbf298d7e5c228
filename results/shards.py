"""Processes that fill one folder of results together, each with its share of the images.

Each holds the lock of its share. Who is done leaves a mark; who finds the marks of all others there writes what is
written of all images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UsageError, cut
from utils.files import naming, remove_leftovers, write_json
from utils.locks import held
from utils.reading import read_json
from utils.runs import folders_with, new_folder, plain, settle
from utils.share import WHOLE, Share, torchrun_share

WAIT = 30.0  # seconds, for others that hold a folder for a moment
AT_ONCE = ".shard-images.json"


def share_of(shard: str | None) -> Share:
    """That of --shard I/N or of torchrun, else the whole. Raises UsageError."""
    share = torchrun_share()
    if shard is None:
        return share
    if share.count > 1:
        raise UsageError("--shard: leave it out, torchrun shares out the images")
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise UsageError(f"--shard {cut(shard)}: I/N is expected, with I from 1 to N")
    return Share(number - 1, count)


def _of_share(folder: Path, rank: int, count: int, suffix: str) -> Path:
    return folder / f".shard-{rank + 1}-of-{count}.{suffix}"


@contextmanager
def held_share(folder: Path, share: Share) -> Iterator[None]:
    """Hold a share of a folder whose settings are noted. Raises UsageError where another process does, or where the
    folder is being shared among another number."""
    refuse_shares(folder, share.count)
    lock = _of_share(folder, share.rank, share.count, "lock")
    with held(lock, f"shard {share.rank + 1}/{share.count} of {folder}"):
        _of_share(folder, share.rank, share.count, "json").unlink(missing_ok=True)
        yield


def refuse_shares(folder: Path, but: int | None = None) -> None:
    """Raises UsageError where a share of a folder is held; but: where it is none of so many."""
    for lock in folder.glob(".shard-*.lock"):
        if not lock.name.endswith(f"-of-{but}.lock"):
            with held(lock, str(folder)):
                pass


def settle_alone(folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """`settle` in a folder that is held by one process for itself; what a killed process has left half-written goes.
    Raises UsageError where a share of it is held."""
    refuse_shares(folder)
    for mark in folder.glob(".shard-*.json"):
        mark.unlink()
    remove_leftovers(folder)
    settle(folder, settings, resume)


def agreed(folder: Path, share: Share, images: int) -> int:
    """How many images are drawn at once in a folder that is shared: as many as its first process wanted, by which all
    divide the images alike on any device."""
    if share.count == 1:
        return images
    noted = folder / AT_ONCE
    with held(folder / ".lock", str(folder), WAIT):
        if not noted.is_file():
            write_json(noted, images)
        return read_json(noted, int)


@contextmanager
def last_share(folder: Path, share: Share, problems: Sequence[str] = ()) -> Iterator[list[str] | None]:
    """After the images of a share: the problems of all shares, where all others are done, and nobody else is at work
    there in the block; else None."""
    if share.count == 1:
        yield list(problems)
        return
    marks = [_of_share(folder, rank, share.count, "json") for rank in range(share.count)]
    with held(folder / ".lock", str(folder), WAIT):
        write_json(marks[share.rank], list(problems))
        if not all(mark.is_file() for mark in marks):
            yield None
            return
        remove_leftovers(folder)
        yield [problem for mark in marks for problem in read_json(mark, list[str])]
        for mark in (*marks, folder / AT_ONCE):
            mark.unlink(missing_ok=True)


def _unfinished(folders: Sequence[Path], settings: Mapping[str, Any]) -> Path | None:
    """The newest of these settings."""
    for folder in reversed(folders):
        begun = not (folder / "report.html").is_file()
        if begun and read_json(folder / "settings.json", dict[str, Any]) == plain(settings):
            return folder
    return None


@contextmanager
def open_folder(
    run: Path, settings: Mapping[str, Any], resume: bool, kind: str = "samples", share: Share = WHOLE
) -> Iterator[Path]:
    """A new folder under run/kind, or with `resume` the newest one, whose settings must have been the same; held.

    share: of the images. Where it is not the whole, a folder of these settings that has no report yet is everybody's.
    """
    parent = run / kind

    def chosen() -> Path:
        folders = folders_with(parent, "settings.json")
        if resume and not folders:
            raise UsageError(f"--resume: {parent} has nothing to go on with")
        begun = None if share.count == 1 else _unfinished(folders, settings)
        return folders[-1] if resume else begun or new_folder(parent)

    if share.count == 1:
        folder = chosen()
        with held(folder / ".lock", str(folder)), naming(folder):
            settle_alone(folder, settings, resume)
            yield folder
        return
    with held(parent / ".lock", str(parent), WAIT):
        folder = chosen()
        with held(folder / ".lock", str(folder), WAIT):
            settle(folder, settings, (folder / "settings.json").is_file())
    with held_share(folder, share), naming(folder):
        yield folder
