"""Run folders and their metrics."""

from __future__ import annotations

from pathlib import Path

from utils.runs import MetricsFile, new_folder, newest_run


def test_newest_run_and_folders_within_a_second(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "runs" / "a") for _ in range(12)]
    assert len(set(folders)) == 12
    for folder in folders:
        (folder / "config.yaml").touch()
    assert newest_run("a", tmp_path / "runs") == folders[-1]


def test_metrics_file_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.csv", ["step", "loss"])
    for step in (1, 2, 3):
        file.append({"step": step, "loss": 0.5})
    again = MetricsFile(tmp_path / "m.csv", ["step", "loss"], last_step=2)
    again.append({"step": 3, "loss": 0.25})
    assert (tmp_path / "m.csv").read_text().split() == ["step,loss", "1,0.5", "2,0.5", "3,0.25"]
