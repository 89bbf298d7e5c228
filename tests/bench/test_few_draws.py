"""Few draws and one evaluation beside many draws."""

from __future__ import annotations

from utils.command import run_command

import re

import numpy as np
import pytest

from bench import few_draws
from tests.commands import Workspace

OPTIONS = ["--config", "config.yaml", "--device", "cpu"]


def test_noise_designs_are_compared(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    few_draws.main([*OPTIONS, "--images", "1", "--draws", "20"])
    out = capsys.readouterr().out
    for design in ("independent", "antithetic"):
        assert re.search(rf"^{design} +4 draws \d\.\d+ \(\d\.\d\d\)  ", out, re.MULTILINE)
    assert re.search(r"^rms_difference +0\.\d+$", out, re.MULTILINE)
    assert "std_ratio" not in out
    assert run_command(lambda: few_draws.main([*OPTIONS, "--draws", "1"])) == 2


def test_stds_are_compared_over_all_pixels() -> None:
    drawn = np.array([0.1, 0.3, 0.2, 0.4])
    found = few_draws.compare_stds(2 * drawn, drawn, 1 - drawn)
    assert list(found.values()) == pytest.approx([1, 2, -1, -1])


@pytest.mark.slow
def test_moments_are_compared_with_draws(trained: Workspace) -> None:
    options = ["--set", "sde.prior_share=0.5", "--set", "model.second_moment=true"]
    assert trained("main", *options).code == 0
    trained.capture.readouterr()
    assert run_command(lambda: few_draws.main([*OPTIONS, "--images", "2", "--draws", "4", *options])) == 0
    printed = dict(re.findall(r"^(\w+) +(-?[\d.]+)$", trained.capture.readouterr().out, re.MULTILINE))
    assert -1 <= float(printed["std_correlation"]) <= 1
    assert float(printed["std_ratio"]) > 0
    assert float(printed["rms_difference"]) > 0
