"""Training curves: rows of metrics.csv and TensorBoard scalars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from utils.runs import MetricsFile

TIME_BINS = 8


# loss_ti: mean loss over t in [i, i + 1) / TIME_BINS since the last row, a curve per noise level.
CURVES = [f"loss_t{i}" for i in range(TIME_BINS)]
COLUMNS = ["step", "loss", "learning_rate", "grad_norm", "images_per_second", *CURVES]
VALIDATION = ["val_f1", "val_iou", "val_single_f1"]


class Recorder:
    """Means since the last row. An interrupted run's rows after `step` are dropped."""

    def __init__(self, path: Path, writer: SummaryWriter, step: int) -> None:
        self.file = MetricsFile(path, COLUMNS + VALIDATION, last_step=step)
        self.writer = writer
        self._clear()

    def _clear(self) -> None:
        self._results: list[Mapping[str, Tensor]] = []
        self._images = 0
        self._seconds = 0.0

    def add(self, result: Mapping[str, Tensor], images: int, seconds: float) -> None:
        """One step's loss, grad_norm, and the losses (B,) at times t (B,)."""
        self._results.append(result)
        self._images += images
        self._seconds += seconds

    def _row(self) -> dict[str, float]:
        t = np.concatenate([r["t"].cpu().double().numpy() for r in self._results])
        losses = np.concatenate([r["losses"].cpu().double().numpy() for r in self._results])
        bins = np.minimum((t * TIME_BINS).astype(int), TIME_BINS - 1)
        row = {key: float(np.mean([r[key].item() for r in self._results])) for key in ("loss", "grad_norm")}
        row["images_per_second"] = self._images / self._seconds
        for i, name in enumerate(CURVES):
            row[name] = float(losses[bins == i].mean()) if (bins == i).any() else math.nan
        return row

    def write_row(self, step: int, learning_rate: float) -> dict[str, str]:
        """Write the means; return what the progress bar shows."""
        row = {"learning_rate": learning_rate, **self._row()}
        for name, value in row.items():
            tag = f"loss_by_time/{name}" if name in CURVES else f"training/{name}"
            if not math.isnan(value):
                self.writer.add_scalar(tag, value, step)
        written = {name: "" if math.isnan(value) else f"{value:.6g}" for name, value in row.items()}
        self.file.append({"step": step, **written})
        self._clear()
        return {"loss": f"{row['loss']:.4f}", "images/s": f"{row['images_per_second']:.0f}"}

    def write_validation(self, step: int, scores: Mapping[str, float]) -> None:
        for name, value in scores.items():
            self.writer.add_scalar(f"validation/{name}", value, step)
        self.file.append({"step": step, **{name: f"{value:.6g}" for name, value in scores.items()}})
