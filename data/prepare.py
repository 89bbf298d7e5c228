"""Raw archive to prepared patches: python -m data.prepare --config cfg/glas.yaml"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from data.preparation import Prepared, prepare, prepare_options_of
from data.sources import dsb2018, folder, glas, lidc, monuseg, phantom
from data.sources.record import Archive
from utils.cli import common_parser, log_to_console, read_config, run_command, stop_on_sigterm
from utils.data_schema import DataConfig
from utils.errors import UsageError

log = logging.getLogger("prepare")


def list_archive(data: DataConfig) -> tuple[Archive, str]:
    """The records of the configured source, and the options of that source for the fingerprint."""
    raw, limit = Path(data.raw or ""), int(data.max_megapixels * 1e6)
    partial = {"allow_partial": data.allow_partial}
    if data.source == "phantom":
        drawn = phantom.PhantomOptions(**data.phantom.model_dump())
        return phantom.records(drawn), json.dumps(data.phantom.model_dump())
    if data.source == "glas":
        return glas.records(raw, data.allow_partial, limit), json.dumps(partial)
    if data.source == "monuseg":
        return monuseg.records(raw, data.allow_partial, limit), json.dumps(partial)
    if data.source == "lidc":
        return lidc.records(raw, limit), ""
    if data.source == "dsb2018":
        return dsb2018.records(raw, limit), ""
    if data.source == "folder":
        options = folder.FolderOptions(
            data.instances, data.foreground, data.classes, data.window, data.group_column, limit
        )
        return folder.records(raw, options), json.dumps(asdict(options))
    raise UsageError("data.source: prepared has nothing to prepare; its root holds the CSV files already")


def _summary(root: str, result: Prepared) -> str:
    images = ", ".join(f"{n} {split}" for split, n in result.images.items())
    patches = ", ".join(f"{n}" for n in result.patches.values())
    cut = "" if result.images == result.patches else f" images; {patches} patches"
    return f"{'prepared' if result.written else 'up to date, nothing to do'}: {root} ({images}{cut})"


def main(argv: list[str] | None = None) -> None:
    args = common_parser("Prepare a data set: resize, signed distances, CSV files.").parse_args(argv)
    config = read_config(args)
    if config is None:
        return
    stop_on_sigterm()
    log_to_console(args.quiet)
    data = config.data
    archive, source_options = list_archive(data)
    options = prepare_options_of(data, source_options)
    result = prepare(archive, Path(data.root), options, workers=data.workers, quiet=args.quiet)
    for warning in result.warnings:
        log.warning("warning: %s", warning)
    if result.notes:
        name, notes = next(iter(result.notes.items()))
        log.info("notes on %d images in %s/dataset.json, such as %s: %s", len(result.notes), data.root, name, notes[0])
    print(_summary(data.root, result))


if __name__ == "__main__":
    sys.exit(run_command(main))
