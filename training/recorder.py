"""Training curves: rows of metrics.csv and TensorBoard scalars."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from utils.files import naming, whole_file
from utils.reading import damaged

TIME_BINS = 8
# loss_ti: mean loss over t in [i, i + 1) / TIME_BINS since the last row, a curve per noise level.
CURVES = [f"loss_t{i}" for i in range(TIME_BINS)]
COLUMNS = ["step", "loss", "learning_rate", "grad_norm", "images_per_second", *CURVES]
VALIDATION = ["val_f1", "val_iou", "val_single_f1", "val_energy"]


class MetricsFile:
    """A CSV file that grows by a row at a time; with `last_step`, later rows of an interrupted run are dropped."""

    def __init__(self, path: Path, columns: list[str], last_step: int = 0) -> None:
        self.path, self.columns = path, columns
        rows = [row for row in self._rows() if int(row["step"]) <= last_step] if path.exists() else []
        with whole_file(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def _rows(self) -> list[dict[str, str]]:
        """Whole rows: the last one is not where a process was killed as it wrote it."""
        lines = self.path.read_text(errors="replace").splitlines(keepends=True)
        with damaged(self.path):
            rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
            for number, row in enumerate(rows, 2):
                if None in row or None in row.values() or not re.fullmatch("[0-9]{1,12}", row.get("step", "")):
                    raise ValueError(f"line {number}")
        return rows

    def append(self, row: Mapping[str, object]) -> None:
        with naming(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(dict(row))


class Taken(NamedTuple):
    """What a training step leaves: losses (N,) at times t (N,), the gradient's norm; on the device until they are read.

    number: of the step, from 1 on. indices: of the images of its batch.
    """

    number: int
    indices: Sequence[int]
    losses: Tensor
    t: Tensor
    norm: Tensor


class Recorder:
    """Means since the last row. An interrupted run's rows after `step` are dropped.

    sums: of the steps since the last row, kept by the owner, so that a run can go on between two rows.
    """

    def __init__(self, path: Path, writer: SummaryWriter, step: int, sums: Counter[str]) -> None:
        self.file = MetricsFile(path, COLUMNS + VALIDATION, last_step=step)
        self.writer, self.sums = writer, sums

    def add(self, steps: Sequence[Taken], images: int, seconds: float) -> None:
        """What was read of some steps, on the host; images: of each, seconds: of all of them."""
        for step in steps:
            t, losses = (x.double().numpy() for x in (step.t, step.losses))
            bins = np.minimum((t * TIME_BINS).astype(int), TIME_BINS - 1)
            parts = {name: losses[bins == i] for i, name in enumerate(CURVES)}
            self.sums.update({name: float(part.sum()) for name, part in parts.items()})
            self.sums.update({f"{name}_count": part.size for name, part in parts.items()})
            self.sums.update({"loss": step.losses.mean().item(), "grad_norm": step.norm.item()})
            self.sums.update({"steps": 1, "images": images})
        self.sums.update({"seconds": seconds})

    def write_row(self, step: int, learning_rate: float) -> dict[str, str]:
        """Write the means; return what the progress bar shows."""
        sums = self.sums
        row = {"learning_rate": learning_rate, **{key: sums[key] / sums["steps"] for key in ("loss", "grad_norm")}}
        row["images_per_second"] = sums["images"] / sums["seconds"]
        counts = {name: sums[f"{name}_count"] for name in CURVES}
        row |= {name: sums[name] / count if count else math.nan for name, count in counts.items()}
        for name, value in row.items():
            tag = f"loss_by_time/{name}" if name in CURVES else f"training/{name}"
            if not math.isnan(value):
                self.writer.add_scalar(tag, value, step)
        written = {name: "" if math.isnan(value) else f"{value:.6g}" for name, value in row.items()}
        self.file.append({"step": step, **written})
        sums.clear()
        return {"loss": f"{row['loss']:.4f}", "images/s": f"{row['images_per_second']:.0f}"}

    def write_validation(self, step: int, scores: Mapping[str, float]) -> None:
        for name, value in scores.items():
            self.writer.add_scalar(f"validation/{name}", value, step)
        self.file.append({"step": step, **{name: f"{value:.6g}" for name, value in scores.items()}})
