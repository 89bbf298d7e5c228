"""What the commands turn into one line and an exit code."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

# What CUDA, cuBLAS, cuDNN, MPS and the host allocator say.
ALLOCATION = re.compile(r"out of memory|can't allocate|cannot allocate|not enough memory|_ALLOC_FAILED", re.IGNORECASE)


class ConfigError(ValueError):
    """A config that cannot be used; the message is one line: file, key, value, what is allowed."""


class UsageError(ValueError):
    """Arguments or a state of the run folder that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used."""


class DataError(ValueError):
    """Raw or prepared data that cannot be used; the message names the file and what is expected."""


class Unfinished(UsageError):
    """What is done by now is kept, and the same command goes on with it."""


class Stopped(BaseException):
    """A signal asked for a stop and everything is saved. As KeyboardInterrupt, no `except Exception` holds it up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def cut(text: object, most: int = 80) -> str:
    """One printable line of at most `most` characters; a longer one loses its middle."""
    head = most * 2 // 3
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= most else f"{line[:head]} ... {line[head + 5 - most :]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Of the host or of an accelerator."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(ALLOCATION.search(str(error))))


def problems_error(where: str, problems: Sequence[str]) -> DataError:
    """One problem as it is, several below each other: whoever mends an archive wants to see all of them at once."""
    if len(problems) == 1:
        return DataError(problems[0])
    return DataError("\n  ".join([f"{where}: {len(problems)} problems", *problems]))
