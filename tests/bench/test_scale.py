"""What several processes cost."""

from __future__ import annotations

from utils.command import run_command

from pathlib import Path

import pytest

from bench import scale
from tests.commands import Workspace


@pytest.mark.parametrize("words", [["--batch", "0"], ["--steps", "-3"], ["--processes", "1", "0"]])
def test_numbers_below_one_are_a_line(
    workspace: Workspace, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: scale.main(["--config", "config.yaml", *words])) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {' '.join(words)}: 1 or more are expected\n"
    assert not captured.out
    assert not Path("runs").exists()
