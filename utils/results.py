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

from data.scenes import Scene
from evaluation import figures
from evaluation.ensemble import Ensemble, Moments
from evaluation.metrics import Counts, count_classes, mean_f1, mean_iou
from evaluation.report import render_report
from utils.config import dump_config
from utils.errors import UsageError
from utils.runs import new_folder, write_json, write_text
from utils.schema import Config


@dataclass
class ImageResult:
    """The ensemble of one image and the counts of each of its draws, by class."""

    scene: Scene
    classes: int
    ensemble: Ensemble | Moments
    draw_counts: list[list[Counts]]
    draws: list[np.ndarray] | None  # only if they are to be kept


def start_result(scene: Scene, classes: int, threshold: float, keep_draws: bool) -> ImageResult:
    ensemble = Ensemble((classes, *scene.shape), threshold)
    return ImageResult(scene, classes, ensemble, [], [] if keep_draws else None)


def add_draw(result: ImageResult, sdf: np.ndarray) -> None:
    """Take in one draw (K, H, W)."""
    assert isinstance(result.ensemble, Ensemble)
    labels = result.ensemble.add(sdf)
    result.draw_counts.append(count_classes(labels, result.scene.labels, result.classes))
    if result.draws is not None:
        result.draws.append(sdf)


def set_moments(result: ImageResult, mmse: np.ndarray, std: np.ndarray) -> None:
    """Instead of draws: mean and standard deviation (K, H, W); the mean is scored as the one draw."""
    result.ensemble = Moments(mmse, std, result.ensemble.threshold)
    result.draw_counts.append(count_classes(result.ensemble.labels, result.scene.labels, result.classes))


def peak_memory_mib(device: torch.device) -> float:
    """The most memory used so far: of the GPU where there is one, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def write_image(result: ImageResult, folder: Path, costs: Mapping[str, float]) -> None:
    """All files of one image, written beside their place and moved there as a whole."""
    scene, ensemble, one = result.scene, result.ensemble, result.classes == 1
    partial, final = folder / f".{scene.key}.partial", folder / scene.key
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    labels, mmse, std = ensemble.labels, ensemble.mmse, ensemble.std
    counts = count_classes(labels, scene.labels, result.classes)
    zoom = figures.zoom_of(scene.shape)
    np.save(partial / "mmse.npy", mmse[0] if one else mmse)
    np.save(partial / "std.npy", std[0] if one else std)
    figures.gray_image(ensemble.probability).save(partial / "probability.png")
    figures.gray_image(ensemble.mask_std).save(partial / "mask_std.png")
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(partial / "mask.png")
    if not one:
        Image.fromarray(labels).save(partial / "classes.png")
    figures.overlay(scene.image, scene.labels, labels, zoom, result.classes).save(partial / "overlay.png")
    figures.mmse_map(mmse.min(axis=0), zoom).save(partial / "mmse.png")
    figures.std_map(std.max(axis=0), zoom).save(partial / "std.png")
    panel = figures.panel(scene.image, scene.labels, mmse, std, labels, mean_f1(counts), zoom)
    panel.save(partial / "panel.png")
    if result.draws:
        draws = np.stack(result.draws)
        np.savez_compressed(partial / "draws.npz", sdf=draws[:, 0] if one else draws)
    scores = {
        "mmse": [astuple(c) for c in counts],
        "draws": [[astuple(c) for c in draw] for draw in result.draw_counts],
        "mean_std": float(std.mean()),
        **costs,
    }
    write_json(partial / "scores.json", scores)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(partial, final)


def is_done(folder: Path, key: str) -> bool:
    return (folder / key / "scores.json").is_file()


def open_folder(run: Path, settings: dict[str, Any], resume: bool, kind: str = "samples") -> Path:
    """A new folder under run/kind, or with `resume` the newest one, whose settings must have been the same."""
    settings = json.loads(json.dumps(settings))
    if not resume:
        folder = new_folder(run / kind)
        write_json(folder / "settings.json", settings)
        return folder
    folders = sorted((run / kind).glob("*/settings.json"), key=lambda p: (p.parent.name[:15], len(p.parent.name)))
    if not folders:
        raise UsageError(f"--resume: {run / kind} has nothing to go on with")
    before = json.loads(folders[-1].read_text())
    for key in settings:
        if before.get(key) != settings[key]:
            raise UsageError(
                f"--resume: {folders[-1].parent} was made with another {key}; sample anew without --resume"
            )
    return folders[-1].parent


def _whole(x: float) -> float | int:
    return int(x) if x.is_integer() else x


Scored = Sequence[Counts]  # of one image or draw, by class


def _scores(scored: Sequence[Scored], f1_std: float) -> dict[str, Any]:
    """Means over images (or draws) and classes; counts pooled over images, then means over classes."""
    pooled = [sum(counts, Counts()) for counts in zip(*scored, strict=True)]
    return {
        "f1": float(np.mean([mean_f1(counts) for counts in scored])),
        "iou": float(np.mean([mean_iou(counts) for counts in scored])),
        "f1_pooled": mean_f1(pooled),
        "iou_pooled": mean_iou(pooled),
        "f1_std": f1_std,
    }


def _by_class(scored: Sequence[Scored], classes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Scores of every class, where there are several."""
    columns = zip(classes, zip(*scored, strict=True), strict=True)
    return {str(value): {"f1": mean_f1(counts), "iou": mean_iou(counts)} for value, counts in columns}


