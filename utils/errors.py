"""What the commands turn into one line and an exit code."""

from __future__ import annotations

import signal


class UsageError(ValueError):
    """Arguments or a state of the run folder that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used."""


class Stopped(Exception):
    """A signal asked for a stop and everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
