"""Memory and speed of training from a packed copy."""

from __future__ import annotations

import re

import pytest

from bench import large_data
from tests.commands import Workspace


@pytest.mark.skipif(not large_data.STATUS.is_file(), reason="only Linux says how much memory is anonymous")
def test_memory_does_not_grow_with_the_patches(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20,000 patches of 32x32, as float32 100 MB, a few bytes each are held."""
    assert workspace("prepare").code == 0
    options = ["--batches", "30", "--rounds", "1", "--steps", "1", "--counts", "100", "20000"]
    large_data.main(["--config", "config.yaml", "--device", "cpu", "--quiet", *options])
    out = capsys.readouterr().out
    few, many = (float(mib) for mib in re.findall(r"patches +(-?[\d.]+) MiB", out))
    assert many < few + 20
    assert re.search(r"steps/s from memory, [\d.]+ x that packed$", out, re.MULTILINE)
