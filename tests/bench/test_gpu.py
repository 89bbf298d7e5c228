"""bench/gpu.sh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import ROOT, sets
from utils.weights import read_header


@pytest.mark.slow
def test_the_gpu_script_goes_on_and_leaves_weights(tmp_path: Path) -> None:
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    for path in (*rooms, ROOT / "cfg", ROOT / "main.py", ROOT / "sample.py"):
        (tmp_path / path.name).symlink_to(path)
    tiny = ["training.steps=2", "data.phantom.size=32", "data.phantom.train=4", "data.phantom.test=2", "data.workers=1"]
    two = {"recommended", "recommended direct mean"}  # of one training; the script's own choice trains four
    options = [*sets(tiny), "--only", *two]
    settings = {"PYTHON": sys.executable, "SPEED": "--no-such-option", "OMP_NUM_THREADS": "1"}

    def call(seconds: str) -> str:
        command = ["bash", "bench/gpu.sh", "out", seconds, "--small", *options]
        result = subprocess.run(command, cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr + (tmp_path / "out/log.txt").read_text()
        return result.stdout

    assert call("1").splitlines()[-1] == "0 of 2 rows; time is up, the same command goes on"
    said = call("400")
    assert said.splitlines()[-1] == "table: out/glas128.md"
    assert set(pd.read_csv(tmp_path / "out/glas128.csv")["system"]) == two
    assert read_header(tmp_path / "out/glas.safetensors").config["name"] == "glas"
    # A bench that fails is said, and stops nothing.
    assert "unrecognized arguments: --no-such-option" in said
    assert not (tmp_path / "out/speed.txt").exists()
