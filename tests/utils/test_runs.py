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
