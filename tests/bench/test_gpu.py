"""bench/gpu.sh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.commands import ROOT, sets
from utils.weights import read_header


def call(folder: Path, *words: str, speed: str = "") -> subprocess.CompletedProcess[str]:
    settings = {"PYTHON": sys.executable, "SPEED": speed, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "bench/gpu.sh", *words], cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository without its results."""
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    for path in (*rooms, ROOT / "cfg", ROOT / "main.py", ROOT / "sample.py"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_it_says_what_it_needs(copy: Path) -> None:
    for words, said in (
        ([], "usage: bench/gpu.sh tests|speed|compile|table|weights"),
        (["all"], "usage: "),
        (["speed", "out", "soon"], "error: SECONDS: soon is not a whole number"),
        (["table", "out"], "error: prepared/glas128 is missing"),
    ):
        result = call(copy, *words)
        assert result.returncode == 2
        assert said in result.stderr
    result = call(copy, "weights", "out")
    assert result.returncode == 1
    assert result.stdout.startswith("not done: runs/glas128-recommended-0 has no checkpoint yet")


@pytest.mark.slow
def test_a_stretch_is_kept_once_it_has_ended_well(copy: Path) -> None:
    failed = call(copy, "speed", "out", speed="--no-such-option")
    assert failed.returncode == 1
    assert "unrecognized arguments: --no-such-option" in failed.stdout
    assert failed.stdout.splitlines()[-1] == "not done: exit code 2"
    late = call(copy, "speed", "out", "1", speed="--size 32")
    assert late.stdout.splitlines()[-1] == "not done: time is up after 1 s"
    assert not (copy / "out/gpu_speed.txt").exists()
    (copy / "out/gpu_speed.txt").write_text("as before\n")
    assert call(copy, "speed", "out").stdout == "as before\n"


@pytest.mark.slow
def test_the_table_goes_on_and_leaves_weights(copy: Path) -> None:
    tiny = ["training.steps=2", "data.phantom.size=32", "data.phantom.train=4", "data.phantom.test=2", "data.workers=1"]
    two = {"recommended", "recommended direct mean"}  # of one training; the script's own choice trains four
    options = ["--small", *sets(tiny), "--only", *two]
    late = call(copy, "table", "out", "1", *options)
    assert late.returncode == 1, late.stderr
    assert late.stdout.splitlines()[-1] == "0 of 2 rows; time is up, the same command goes on"
    done = call(copy, "table", "out", "600", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "table: out/glas128.md"
    assert set(pd.read_csv(copy / "out/glas128.csv")["system"]) == two
    assert call(copy, "weights", "out", "600", "--small").returncode == 0
    assert read_header(copy / "out/glas.safetensors").config["name"] == "glas"
