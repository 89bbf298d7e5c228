"""Reading what a broken disk, another program or a stranger may have written: limits first, then a schema."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic_core import from_json

from utils.errors import CheckpointError, DataError, Stopped, UsageError

LARGEST = 2**30  # bytes of a JSON file


def shortened(value: object, most: int = 120) -> str:
    """A text for a line of a message: cut, and without control characters."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


def _damaged(where: object, reason: object) -> str:
    return f"{where}: damaged, or not of this program ({shortened(reason)})"


@contextmanager
def damaged(where: object, raises: type[ValueError] = UsageError) -> Iterator[None]:
    """Whatever a decoder raises, or code that finds values of the right kind that contradict each other, becomes one
    line that says where. Our own errors are lines already, and the system's have a file and a cause."""
    try:
        yield
    except (CheckpointError, DataError, Stopped, UsageError, OSError):
        raise
    except Exception as error:
        raise raises(_damaged(where, f"{type(error).__name__}: {error}")) from None


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    try:
        return from_json(json.dumps(content))  # of 200 levels at most
    except (TypeError, RecursionError):
        raise ValueError("numbers, texts, lists and mappings are expected") from None


Plain = Annotated[dict[str, Any], AfterValidator(_plain)]  # a mapping that JSON can hold, nested a little


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(content: object, kind: Any, where: object, raises: type[ValueError] = UsageError) -> Any:
    """The content, if it is of a kind that pydantic knows: a type, TypedDict or dataclass. bytes are JSON.

    where: what the error names. Raises `raises` with one line.
    """
    try:
        if isinstance(content, bytes):
            return _adapter(kind).validate_json(content, strict=True)
        return _adapter(kind).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise raises(_damaged(where, f"{key}: {first['msg']}" if key else first["msg"])) from None


def read_json(path: Path, kind: Any, raises: type[ValueError] = UsageError) -> Any:
    """The content of a JSON file, as `checked`. Raises OSError where it cannot be read."""
    if path.stat().st_size > LARGEST:
        raise raises(f"{path}: more than {LARGEST / 2**20:.0f} MiB of JSON")
    return checked(path.read_bytes(), kind, path, raises)


def read_array(path: Path) -> np.ndarray:
    """The numbers of a .npy file. Raises UsageError."""
    with damaged(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header may ask for any memory
        if array.dtype.kind not in "fiu":
            raise ValueError(f"numbers are expected, not {array.dtype}")
        return np.array(array)


def read_table(path: Path, numbers: Collection[str] = ()) -> pd.DataFrame:
    """A CSV table of images: image_id as text, and these columns of numbers. Raises UsageError."""
    with damaged(path):
        table = pd.read_csv(path, dtype={"image_id": str, **dict.fromkeys(numbers, float)})
        if absent := {"image_id", *numbers} - set(table.columns):
            raise ValueError(f"no column {', '.join(sorted(absent))}")
        return table
