"""Rows of metrics.csv."""

from __future__ import annotations

from pathlib import Path

from training.recorder import MetricsFile


def test_metrics_file_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.csv", ["step", "loss"])
    for step in (1, 2, 3):
        file.append({"step": step, "loss": 0.5})
    again = MetricsFile(tmp_path / "m.csv", ["step", "loss"], last_step=2)
    again.append({"step": 3, "loss": 0.25})
    assert (tmp_path / "m.csv").read_text().split() == ["step,loss", "1,0.5", "2,0.5", "3,0.25"]
