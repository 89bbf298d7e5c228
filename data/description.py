"""dataset.json: what a prepared folder says of itself, and whether that is what a config asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from utils.data_schema import DataConfig
from utils.errors import DataError
from utils.reading import checked, read_json
from utils.runs import file_hash
from utils.weights import StainTarget

FORMAT = 2  # raise when the prepared files change for the same options
STAIN_FORMAT = 2  # the same of files whose stains were normalised
# Columns of the CSV files that name files, and whose cells may be a `;`-separated list.
COLUMNS = ("filename", "maskname", "maskdtname", "instancename", "classname", "raternames", "raterdtnames")
# The keys of the data section that decide the prepared files, besides test_share and those of the source.
DECIDING = ("source", "size", "color", "truncation", "validation_fraction", "split_seed", "stain", "stain_target",
            "stretch", "patch", "stride", "test_patch", "crop", "classes")  # fmt: skip
# Those that decide what the files mean; those that only the training patches depend on; and those, with the source's
# own, that say which images a new training has.
BAKED = ("size", "color", "truncation", "stain", "stain_target", "stretch", "test_patch", "classes")
TRAINING = ("patch",)
CHOSEN = ("validation_fraction", "test_fraction", "split_seed", "stride")
OF_SOURCE = {"glas": ("allow_partial",), "monuseg": ("allow_partial",),
             "folder": ("instances", "foreground", "classes", "window", "group_column", "max_pixels")}  # fmt: skip


class Known(TypedDict, total=False):
    """What is read of dataset.json besides the comparison of the whole."""

    tool_version: int
    options: dict[str, Any]
    stain_target: StainTarget
    notes: dict[str, list[str]]


def options_of(data: DataConfig) -> dict[str, Any]:
    """What decides the prepared files, besides the raw ones, as dataset.json says it."""
    names = OF_SOURCE.get(data.source, ())
    own = data.phantom.model_dump() if data.source == "phantom" else {name: getattr(data, name) for name in names}
    options = data.model_dump(mode="json", include=set(DECIDING))
    return options | {"test_fraction": data.test_share, "source_options": json.dumps(own) if own else ""}


def formats_of(data: DataConfig) -> dict[str, int]:
    """Which way of making prepared files made them, as dataset.json says it."""
    return {"tool_version": FORMAT} | ({} if data.stain == "none" else {"stain_version": STAIN_FORMAT})


def read_description(root: Path) -> dict[str, Any]:
    """dataset.json; empty for folders made by hand, which have none. Raises DataError where it is damaged."""
    path = root / "dataset.json"
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = read_json(path, dict[str, Any], DataError)
        known: Known = checked(content, Known, path, DataError)
        lacking = {*BAKED, *TRAINING} - {"stretch"} - known.get("options", {}).keys()
        if known.get("tool_version") == FORMAT and lacking:
            raise DataError(f"{path}: damaged (options lack {', '.join(sorted(lacking))})")
    except DataError as error:
        raise DataError(f"{error}; prepare the data again, or delete it if the folder was made by hand") from None
    return content


def _of_source(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the source has decided, as keys of the data section; not what only allows it to read."""
    try:
        own = json.loads(options.get("source_options") or "{}") if options["source"] == "folder" else {}
        return {key: value for key, value in own.items() if key != "max_pixels"}
    except (ValueError, TypeError, KeyError, AttributeError):  # of a damaged or an old folder
        return {}


def check_prepared(data: DataConfig, *, training: bool) -> None:
    """Raises DataError if data.root was prepared with other options that decide what its files mean.

    training: whether the training patches matter too. Folders that were not prepared by this program are taken as they
    are.
    """
    _compare(data, (*BAKED, "window", *(TRAINING if training else ())))


def check_chosen(data: DataConfig) -> None:
    """Raises DataError if data.root was prepared with another split, or with other rules for what its source holds."""
    _compare(data, (*CHOSEN, *OF_SOURCE.get(data.source, ())))


def _compare(data: DataConfig, keys: Sequence[str]) -> None:
    root = Path(data.root)
    options, now = read_description(root).get("options"), options_of(data)
    if data.source == "prepared" or options is None:
        return
    before, now = {**options, **_of_source(options)}, {**now, **_of_source(now)}
    for key in keys:
        made_grey = key == "color" and before.get(key) == "rgb"  # as it is read
        if key in before and key in now and before[key] != now[key] and not made_grey:
            raise DataError(
                f"{root}: prepared with data.{key}: {before[key]}, the config says {now[key]}; prepare it again with "
                "this config, or give the config a data.root of its own"
            )


def data_hash(root: Path, split: str) -> str:
    """SHA-256 of dataset.json, which lists the hashes of all raw files and tables; of the table where there is none."""
    listed = root / "dataset.json"
    return file_hash(listed if listed.is_file() else root / f"{split}.csv")
