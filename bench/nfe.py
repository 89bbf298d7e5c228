"""What each evaluation of the network buys: scores over evaluations per draw, for every sampler.

    python -m bench.nfe --config cfg/glas_small.yaml --run runs/glas_small/20261121-115251 --split val

Writes nfe.csv, nfe.png and nfe.md into the run, a row as soon as it is there, and goes on where it was stopped. Choose
on val; look at test once.
"""

from __future__ import annotations

from utils.command import StopFlag, run_command

import sys
from collections.abc import Sequence
from itertools import groupby, product
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from bench.charts import f1_over_nfe, markdown
from bench.trained import parser_of, trained_of
from data.scenes import Scene
from evaluation.ensemble import Ensemble
from evaluation.metrics import count_classes, mean_f1
from evaluation.raters import ged, iou_matrices
from models.build import threshold_of
from sampling.drawer import Drawer, Timed, drawer_of, scene_groups, whole_draws
from sampling.loading import load_denoiser
from utils.errors import UsageError
from utils.runs import file_hash
from utils.schema import Config

KEY = ("sampler", "nfe", "draws", "images")
SHARED = ("checkpoint", "seed", "r", "threshold")  # by all rows of a file; those of another checkpoint are not kept
NFE = (1, 2, 3, 5, 10, 20, 50, 100, 400)
# What each sets; its name is that of its sampler where nothing else is said.
SAMPLERS: dict[str, dict[str, Any]] = {
    "pc": {}, "euler_maruyama": {}, "ancestral": {"grid": "logsnr"}, "euler": {}, "heun": {}, "dpm_solver": {},
    "dpm_solver_sde": {"sampler": "dpm_solver", "stochastic": True}, "flowsdf_released": {}, "mean": {},
}  # fmt: skip


def config_of(name: str, nfe: int, whole: Config) -> Config | None:
    """The config with the sampler at that cost; None where it cannot have it, or not with the network."""
    own = whole.sampling
    kept = own.model_dump(include={"threshold", "max_batch", *(("r",) if name == "pc" else ())})
    sampling = {**kept, "draws": own.most_draws if own.draws == "auto" else own.draws, "sampler": name, "steps": nfe}
    try:
        found = Config.model_validate({**whole.model_dump(), "sampling": {**sampling, **SAMPLERS[name]}})
    except ValidationError:
        return None  # PC takes an even number
    return found if name != "mean" or nfe == 1 else None


def score(drawer: Drawer, scenes: Sequence[Scene], draws: int) -> dict[str, float]:
    """One row: means over all draws of all images, and over all pixels the correlation of std with error."""
    single, mmse, geds, errors, stds, seconds = [], [], [], [], [], 0.0
    classes = drawer.denoiser.mask_channels
    for numbers in scene_groups(scenes, max(1, drawer.max_batch // draws)):
        group = [scenes[i] for i in numbers]
        drawn = Timed(whole_draws(drawer, group, draws))
        for i, own in groupby(drawn, itemgetter(0)):
            scene, ensemble = group[i], Ensemble((classes, *group[i].shape), drawer.threshold)
            labels = [ensemble.add(draw) for _, draw, _ in own]
            *f1s, f1 = (mean_f1(count_classes(each, scene.labels, classes)) for each in (*labels, ensemble.labels))
            single += f1s
            mmse.append(f1)
            errors.append(np.abs(ensemble.mmse - scene.target("sdf").mean(axis=0)).ravel())
            stds.append(ensemble.std.ravel())
            if scene.raters is not None:
                geds.append(ged(*iou_matrices(np.stack(labels) > 0, scene.raters)))
        seconds += drawn.seconds
    error, std = np.concatenate(errors), np.concatenate(stds)
    varied = error.std() > 0 and std.std() > 0
    return {
        "single_f1": float(np.mean(single)),
        "mmse_f1": float(np.mean(mmse)),
        "mean_error": float(error.mean()),
        "error_std_correlation": float(np.corrcoef(error, std)[0, 1]) if varied else float("nan"),
        "ged": float(np.mean(geds)) if geds else float("nan"),
        "seconds_per_image": seconds / len(scenes),
    }


def page(table: pd.DataFrame) -> str:
    """The table as Markdown, a row for each sampler and cost."""
    columns = [c for c in table.columns if c in KEY or (table[c].notna().any() and c not in SHARED)]
    rows = table[columns].to_dict("records")
    cells = [{str(c): f"{v:.4f}" if isinstance(v, float) else str(v) for c, v in row.items()} for row in rows]
    return "\n".join(markdown(cells)) + "\n"


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
    config, run, scenes = trained.config, trained.run, trained.scenes
    stop, device = StopFlag(), next(trained.denoiser.parameters()).device
    path = run / f"nfe_{args.split}.csv"
    checkpoint = file_hash(trained.checkpoint)[:12]
    shared = dict(zip(SHARED, (checkpoint, config.seed, config.sampling.r, threshold_of(config)), strict=True))
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    table = table.reindex(columns=[*dict.fromkeys((*KEY, *SHARED, *table))])
    table = table[(table[list(shared)] == pd.Series(shared)).all(axis=1)]
    samplers = [name for name in args.samplers if name != "flowsdf_released" or config.sde.process == "flow"]
    for nfe, name in product(args.nfe, samplers):  # cheap rows first
        own = config_of(name, nfe, config)
        if own is None:
            continue
        draws = 1 if name == "mean" else int(own.sampling.draws)
        key = dict(zip(KEY, (name, nfe, draws, len(scenes)), strict=True))
        if (table[list(key)] == pd.Series(key)).all(axis=1).any():
            continue
        drawer = drawer_of(own, load_denoiser(own, trained.checkpoint, device))  # as that sampler needs it
        drawer.before_evaluation = stop.raise_if_set
        row = score(drawer, scenes, draws)
        line = pd.DataFrame([{**key, **shared, **row}])
        table = pd.concat([table, line], ignore_index=True) if len(table) else line
        table.to_csv(path, index=False)
        print(f"{name:16} {nfe:4d} evaluations: MMSE F1 {row['mmse_f1']:.4f}, single {row['single_f1']:.4f}, "
              f"{row['seconds_per_image']:.2f} s per image", flush=True)  # fmt: skip
    title, chart = f"{config.name}, {args.split}, {len(scenes)} images", path.with_suffix(".png")
    f1_over_nfe(table, "sampler", ("mmse_f1", "single_f1"), title, chart)
    path.with_suffix(".md").write_text(page(table))
    print(f"chart: {chart}")


if __name__ == "__main__":
    sys.exit(run_command(main))
