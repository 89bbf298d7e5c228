"""Mean and std of one evaluation beside those of many draws."""

from __future__ import annotations

from utils.command import run_command

import re

import pytest

from bench import moments
from tests.helpers import Workspace


@pytest.mark.slow
def test_moments_are_compared_with_draws(trained: Workspace) -> None:
    options = ["--set", "sde.prior_share=0.5", "--set", "model.second_moment=true"]
    assert trained("main", *options).code == 0
    trained.capture.readouterr()
    assert (
        run_command(lambda: moments.main(["--config", "config.yaml", "--device", "cpu", "--draws", "4", *options])) == 0
    )
    printed = dict(re.findall(r"^(\w+) +(-?[\d.]+)$", trained.capture.readouterr().out, re.MULTILINE))
    assert -1 <= float(printed["std_correlation"]) <= 1
    assert float(printed["std_ratio"]) > 0
    assert float(printed["rms_difference"]) > 0
