"""`pip install .`: one package beside foreign ones, and commands that do what the repository's do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.commands import ROOT, Workspace, content, newest, same_state
from tests.test_rooms import MODULES
from tests.utils.test_command import catches
from utils.config import dump_config, load_config

INSIDE = sorted({name.split(".")[0] for name in MODULES} - {"bench", "main", "sample"})
FILES = [*INSIDE, "cfg", "weights", "main.py", "sample.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
SCRIPTS = ("segsdf-prepare", "segsdf-inspect", "segsdf-train", "segsdf-sample", "segsdf-export", "segsdf-correct")


def version_of(package: str) -> int:
    return next((int(found.version.split(".")[0]) for found in distributions(name=package)), 0)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not version_of("pip"), reason="needs pip"),
    pytest.mark.skipif(version_of("setuptools") < 77, reason="needs setuptools 77, which a network would bring"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a copy of the repository is installed to."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    subprocess.run(command, check=True, cwd=source)
    return target


@pytest.fixture
def decoyed(workspace: Workspace) -> Workspace:
    """A working folder with packages that have the names of rooms."""
    for name in ("utils", "data", "models"):
        (workspace.path / name).mkdir()
        (workspace.path / name / "__init__.py").write_text("FOREIGN = True\n")
    return workspace


def run(site: Path, *words: str, code: int = 0) -> str:
    """What a command or `python ...` prints, or its error, in the working folder, which is on the path before what is
    installed."""
    program = [str(site / "bin" / words[0])] if words[0].startswith("segsdf-") else [sys.executable, words[0]]
    paths = os.pathsep.join([str(Path.cwd()), str(site)])
    done = subprocess.run(
        [*program, *words[1:]], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.suffix not in (".py", ".pyc")}  # fmt: skip


def test_one_name_holds_every_room_with_its_files(site: Path) -> None:
    names = {path.name for path in site.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"segsdf", "bin"}
    assert {path.name for path in (site / "bin").iterdir()} == set(SCRIPTS)
    there = {".".join(path.relative_to(site / "segsdf").with_suffix("").parts) for path in site.rglob("segsdf/**/*.py")}
    assert there == {*(name for name in MODULES if not name.startswith("bench.")), "__init__"}
    for folder in (*INSIDE, "cfg", "weights"):
        assert files(site / "segsdf" / folder) == files(ROOT / folder), folder


def test_foreign_packages_of_the_same_names_are_left_alone(site: Path, decoyed: Workspace) -> None:
    others = ("bench.", "napari_plugin.widgets")  # the latter needs napari
    modules = [f"segsdf.{name}" for name in MODULES if not name.startswith(others) and "__init__" not in name]
    (decoyed.path / "program.py").write_text(
        "import utils\n"
        "import segsdf\n"
        "from segsdf.sampling.segmenter import Segmenter\n"
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "import data, models\n"
        "assert utils.FOREIGN and data.FOREIGN and models.FOREIGN\n"
        f"print(*({set(INSIDE)} - {{'utils', 'data', 'models'}}) & sys.modules.keys())\n"
        "print(type(Segmenter.from_weights('nuclei', device='cpu')))\n"
    )
    assert run(site, "program.py") == "\n<class 'segsdf.sampling.segmenter.Segmenter'>\n"


def test_commands_find_what_is_shipped(site: Path, decoyed: Workspace) -> None:
    for script in ("segsdf-train", "segsdf-sample"):
        assert run(site, script, "--help").startswith(f"usage: {script} ")
    shown = dump_config(load_config(ROOT / "cfg" / "flowsdf_glas.yaml"))  # it has a base
    for name in ("flowsdf_glas.yaml", "cfg/flowsdf_glas.yaml"):
        assert run(site, "segsdf-train", "--config", name, "--print-config") == shown
    assert "name: nuclei\n" in run(site, "segsdf-sample", "--weights", "nuclei", "--print-config")


def test_commands_write_what_the_repository_writes(site: Path, decoyed: Workspace, trained_folder: Path) -> None:
    options = ["--config", "config.yaml", "--device", "cpu", "--quiet"]
    run(site, "segsdf-prepare", *options, "--set", "data.workers=2")  # spawned
    assert content(decoyed.path / "prepared") == content(trained_folder / "prepared")
    assert "up to date" in run(site, "-m", "segsdf.data.prepare", *options)
    unprepared = run(site, "segsdf-train", *options, "--set", "data.root=nowhere", code=2)
    assert "run `segsdf-prepare` with this config first" in unprepared
    run(site, "segsdf-inspect", "--config", "config.yaml")
    run(site, "segsdf-train", *options)
    there, here = next((trained_folder / "runs" / "tiny").iterdir()), decoyed.run_folder()
    for name in ("last.pt", "best.pt"):
        same_state(there / "checkpoints" / name, here / "checkpoints" / name)
    assert decoyed("sample").code == 0  # of what the installed command has trained
    by_repository = newest(decoyed)
    run(site, "segsdf-sample", *options)
    assert newest(decoyed) != by_repository
    assert content(newest(decoyed)) == content(by_repository)
    export = ["segsdf-export", "--run", str(here), "--output", "tiny.safetensors", "--licence", "none"]
    assert run(site, *export).startswith("tiny.safetensors: step 6, ")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux who handles signals")
def test_a_signal_during_the_imports_ends_an_installed_command_quietly(site: Path) -> None:
    process = subprocess.Popen([site / "bin" / "segsdf-train", "--help"], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(site)})  # fmt: skip
    while not catches(process, signal.SIGTERM):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert (*process.communicate(), process.returncode) == ("", "", 143)
