"""Time and memory of one large image."""

from __future__ import annotations

from utils.command import run_command

import re

import pytest

from bench import large
from tests.commands import Workspace


def test_large_prints_time_and_memory(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "config.yaml", "--device", "cpu", "--size", "70", "--trained", "32"]
    large.main([*options, "--set", "sampling.draws=2"])
    out = capsys.readouterr().out
    assert "tiles of 32, 2 draws of 5 evaluations" in out
    assert re.search(r"s per million pixels, \d+\.\d+ times the network's \d+ s$", out, re.MULTILINE)
    assert re.search(r"^peak memory \d+ MiB; \d+ MiB before$", out, re.MULTILINE)
    moments = ["sampling.sampler=mean", "model.second_moment=true", "sde.prior_share=0.5"]
    large.main([*options, *(word for change in moments for word in ("--set", change))])
    assert "moments in one evaluation" in capsys.readouterr().out
    assert run_command(lambda: large.main([*options, "--size", "0"])) == 2
