"""Installs the rooms as one package, segsdf: at the top level, `data` or `utils` would hide other packages so named.

In the repository, rooms import each other by their own names. In the copy that is installed these are `segsdf.data`,
`segsdf.utils` and so on.
"""

import ast
import shutil
import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

NAME = "segsdf"
ROOMS = find_packages(exclude=["bench", "tests", "tests.*"])
COMMANDS = ("main", "sample")
OURS = {*COMMANDS, *ROOMS}


def renamed(source: str, path: object) -> str:
    """The source of a module with imports from `segsdf.data` instead of `data`, line for line."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in OURS for alias in node.names):
            raise SystemExit(f"{path}:{node.lineno}: write `from ... import ...`; only this can be renamed")
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            before, keyword, after = lines[node.lineno - 1].partition("from ")
            lines[node.lineno - 1] = f"{before}{keyword}{NAME}.{after}"
    return "\n".join(lines)


def commit() -> str:
    """What `utils.devices` asks git for in the repository."""
    if not Path(".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


class OnePackage(build_py):  # type: ignore[misc]
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if package != NAME or module[1] in COMMANDS]

    def run(self) -> None:
        if self.editable_mode:
            raise SystemExit("no editable install: the repository runs as it is, python main.py")
        root = Path(self.build_lib, NAME)
        shutil.rmtree(root, ignore_errors=True)  # of an earlier build: modules that are gone by now
        super().run()
        for path in root.rglob("*.py"):
            path.write_text(renamed(path.read_text("utf-8"), path), "utf-8")
        (root / "__init__.py").write_text('"""Generative segmentation on signed distance functions."""\n')
        (root / "COMMIT").write_text(commit())


setup(
    packages=[NAME, *(f"{NAME}.{room}" for room in ROOMS)],
    package_dir={NAME: "."},
    package_data={NAME: ["cfg/*.yaml", "weights/*"], **{f"{NAME}.{r}": ["templates/*", "napari.yaml"] for r in ROOMS}},
    cmdclass={"build_py": OnePackage},
)
