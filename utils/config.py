"""Reading YAML experiments: inheritance by `base:`, overrides by `--set`, one-line errors."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from utils.checks import idle_keys
from utils.errors import ConfigError, cut
from utils.reading import parse_yaml, read_yaml
from utils.schema import Config
from utils.shipped import config_file

BASES = 20  # files that a config inherits from, one of the other
PARTS = 5  # of a dotted key

Key = tuple[str, ...]
Origins = dict[Key, tuple[int, str]]  # who set a key last: a layer, and its name; a layer is above its base's


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _without(tree: dict[str, Any], key: Key) -> dict[str, Any]:
    first, *rest = key
    if not rest:
        return {name: value for name, value in tree.items() if name != first}
    return {**tree, first: _without(tree[first], tuple(rest))}


def _keys(tree: dict[str, Any], prefix: Key = ()) -> Iterator[Key]:
    for key, value in tree.items():
        here = (*prefix, str(key))
        yield here
        if isinstance(value, dict):
            yield from _keys(value, here)


def _load_chain(path: Path, above: tuple[str, ...] = ()) -> tuple[dict[str, Any], Origins]:
    """The merged mapping of a file and its bases, and the origins of its keys; above: files that inherit from it."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{cut(path, 120)}: a config is a mapping of sections, not {type(content).__name__}")
    base, here = content.pop("base", None), os.path.realpath(path)
    merged: dict[str, Any] = {}
    origins: Origins = {}
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{cut(path, 120)}: base: {cut(repr(base))} must be the path of another config")
        if here in above:
            raise ConfigError(f"{cut(path, 120)}: base: the files refer to each other in a circle")
        if len(above) == BASES:
            raise ConfigError(f"{cut(path, 120)}: base: more than {BASES} files inherit from each other")
        merged, origins = _load_chain(config_file(base, path.parent), (*above, here))
    origins |= dict.fromkeys(_keys(content), (-len(above), cut(path, 120)))
    return _merge(merged, content), origins


def _overridden(tree: dict[str, Any], origins: Origins, overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        parts, shown = tuple(key.strip().split(".")), f"--set {cut(override)}"
        if not equals or not all(parts) or len(parts) > PARTS:
            raise ConfigError(f"{shown}: expected section.key=value")
        try:
            nested = parse_yaml(text)
        except ConfigError:
            raise ConfigError(f"{shown}: the value is not valid YAML") from None
        for part in reversed(parts):
            nested = {part: nested}
        origins |= dict.fromkeys(_keys(nested), (1, shown))
        tree = _merge(tree, nested)
    return tree


def _known_keys(location: Sequence[str]) -> list[str]:
    """The keys allowed at the parent of `location`."""
    model: Any = Config
    for part in location[:-1]:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _where(key: Sequence[str], origins: Origins, path: Path) -> str:
    """Who set a key, or the section it is in."""
    parents = (tuple(key[:n]) for n in range(len(key), 0, -1))
    return next((origins[parent][1] for parent in parents if parent in origins), cut(path, 120))


def _describe(error: Any, origins: Origins, path: Path) -> str:
    unknown = error["type"] in ("extra_forbidden", "invalid_key")
    # A part in brackets is no key, but one of the types that a value may have.
    parts = [str(part) for part in error["loc"] if unknown or "[" not in str(part)]
    location, where = [cut(part, 40) for part in parts], _where(parts, origins, path)
    key = ".".join(location)
    if unknown:
        known = _known_keys(location)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], *near])}?" if near else f"known: {cut(', '.join(known), 150)}"
        return f"{where}: {key} is not a known key; {hint}"
    if error["type"] == "missing":
        return f"{where}: {key} is missing"
    message = cut(error["msg"].removeprefix("Value error, "), 250)
    if error["type"] == "value_error" and isinstance(error["input"], dict | BaseModel):
        return f"{where}: {key + '.' if key else ''}{message}"
    return f"{where}: {key}: {cut(repr(error['input']), 40)} is not allowed: {message[:1].lower() + message[1:]}"


# Options of before that are gone, and the value that every run without them had: stored configs may say it.
REMOVED = {("model", "anchored"): False}


def _validated(tree: dict[str, Any], origins: Origins, path: Path) -> Config:
    for key, usual in REMOVED.items():
        section = tree.get(key[0])
        if isinstance(section, dict) and section.get(key[1]) is usual:
            tree = _without(tree, key)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        errors = error.errors()
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(_describe(errors[0], origins, path) + more) from None


def _settled(tree: dict[str, Any], origins: Origins, path: Path, *, strict: bool = True) -> tuple[Config, set[str]]:
    """The config, and the keys without effect that were left out.

    They take their defaults where a layer above theirs made the choice that leaves them without effect, and in configs
    of earlier runs. Where they stand beside that choice or above it they are a mistake, and refused if `strict`.
    """
    left_out: set[str] = set()
    origins, bottom = dict(origins), (-BASES - 1, "")
    while idle := list(idle_keys(dict(config := _validated(tree, origins, path)))):
        choices: dict[Key, tuple[int, str]] = {}
        for name, decided_by, _ in idle:
            key, made = tuple(name.split(".")), [origins.get(tuple(by.split(".")), bottom) for by in decided_by]
            choices[key] = max(choices.get(key, bottom), *made)
        for name, _, refusal in idle:
            key = tuple(name.split("."))
            if strict and key in origins and origins[key][0] >= choices[key][0]:
                raise ConfigError(f"{origins[key][1]}: {refusal}")
        for key, choice in choices.items():
            tree, origins[key] = _without(tree, key), choice
            left_out.add(".".join(key))
    return config, left_out


def parse_config(tree: dict[str, Any], path: Path) -> Config:
    """The config of an earlier run; keys that are absent take their defaults.

    path: named in errors. Raises ConfigError with one line.
    """
    return _settled(tree, {}, path)[0]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The resolved config of a YAML file, its bases and `section.key=value` overrides.

    Raises ConfigError with one line that names file, key, value and what is allowed.
    """
    tree, origins = _load_chain(Path(path))
    return _settled(_overridden(tree, origins, overrides), origins, Path(path))[0]


def override_config(tree: dict[str, Any], path: Path, overrides: Sequence[str]) -> Config:
    """A config that is kept in the file `path`, with overrides; otherwise as `load_config`."""
    origins: Origins = {}
    return _settled(_overridden(tree, origins, overrides), origins, path)[0]


def effective(path: str | Path, overrides: Sequence[str]) -> list[str]:
    """The overrides that have an effect together, of a list that is meant for several configs."""
    tree, origins = _load_chain(Path(path))
    left_out = _settled(_overridden(tree, origins, overrides), origins, Path(path), strict=False)[1]
    return [override for override in overrides if override.partition("=")[0].strip() not in left_out]


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
