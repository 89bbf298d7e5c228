"""Train a denoiser of segmentations: python main.py --config cfg/glas.yaml"""

from __future__ import annotations

from utils.command import StopFlag, importing, run_command

import sys
from pathlib import Path

from utils.cli import common_parser, log_to_console, read_config
from utils.runs import checked_run


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Train a denoiser of segmentations.", config_of="--resume")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run folder")
    args = parser.parse_args(argv)
    resumed = checked_run(Path(args.resume), "--resume ") if args.resume else None
    log_to_console(args.quiet)
    config = read_config(args, resumed)
    if config is None:
        return
    with importing():
        from training.session import run_training
    run_training(config, resumed, args, StopFlag())


def run() -> int:
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
