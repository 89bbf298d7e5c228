"""What each evaluation of the network buys: scores over evaluations per draw, for every sampler.

    python -m bench.nfe --config cfg/glas_small.yaml --run runs/glas_small/20261121-115251 --split val

Writes nfe.csv, nfe.png and nfe.md into the run, a row as soon as it is there, and goes on where it was stopped. Choose
on val; look at test once.
"""

from __future__ import annotations

from utils.command import StopFlag, run_command

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from bench.charts import f1_over_nfe
from bench.trained import parser_of, trained_of
from data.scenes import Scene
from evaluation.ensemble import Ensemble
from evaluation.metrics import count_classes, mean_f1
from evaluation.raters import ged
from sampling.drawer import Drawer, Timed, drawer_of, groups, whole_draws
from utils.errors import UsageError
from utils.sections import SamplingConfig

NFE = (1, 2, 3, 5, 10, 20, 50, 100, 400)
SAMPLERS: dict[str, dict[str, Any]] = {
    "pc": {"sampler": "pc"},
    "euler_maruyama": {"sampler": "euler_maruyama"},
    "ancestral": {"sampler": "ancestral", "grid": "logsnr"},
    "euler": {"sampler": "euler"},
    "heun": {"sampler": "heun"},
    "dpm_solver": {"sampler": "dpm_solver"},
    "dpm_solver_sde": {"sampler": "dpm_solver", "stochastic": True},
    "flowsdf_released": {"sampler": "flowsdf_released"},
    "mean": {"sampler": "mean"},
}


class Totals:
    """Scores of one sampler at one cost, image by image."""

    def __init__(self) -> None:
        self.single: list[float] = []
        self.mmse: list[float] = []
        self.ged: list[float] = []
        self.errors: list[np.ndarray] = []
        self.stds: list[np.ndarray] = []

    def add(self, scene: Scene, draws: Sequence[np.ndarray], threshold: float) -> None:
        """All draws (K, H, W) of one image."""
        classes = len(draws[0])
        ensemble = Ensemble((classes, *scene.shape), threshold)
        labels = [ensemble.add(draw) for draw in draws]
        self.single += [mean_f1(count_classes(own, scene.labels, classes)) for own in labels]
        self.mmse.append(mean_f1(count_classes(ensemble.labels, scene.labels, classes)))
        self.errors.append(np.abs(ensemble.mmse - scene.sdf).ravel())
        self.stds.append(ensemble.std.ravel())
        if scene.raters is not None:
            self.ged.append(ged(np.stack(labels) > 0, scene.raters))

    def row(self) -> dict[str, float]:
        error, std = np.concatenate(self.errors), np.concatenate(self.stds)
        varied = error.std() > 0 and std.std() > 0
        return {
            "single_f1": float(np.mean(self.single)),
            "mmse_f1": float(np.mean(self.mmse)),
            "mean_error": float(error.mean()),
            "error_std_correlation": float(np.corrcoef(error, std)[0, 1]) if varied else float("nan"),
            "ged": float(np.mean(self.ged)) if self.ged else float("nan"),
        }


def score(drawer: Drawer, scenes: Sequence[Scene], draws: int) -> dict[str, float]:
    """One row: all draws of all images."""
    totals, seconds = Totals(), 0.0
    for group in groups(scenes, max(1, drawer.max_batch // draws)):
        collected: list[list[np.ndarray]] = [[] for _ in group]
        drawn = Timed(whole_draws(drawer, group, draws))
        for i, draw, _ in drawn:
            collected[i].append(draw)
        seconds += drawn.seconds
        for scene, own in zip(group, collected, strict=True):
            totals.add(scene, own, drawer.threshold)
    return {**totals.row(), "seconds_per_image": seconds / len(scenes)}


def plan(
    samplers: Sequence[str], nfes: Sequence[int], own: SamplingConfig
) -> Iterator[tuple[str, int, SamplingConfig]]:
    """Every sampler at every cost that it can have, cheap rows first."""
    common = {"draws": own.draws, "threshold": own.threshold, "max_batch": own.max_batch}
    for nfe, name in product(nfes, samplers):
        try:
            more = {"r": own.r} if name == "pc" else {}
            settings = SamplingConfig(**common, **more, **SAMPLERS[name], steps=nfe)
        except ValidationError:
            continue  # PC takes an even number
        if name != "mean" or nfe == 1:
            yield name, nfe, settings


def markdown(table: pd.DataFrame) -> str:
    """The table, a row for each sampler and cost."""
    columns = [c for c in table.columns if c in ("sampler", "nfe", "draws", "images") or table[c].notna().any()]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table[columns].to_dict("records"):
        cells = [f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("Score every sampler over its evaluations per draw.")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS), metavar="NAME",
                        help="default: all of them")  # fmt: skip
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFE), metavar="N", help="evaluations per draw")
    args = parser.parse_args(argv)
    if min(args.nfe) < 1:
        raise UsageError("--nfe: positive numbers are expected")
    trained = trained_of(args)
    if trained is None:
        return
    config, run, scenes, denoiser = trained.config, trained.run, trained.scenes, trained.denoiser
    stop = StopFlag()
    path = run / f"nfe_{args.split}.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["sampler", "nfe", "draws", "images"])
    samplers = [name for name in args.samplers if name != "flowsdf_released" or config.sde.process == "flow"]
    for name, nfe, settings in plan(samplers, args.nfe, config.sampling):
        key = {"sampler": name, "nfe": nfe, "draws": settings.draws_per_image, "images": len(scenes)}
        if (table[list(key)] == pd.Series(key)).all(axis=1).any():
            continue
        drawer = drawer_of(config.model_copy(update={"sampling": settings}), denoiser)
        drawer.before_evaluation = stop.raise_if_set
        row = score(drawer, scenes, settings.draws_per_image)
        line = pd.DataFrame([{**key, **row}])
        table = pd.concat([table, line], ignore_index=True) if len(table) else line
        table.to_csv(path, index=False)
        print(f"{name:16} {nfe:4d} evaluations: MMSE F1 {row['mmse_f1']:.4f}, single {row['single_f1']:.4f}, "
              f"{row['seconds_per_image']:.2f} s per image", flush=True)  # fmt: skip
    f1_over_nfe(
        table,
        "sampler",
        ("mmse_f1", "single_f1"),
        f"{config.name}, {args.split}, {len(scenes)} images",
        path.with_suffix(".png"),
    )
    path.with_suffix(".md").write_text(markdown(table))
    print(f"chart: {path.with_suffix('.png')}")


if __name__ == "__main__":
    sys.exit(run_command(main))
