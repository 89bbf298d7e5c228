"""docs/config.md from the schema: python -m utils.config_docs > docs/config.md"""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from utils.schema import Config

SIGNS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
HEAD = """# Config reference

Made by `python -m utils.config_docs > docs/config.md`. `base: FILE` at the top of a config inherits from
another, whose path is relative to the config's own folder; all other paths are relative to where the
command runs.
"""


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    options = get_args(annotation)
    if get_origin(annotation) is tuple:
        return f"list of {_type(options[0])}"
    if isinstance(annotation, type):
        return annotation.__name__
    if options and all(isinstance(option, str | int) for option in options):
        return " \\| ".join(map(str, options))
    return " or ".join(dict.fromkeys(_type(o) for o in options)).replace("NoneType", "null")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = "null" if field.default is None else field.default
    return f"`{list(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value}`"


def _section(model: type[BaseModel], name: str) -> list[str]:
    lines = [f"## {name}" if name else "## Top level", ""]
    if name:
        lines += [(model.__doc__ or "").strip(), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    inner: list[str] = []
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner += _section(field.annotation, f"{name}.{key}".lstrip("."))
            continue
        limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in SIGNS if hasattr(m, name)]
        kind = ", ".join([_type(field.annotation), *limits])
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{key}` | {kind} | {_default(field)} | {meaning} |")
    return [*lines, "", *inner]


def render() -> str:
    """The reference as Markdown."""
    return "\n".join([HEAD, *_section(Config, "")]).rstrip() + "\n"


if __name__ == "__main__":
    print(render(), end="")
