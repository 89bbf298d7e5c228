"""Run folders."""

from __future__ import annotations

from pathlib import Path

from utils.runs import new_folder, newest_run


def test_newest_run_and_folders_within_a_second(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "runs" / "a") for _ in range(12)]
    assert len(set(folders)) == 12
    for folder in folders:
        (folder / "config.yaml").touch()
    assert newest_run("a", tmp_path / "runs") == folders[-1]
