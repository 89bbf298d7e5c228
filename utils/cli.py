"""What the commands share: their options, the config these name, and the log on the console."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import NoReturn

from utils.config import dump_config, load_config
from utils.errors import UsageError
from utils.schema import Config
from utils.shipped import config_file

log = logging.getLogger(__name__)


def _given(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; an empty text, as of a shell variable that is not set, is one."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description)
        self.register("type", None, _given)
        self.register("type", Path, lambda text: Path(_given(text)))

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the options")

    def given(self, args: argparse.Namespace) -> set[str]:
        """The options that differ from their defaults, such as --run."""
        options = [action for action in self._actions if action.option_strings and action.dest in args]
        return {action.option_strings[0] for action in options if getattr(args, action.dest) != action.default}


def common_parser(description: str, config_of: str = "") -> Parser:
    """A parser with the options all commands share. config_of: options whose config is taken without --config."""
    parser = Parser(description)
    note = f"; default: that of {config_of}" if config_of else ""
    parser.add_argument("--config", required=not config_of, metavar="YAML", help=f"the experiment{note}")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one key"
    )
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and stop")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, only results and errors")
    return parser


def read_config(args: argparse.Namespace, run: Path | None = None) -> Config | None:
    """The config of the arguments, without --config that of a run folder; None after --print-config has shown it."""
    if args.config is None:
        if run is None:
            raise UsageError("--config, or a run to take it from, is needed; --help lists the options")
        args.config = run / "config.yaml"
    path = config_file(args.config)
    if path != Path(args.config):
        log.info("--config %s: %s", args.config, path)
    return shown(load_config(path, args.overrides), args)


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
