"""One process at a time: lock files that say who holds them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UsageError
from utils.files import naming


@contextmanager
def held(path: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which is gone afterwards. Raises UsageError where another process does, at once or
    after `wait` seconds, -1 for never.

    The system frees the lock of a process that was killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        try:
            who = path.read_text(errors="replace")[:200]
        except OSError:
            who = ""
        raise UsageError(f"{what} is in use by {who or 'another process'}; wait until it has ended") from None
    try:
        with naming(path):
            path.write_text(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever waits for it looks for it anew
        lock.release()
