"""The command, where it says no; test_widgets has what it does."""

from __future__ import annotations

from utils.command import run_command

import sys
from pathlib import Path

import pytest

from napari_plugin import correct


def test_without_napari_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("napari_plugin.correct.find_spec", lambda name: None)
    assert run_command(lambda: correct.main([str(tmp_path)])) == 2
    assert capsys.readouterr().err.startswith("error: napari is not installed; pip install ")


def test_a_folder_without_results_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("napari_plugin.correct.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "napari", None)  # it is not asked for
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert run_command(lambda f=folder: correct.main([str(f)])) == 2  # type: ignore[misc]
        assert "no results of sample.py in it" in capsys.readouterr().err
