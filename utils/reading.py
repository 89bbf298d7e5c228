"""Reading what a broken disk, another program or a stranger may have written: limits first, then a schema."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic_core import from_json

from utils.errors import CheckpointError, ConfigError, DataError, UsageError, cut
from utils.shipped import near_config

LARGEST = 2**30  # bytes of a JSON file
YAML_BYTES = 2**16  # of a file; a config has 4 kB
DEPTH, SCALAR, NODES = 20, 1000, 10_000  # of nested collections; characters of a value; values, aliases written out


def _damaged(where: object, reason: object) -> str:
    return f"{where}: damaged, or not of this program ({cut(reason)})"


@contextmanager
def damaged(where: object, raises: type[ValueError] = UsageError) -> Iterator[None]:
    """Whatever a decoder raises, or code that finds values of the right kind that contradict each other, becomes one
    line that says where. Our own errors are lines already, as are the system's that name a file."""
    try:
        yield
    except (CheckpointError, ConfigError, DataError, UsageError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
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


def read_bytes(path: Path, most: int) -> bytes:
    """The file. Raises OSError, and ValueError with one line for what is longer than `most` bytes."""
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most} bytes")
    return content


class _Loader(yaml.SafeLoader):
    """Safe YAML of bounded size and depth, in which a key may stand once."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0
        self.sizes: dict[str, int] = {}  # of what has an anchor, aliases in it written out

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event, before = self.peek_event(), self.nodes
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self.sizes:
                raise ValueError(f"*{event.anchor} is a part of itself")
            self.nodes += self.sizes.get(event.anchor or "", 0)
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > SCALAR:
            raise ValueError(f"a value of more than {SCALAR} characters")
        self.depth += 1
        if self.depth > DEPTH:
            raise ValueError(f"nested more than {DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.nodes += 1
        if self.nodes > NODES:
            raise ValueError(f"more than {NODES} values")
        if not isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self.sizes[event.anchor] = self.nodes - before
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise ValueError(f"line {node.start_mark.line + 1}: key {cut(repr(name))} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The content. Raises ConfigError with one line."""
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # besides YAMLError: what constructors of values raise, and the limits above
        raise ConfigError(f"not valid YAML: {cut(error, 150) or type(error).__name__}") from None


def read_yaml(path: Path) -> Any:
    """The content of a file. Raises ConfigError with one line that names it."""
    try:
        text = read_bytes(path, YAML_BYTES).decode()
    except (OSError, ValueError) as error:  # not UTF-8, too long, a NUL in the path
        reason = getattr(error, "strerror", None) or cut(error)
        near = near_config(path) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{cut(path, 120)}: cannot be read ({reason}){near}") from None
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{cut(path, 120)}: {error}") from None
