"""What the commands share: options, one-line errors with exit code 2, clean stops on a signal."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType

from utils.config import ConfigError, dump_config, load_config
from utils.errors import CheckpointError, DataError, Stopped, UsageError
from utils.schema import Config


class StopFlag:
    """Turns SIGINT and SIGTERM into a flag that loops look at; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        print(f"\n{signal.Signals(number).name}: stopping as soon as everything is saved", file=sys.stderr)

    def __call__(self) -> bool:
        return self.number is not None

    def raise_if_set(self) -> None:
        if self.number is not None:
            raise Stopped(self.number)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def stop_on_sigterm() -> None:
    """For commands that have nothing to save: SIGTERM raises Stopped at once, as Ctrl-C raises KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _raise_stopped)


def common_parser(description: str, *, config_needed: bool = True) -> argparse.ArgumentParser:
    """A parser with the options all commands share."""
    parser = argparse.ArgumentParser(description=description)
    note = "" if config_needed else "; default: that of --run or --weights"
    parser.add_argument("--config", required=config_needed, metavar="YAML", help=f"the experiment{note}")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one key"
    )
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and stop")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, only results and errors")
    return parser


def read_config(args: argparse.Namespace) -> Config | None:
    """The config of the arguments; None after --print-config has shown it."""
    return shown(load_config(args.config, args.overrides), args)


def shown(config: Config, args: argparse.Namespace) -> Config | None:
    """The config; None after --print-config has shown it."""
    if args.print_config:
        print(dump_config(config), end="")
        return None
    return config


def log_to_console(quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def run_command(command: Callable[[], None]) -> int:
    """Run a command; return its exit code: 0, 2 for what the user can mend, 130 or 143 after a signal."""
    try:
        command()
    except Stopped as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        return 130
    except (ConfigError, DataError, CheckpointError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0
