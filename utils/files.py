"""Files and folders that are whole or absent: written under a hidden name beside their place, then moved there."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.errors import Unfinished

_LEFT = re.compile(r"\.(\d+|old)\..")  # what `_hidden` and `_old` make


def _hidden(path: Path) -> Path:
    """A name beside `path` for this process alone, with its suffix, from which writers tell the format."""
    return path.with_name(f".{os.getpid()}.{path.name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path, hidden: Path | None = None) -> Iterator[None]:
    """A disk's OSError names a file: `path` where it has no name, or a hidden one that stands for it."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's zip writer makes a RuntimeError of it
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        name = str(cause.filename or path).replace(str(hidden or path), str(path))
        raise OSError(cause.errno, cause.strerror, name) from None


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Gives a hidden name to write to. At the end of the block the file takes the place of `path`; an exception leaves
    nothing of it, and what stood at `path`. sync: what nobody can make again outlasts a power failure, too.

    Raises OSError with the name of the file.
    """
    temporary = _hidden(path)
    with naming(path, temporary):
        try:
            yield temporary
            if sync:
                _sync(temporary)
            os.replace(temporary, path)
            if sync:
                _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, part: Path | None = None) -> Iterator[Path]:
    """As `whole_file`, for a folder that is new and empty at the start of the block.

    part: the name to write to, beside `path`. A process that is killed or stopped leaves it, and the next one has what
    it holds at the start of its block; only errors remove it.
    """
    temporary, stopped = part or _hidden(path), False
    if part is None:
        shutil.rmtree(temporary, ignore_errors=True)
    with naming(path, temporary):
        try:
            temporary.mkdir(parents=True, exist_ok=part is not None)
            yield temporary
            if path.exists():
                os.rename(path, _old(path))
            os.rename(temporary, path)
        except BaseException as error:
            stopped = isinstance(error, Unfinished) or not isinstance(error, Exception)
            raise
        finally:
            restore_folder(path)
            if part is None or not stopped:
                shutil.rmtree(temporary, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".old.{path.name}")


def restore_folder(path: Path) -> None:
    """Mend what is left where a new folder was taking the place of `path`: the old one comes back, or goes if the new
    one is there."""
    if not path.exists() and _old(path).is_dir():
        os.rename(_old(path), path)
    shutil.rmtree(_old(path), ignore_errors=True)


def remove_leftovers(folder: Path, *patterns: str) -> None:
    """Of processes that were killed while they wrote into a folder, or one in it, that is held now."""
    for path in [path for pattern in patterns or (".*", "*/.*") for path in folder.glob(pattern)]:
        if _LEFT.match(path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif _LEFT.match(path.name):
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file as a whole."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """A .npy file; by way of memory, as numpy does not say why it could not write to a disk."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())
