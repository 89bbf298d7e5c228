"""What designed first noise saves."""

from __future__ import annotations

import re

import pytest

from bench import noise_designs as ensembles
from tests.helpers import Workspace


def test_noise_designs_are_compared(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    ensembles.main(["--config", "config.yaml", "--device", "cpu", "--images", "1", "--many", "20"])
    out = capsys.readouterr().out
    for design in ("independent", "antithetic"):
        assert re.search(rf"^{design} +4 draws \d\.\d+ \(\d\.\d\d\)  ", out, re.MULTILINE)
    assert "one evaluation: 0." in out
