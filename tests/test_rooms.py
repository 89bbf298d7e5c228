"""Who may import whom (docs/design.md, section 2)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

FLOORS = [{"sde", "utils", "evaluation", "report"}, {"data", "models"}, {"sampling"}, {"training", "results"},
          {"main", "sample", "bench", "napari_plugin"}]  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for room in FLOOR for path in [*(ROOT / room).rglob("*.py"), ROOT / f"{room}.py"] if path.is_file())


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, also inside functions and for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_rooms_import_lower_floors_only(path: Path) -> None:
    room = module_of(path).split(".")[0]
    for other in {name.split(".")[0] for name in imports(path)} & (FLOOR.keys() - {room}):
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    while free := {name for name, needs in left.items() if not needs}:
        left = {name: needs - free for name, needs in left.items() if name not in free}
    assert not left


def test_sde_needs_torch_only() -> None:
    for path in (ROOT / "sde").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= sys.stdlib_module_names | {"torch", "sde"}


def test_the_ground_floor_knows_nobody() -> None:
    for name, path in MODULES.items():
        if name.startswith("utils."):
            assert {other.split(".")[0] for other in imports(path)} & FLOOR.keys() <= {"utils"}, name


def test_the_ground_floor_is_small() -> None:
    lines = {name: path.read_text().count("\n") for name, path in MODULES.items()}
    own = sum(count for name, count in lines.items() if name.startswith("utils."))
    assert own / sum(lines.values()) < 0.14  # on its way to a tenth


def test_few_functions_take_the_whole_config() -> None:
    """Sections, or objects made from them, say what a function needs."""
    functions = [node for path in FILES for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.FunctionDef)]  # fmt: skip
    taking = [f.name for f in functions if "config" in {a.arg for a in (*f.args.args, *f.args.kwonlyargs)}]
    assert len(taking) <= 25, taking
