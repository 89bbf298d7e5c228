"""Running a command: signals from its first moment on, errors of one line, exit codes.

Commands import this before anything that takes time, so that a signal during the other imports is answered too.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from utils.errors import CheckpointError, ConfigError, DataError, Stopped, UsageError, cut, is_out_of_memory

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LINE = 500  # characters of an error
PATIENCE = 10  # seconds


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)  # an exception could be swallowed or reported by what is being imported


def _raise_stopped(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


def _handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


def _is_a_command() -> bool:
    """Whether the program is a file of this repository, or an installed command: tests and notebooks keep their own
    handlers."""
    folder, name = os.path.split(os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or "/"))
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return name.startswith("segsdf-") or root in (folder, os.path.dirname(folder))


if _is_a_command():
    _handle(_exit)


@contextmanager
def importing() -> Iterator[None]:
    """Around imports that take seconds, in the middle of a command: a signal ends it at once, as before its start."""
    if not _is_a_command():
        yield
        return
    _handle(_exit)
    yield
    _handle(_raise_stopped)


class StopFlag:
    """Turns SIGINT and SIGTERM into a flag that loops look at; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        _handle(self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        _handle(signal.SIG_DFL)
        if not _follows():
            print(f"\n{signal.Signals(number).name}: stopping as soon as everything is saved", file=sys.stderr)

    def __call__(self) -> bool:
        return self.number is not None

    def raise_if_set(self) -> None:
        if self.number is not None:
            raise Stopped(self.number)


def _follows() -> bool:
    """Whether torchrun has started this process and a first one on this machine."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ["LOCAL_RANK"] != "0"


def _failed(error: object) -> int:
    if _follows():  # torchrun ends it before it says what the first process has said
        _handle(signal.SIG_DFL)
        time.sleep(PATIENCE)
    print("error: " + "\n".join(cut(line, LINE) for line in str(error).splitlines()), file=sys.stderr)
    return 2


def run_command(command: Callable[[], None]) -> int:
    """Run a command; return its exit code: 0, 2 for what the user can mend, 130 or 143 after a signal.

    A signal raises Stopped at once, unless the command has a StopFlag.
    """
    _handle(_raise_stopped)
    try:
        command()
    except Stopped as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ConfigError, DataError, CheckpointError, UsageError) as error:
        return _failed(error)
    except OSError as error:
        name = f"{cut(error.filename, 150)}: " if error.filename else ""
        return _failed(f"{name}{error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _failed(f"out of memory ({cut(error, 120) or 'MemoryError'}); a smaller network, batch or image helps")
    return 0
