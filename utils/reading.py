"""Reading what a broken disk, another program or a stranger may have written: limits first, then a schema."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic_core import from_json

from utils.errors import UsageError

LARGEST = 2**30  # bytes of a JSON file


def shortened(value: object, most: int = 120) -> str:
    """A text for a line of a message: cut, and without control characters."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


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
    """The content if it is of a kind that pydantic knows: a type, TypedDict, dataclass or model. bytes are JSON.

    where: named by the error, one line.
    """
    try:
        if isinstance(content, bytes):
            return _adapter(kind).validate_json(content, strict=True)
        return _adapter(kind).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = shortened(f"{key}: {first['msg']}" if key else first["msg"])
        raise raises(f"{where}: damaged, or not of this program ({reason})") from None


def read_json(path: Path, kind: Any, raises: type[ValueError] = UsageError) -> Any:
    """The content of a JSON file, as `checked`. Raises OSError for files that cannot be read."""
    if path.stat().st_size > LARGEST:
        raise raises(f"{path}: {path.stat().st_size / 2**20:.0f} MiB of JSON, where {LARGEST / 2**20:.0f} are the most")
    return checked(path.read_bytes(), kind, path, raises)
