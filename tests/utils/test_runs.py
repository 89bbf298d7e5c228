"""Run folders."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from utils import devices
from utils.runs import new_folder, newest_run


def test_newest_run_and_folders_within_a_second(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "runs" / "a") for _ in range(12)]
    assert len(set(folders)) == 12
    for folder in folders:
        (folder / "config.yaml").touch()
    assert newest_run("a", tmp_path / "runs") == folders[-1]


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are not lost for it: environment.json is written when they are all drawn."""
    monkeypatch.setattr(devices, "PACKAGES", ("torch", "no-such-package"))
    found = devices.environment(torch.device("cpu"))["packages"]
    assert found["torch"] == version("torch")
    assert found["no-such-package"] is None


def test_what_is_installed_knows_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not ask the repository in which somebody's virtual environment lies."""
    monkeypatch.setattr(devices, "ROOT", tmp_path)
    for noted, commit in (("3f2a", "3f2a"), ("", None)):
        (tmp_path / "COMMIT").write_text(noted)
        assert devices.environment(torch.device("cpu"))["commit"] == commit
