"""The exception of this package that a user can cause."""

from __future__ import annotations

import signal
from collections.abc import Sequence


class UsageError(ValueError):
    """Arguments or a state of the run folder that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used."""


class Stopped(Exception):
    """A signal asked for a stop and everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class DataError(ValueError):
    """Raw or prepared data that cannot be used; the message names the file and what is expected."""


def problems_error(where: str, problems: Sequence[str]) -> DataError:
    """One problem as it is, several below each other: whoever mends an archive wants to see all of them at once."""
    if len(problems) == 1:
        return DataError(problems[0])
    return DataError("\n  ".join([f"{where}: {len(problems)} problems", *problems]))
