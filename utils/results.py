"""Files of a sampling run: samples/<id>/<image>/..., metrics.csv, summary.json, report.html."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from data.dataset import Patch
from evaluation import figures
from evaluation.ensemble import Ensemble
from evaluation.metrics import Counts, count
from evaluation.report import render_report
from utils.config import dump_config
from utils.errors import UsageError
from utils.runs import new_folder, write_json, write_text
from utils.schema import Config


@dataclass
class ImageResult:
    """The ensemble of one image and the counts of each of its draws."""

    patch: Patch
    ensemble: Ensemble
    draw_counts: list[Counts]
    draws: list[np.ndarray] | None  # only if they are to be kept


def start_result(patch: Patch, threshold: float, keep_draws: bool) -> ImageResult:
    return ImageResult(patch, Ensemble(patch.mask.shape, threshold), [], [] if keep_draws else None)


def add_draw(result: ImageResult, sdf: np.ndarray) -> None:
    """Take in one draw (H, W)."""
    result.draw_counts.append(count(result.ensemble.add(sdf), result.patch.mask))
    if result.draws is not None:
        result.draws.append(sdf)


def peak_memory_mib(device: torch.device) -> float:
    """The most memory used so far: of the GPU where there is one, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def write_image(result: ImageResult, folder: Path, costs: Mapping[str, float]) -> None:
    """All files of one image, written beside their place and moved there as a whole."""
    patch, ensemble = result.patch, result.ensemble
    partial, final = folder / f".{patch.key}.partial", folder / patch.key
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    counts = count(ensemble.mask, patch.mask)
    zoom = figures.zoom_of(patch.mask.shape)
    np.save(partial / "mmse.npy", ensemble.mmse)
    np.save(partial / "std.npy", ensemble.std)
    figures.gray_image(ensemble.probability).save(partial / "probability.png")
    figures.gray_image(ensemble.mask_std).save(partial / "mask_std.png")
    Image.fromarray(ensemble.mask.astype(np.uint8) * 255).save(partial / "mask.png")
    figures.overlay(patch.image, patch.mask, ensemble.mask, zoom).save(partial / "overlay.png")
    figures.mmse_map(ensemble.mmse, zoom).save(partial / "mmse.png")
    figures.std_map(ensemble.std, zoom).save(partial / "std.png")
    panel = figures.panel(patch.image, patch.mask, ensemble.mmse, ensemble.std, ensemble.mask, counts.f1, zoom)
    panel.save(partial / "panel.png")
    if result.draws is not None:
        np.savez_compressed(partial / "draws.npz", sdf=np.stack(result.draws))
    scores = {
        "mmse": astuple(counts),
        "draws": [astuple(c) for c in result.draw_counts],
        "mean_std": float(ensemble.std.mean()),
        **costs,
    }
    write_json(partial / "scores.json", scores)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(partial, final)


def is_done(folder: Path, key: str) -> bool:
    return (folder / key / "scores.json").is_file()


def open_folder(run: Path, settings: dict[str, Any], resume: bool) -> Path:
    """A new samples folder, or with `resume` the newest one, which must have been made with the same settings."""
    settings = json.loads(json.dumps(settings))
    if not resume:
        folder = new_folder(run / "samples")
        write_json(folder / "settings.json", settings)
        return folder
    folders = sorted((run / "samples").glob("*/settings.json"), key=lambda p: (p.parent.name[:15], len(p.parent.name)))
    if not folders:
        raise UsageError(f"--resume: {run / 'samples'} has nothing to go on with")
    before = json.loads(folders[-1].read_text())
    for key in settings:
        if before.get(key) != settings[key]:
            raise UsageError(
                f"--resume: {folders[-1].parent} was made with another {key}; sample anew without --resume"
            )
    return folders[-1].parent


def _scores(rows: Sequence[Counts], pooled: Counts) -> dict[str, float]:
    f1 = [row.f1 for row in rows]
    return {
        "f1": float(np.mean(f1)),
        "iou": float(np.mean([row.iou for row in rows])),
        "f1_pooled": pooled.f1,
        "iou_pooled": pooled.iou,
        "f1_std": float(np.std(f1)),
    }


def finish(
    folder: Path, patches: Sequence[Patch], config: Config, facts: Mapping[str, Any]
) -> tuple[dict[str, Any], Path]:
    """metrics.csv, summary.json and report.html from the scores of all images; returns summary and report."""
    rows, mmse, single, seconds, memory = [], [], [], [], []
    for patch in patches:
        scores = json.loads((folder / patch.key / "scores.json").read_text())
        whole, draws = Counts(*scores["mmse"]), [Counts(*c) for c in scores["draws"]]
        mmse.append(whole)
        single.append(draws)
        seconds.append(scores["seconds"])
        memory.append(scores["peak_memory_mib"])
        rows.append(
            {
                "image_id": patch.key,
                "f1": whole.f1,
                "iou": whole.iou,
                "single_f1": float(np.mean([c.f1 for c in draws])),
                "single_iou": float(np.mean([c.iou for c in draws])),
                "true_positive": whole.true_positive,
                "false_positive": whole.false_positive,
                "false_negative": whole.false_negative,
                "mean_std": scores["mean_std"],
                "draws": len(draws),
                "nfe_per_draw": scores["nfe"],
                "seconds": scores["seconds"],
            }
        )
    per_image_single = pd.DataFrame(rows)[["single_f1", "single_iou"]]
    every_draw = [c for draws in single for c in draws]
    summary = {
        "images": len(rows),
        "draws": config.sampling.draws,
        "nfe_per_draw": rows[0]["nfe_per_draw"],
        "mmse": _scores(mmse, sum(mmse, Counts())),
        "single": {
            **_scores(every_draw, sum(every_draw, Counts())),
            "f1_std": float(per_image_single["single_f1"].std(ddof=0)),
        },
        "seconds_per_image": float(np.mean(seconds)),
        "peak_memory_mib": max(memory),
        **facts,
    }
    table = folder / ".metrics.csv.tmp"
    pd.DataFrame(rows).to_csv(table, index=False)
    os.replace(table, folder / "metrics.csv")
    write_json(folder / "summary.json", summary)
    title = f"{config.name}: {len(rows)} test images"
    write_text(folder / "report.html", render_report(title, summary, rows, folder, dump_config(config)))
    return summary, folder / "report.html"