def _row(key: str, whole: Scored, draws: Sequence[Scored], scores: Mapping[str, Any]) -> dict[str, Any]:
    """One line of metrics.csv; pixel counts are sums over classes."""
    total = sum(whole, Counts())
    return {
        "image_id": key,
        "f1": mean_f1(whole),
        "iou": mean_iou(whole),
        "single_f1": float(np.mean([mean_f1(c) for c in draws])),
        "single_iou": float(np.mean([mean_iou(c) for c in draws])),
        "true_positive": total.true_positive,
        "false_positive": total.false_positive,
        "false_negative": total.false_negative,
        "mean_std": scores["mean_std"],
        "draws": len(draws),
        "nfe_per_draw": scores["nfe"],
        "seconds": scores["seconds"],
    }


def finish(
    folder: Path, scenes: Sequence[Scene], config: Config, facts: Mapping[str, Any]
) -> tuple[dict[str, Any], Path]:
    """metrics.csv, summary.json and report.html from the scores of all images; returns summary and report."""
    rows, mmse, single, memory = [], [], [], []
    for scene in scenes:
        scores = json.loads((folder / scene.key / "scores.json").read_text())
        whole = [Counts(*c) for c in scores["mmse"]]
        draws = [[Counts(*c) for c in draw] for draw in scores["draws"]]
        mmse.append(whole)
        single += draws
        memory.append(scores["peak_memory_mib"])
        rows.append(_row(scene.key, whole, draws, scores))
        if config.data.classes is not None:
            by_class = zip(config.data.classes, whole, strict=True)
            rows[-1] |= {f"f1_class_{value}": counts.f1 for value, counts in by_class}
    summary: dict[str, Any] = {
        "images": len(rows),
        "draws": _whole(float(np.mean([row["draws"] for row in rows]))),
        "nfe_per_draw": rows[0]["nfe_per_draw"],
        "mmse": _scores(mmse, float(np.std([row["f1"] for row in rows]))),
        "single": _scores(single, float(np.std([row["single_f1"] for row in rows]))),
        "seconds_per_image": float(np.mean([row["seconds"] for row in rows])),
        "peak_memory_mib": max(memory),
        **facts,
    }
    if config.data.classes is not None:
        summary["mmse"]["classes"] = _by_class(mmse, config.data.classes)
        summary["single"]["classes"] = _by_class(single, config.data.classes)
    table = folder / ".metrics.csv.tmp"
    pd.DataFrame(rows).to_csv(table, index=False)
    os.replace(table, folder / "metrics.csv")
    write_json(folder / "summary.json", summary)
    title = f"{config.name}: {len(rows)} test images"
    write_text(folder / "report.html", render_report(title, summary, rows, folder, dump_config(config)))
    return summary, folder / "report.html"
