"""Who may import whom (docs/design.md, section 2)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = {"data", "sde", "models", "evaluation", "utils", "bench"}
# Commands read a config; they are the one place in `data` that knows `utils`.
COMMANDS = {"data/prepare.py", "data/inspect.py"}
ALLOWED = {"sde": {"sde"}, "models": {"models"}, "data": {"data"}, "evaluation": {"evaluation"},
           "utils": {"utils", "data", "sde", "models", "evaluation"}}  # fmt: skip
EXTRA = {f"models/{name}.py": {"sde"} for name in ("denoiser", "joint", "baselines")}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
    return found


FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_do_not_know_each_others_insides(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name in COMMANDS:
        return
    package = name.split("/")[0]
    assert imports(path) & (PACKAGES | {"main", "sample"}) <= ALLOWED[package] | EXTRA.get(name, set())


def test_sde_needs_torch_only() -> None:
    for path in (ROOT / "sde").glob("*.py"):
        assert imports(path) <= sys.stdlib_module_names | {"torch", "sde"}
