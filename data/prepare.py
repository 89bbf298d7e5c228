"""Raw archive to prepared patches: python -m data.prepare --config cfg/glas.yaml"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType

from data.preparation import PrepareOptions, prepare
from data.sources import glas, phantom
from data.sources.record import Record
from utils.cli import common_parser, read_config, run_command
from utils.errors import Stopped, UsageError
from utils.schema import DataConfig


def list_records(data: DataConfig) -> tuple[list[Record], str]:
    """The records of the configured source, and the options of that source for the fingerprint."""
    if data.source == "phantom":
        options = phantom.PhantomOptions(**data.phantom.model_dump())
        return phantom.records(options), json.dumps(data.phantom.model_dump())
    if data.source == "glas" and data.raw is not None:
        return glas.records(Path(data.raw), data.allow_partial), json.dumps({"allow_partial": data.allow_partial})
    raise UsageError("data.source: prepared has nothing to prepare; its root holds the CSV files already")


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def main(argv: list[str] | None = None) -> None:
    args = common_parser("Prepare a data set: resize, signed distances, CSV files.").parse_args(argv)
    config = read_config(args)
    if config is None:
        return
    signal.signal(signal.SIGTERM, _stop)
    data = config.data
    records, source_options = list_records(data)
    options = PrepareOptions(
        source=data.source,
        size=data.size,
        color=data.color,
        truncation=data.truncation,
        validation_fraction=data.validation_fraction,
        split_seed=data.split_seed,
        source_options=source_options,
    )
    counts, written = prepare(records, Path(data.root), options, workers=data.workers, quiet=args.quiet)
    summary = ", ".join(f"{n} {split}" for split, n in counts.items())
    print(f"{'prepared' if written else 'up to date, nothing to do'}: {data.root} ({summary})")


if __name__ == "__main__":
    sys.exit(run_command(main))
