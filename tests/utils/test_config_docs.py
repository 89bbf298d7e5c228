"""docs/config.md."""

from __future__ import annotations

from tests.commands import ROOT
from utils.config_docs import render


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == render()
