"""Reading YAML experiments: inheritance by `base:`, overrides by `--set`, one-line errors."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from utils.schema import Config


class ConfigError(ValueError):
    """A config that cannot be used; the message is one line: file, key, value, what is allowed."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"line {node.start_mark.line + 1}: key {key!r} stands twice")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, not {type(content).__name__}")
    return content


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _leaves(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        here = (*prefix, str(key))
        found.append(here)
        if isinstance(value, dict):
            found.extend(_leaves(value, here))
    return found


def _load_chain(path: Path, seen: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """The merged mapping of a file and its bases, and which file each key came from."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: base: the files refer to each other in a circle")
    content = _read_yaml(path)
    base = content.pop("base", None)
    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base: {base!r} must be the path of another config")
        merged, origins = _load_chain(path.parent / base, (*seen, path.resolve()))
    origins |= {key: str(path) for key in _leaves(content)}
    return _merge(merged, content), origins


def _apply_override(tree: dict[str, Any], origins: dict[tuple[str, ...], str], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: expected section.key=value")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ConfigError):
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    nested: Any = value
    for part in reversed(parts):
        nested = {part: nested}
    origins |= dict.fromkeys(_leaves(nested), f"--set {override}")
    return _merge(tree, nested)


def _known_keys(location: Sequence[str]) -> list[str]:
    """The keys allowed at the parent of `location`."""
    model: Any = Config
    for part in location[:-1]:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _describe(error: Any, origins: Mapping[tuple[str, ...], str], path: Path) -> str:
    location = tuple(str(part) for part in error["loc"])
    where = next((origins[location[:n]] for n in range(len(location), 0, -1) if location[:n] in origins), str(path))
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(location)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known: {', '.join(known)}"
        return f"{where}: {key} is not a known key; {hint}"
    if error["type"] == "missing":
        return f"{where}: {key} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict | BaseModel):
        return f"{where}: {key + '.' if key else ''}{message}"
    return f"{where}: {key}: {error['input']!r} is not allowed: {message[:1].lower() + message[1:]}"


# Options of before that are gone, and the value that every run without them had: stored configs may say it.
REMOVED = {("model", "anchored"): False}


def _without_removed(tree: dict[str, Any]) -> dict[str, Any]:
    for (section, key), usual in REMOVED.items():
        if isinstance(tree.get(section), dict) and tree[section].get(key) is usual:
            tree = {**tree, section: {name: value for name, value in tree[section].items() if name != key}}
    return tree


def parse_config(tree: dict[str, Any], path: Path, origins: Mapping[tuple[str, ...], str] | None = None) -> Config:
    """A checked config; keys that are absent take their defaults.

    path: named in errors; origins: which file or override each key came from.
    Raises ConfigError with one line.
    """
    try:
        return Config.model_validate(_without_removed(tree))
    except ValidationError as error:
        errors = error.errors()
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(_describe(errors[0], origins or {}, path) + more) from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The resolved config of a YAML file, its bases and `section.key=value` overrides.

    Raises ConfigError with one line that names file, key, value and what is allowed.
    """
    path = Path(path)
    return _overridden(*_load_chain(path), path, overrides)


def override_config(tree: dict[str, Any], path: Path, overrides: Sequence[str]) -> Config:
    """A config that is kept in the file `path`, with overrides; otherwise as `load_config`."""
    return _overridden(tree, {}, path, overrides)


def _overridden(
    tree: dict[str, Any], origins: dict[tuple[str, ...], str], path: Path, overrides: Sequence[str]
) -> Config:
    for override in overrides:
        tree = _apply_override(tree, origins, override)
    return parse_config(tree, path, origins)


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
