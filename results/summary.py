"""Files of a whole sampling run: metrics.csv, summary.json, calibration.json and report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from data.images import read_image
from data.scenes import Scenes
from evaluation import calibration, spread
from evaluation.calibration import ImageRecord
from evaluation.conformal import interval_coverage, risk_control
from evaluation.metrics import Counts, mean_f1, mean_iou
from evaluation.raters import diversity_ratio
from report.calibration_figures import rank_histograms, reliability_diagram, sparsification_curve, spread_skill_chart
from report.layers import ImageLayers
from report.page import render_report
from report.raters import rater_sheet
from results.read import OBJECT_SCORES, Details, Settings, read_details, read_layers, read_metrics, read_scores
from utils.config import dump_config
from utils.files import whole_file, write_json, write_text
from utils.reading import read_json
from utils.runs import folders_with
from utils.schema import Config
from utils.sections import NOT_OF_DRAWS

RATED = 12  # images of raters.png
SPREAD_COLUMNS = ("fair_crps", *spread.SCORES)  # of metrics.csv


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


def _row(key: str, group: str, whole: Scored, draws: Sequence[Scored], scores: Mapping[str, Any]) -> dict[str, Any]:
    """One line of metrics.csv; pixel counts are sums over classes."""
    total = sum(whole, Counts())
    return {
        "image_id": key,
        "group": group,
        "f1": mean_f1(whole),
        "iou": mean_iou(whole),
        "single_f1": float(np.mean([mean_f1(c) for c in draws])),
        "single_iou": float(np.mean([mean_iou(c) for c in draws])),
        **asdict(total),
        "mean_std": scores["mean_std"],
        "draws": len(draws),
        "nfe_per_draw": scores["nfe"],
        "seconds": scores["seconds"],
    }


def _object_columns(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Of one image, for metrics.csv."""
    names = {name: name if name in ("aji", "pq", "dq", "sq") else f"object_{name}" for name in OBJECT_SCORES}
    counts = {"objects": objects["objects"], "true_objects": objects["true_objects"]}
    return {**counts, **{column: objects[name] for name, column in names.items()}}


def _object_summary(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over images, and how often the draws' interval of an area holds the true one."""
    drawn = [np.array(areas) for own in objects for areas in own["drawn_areas"]]
    true = [area for own in objects for area in own["true_areas"]]
    means: dict[str, Any] = {name: float(np.mean([own[name] for own in objects])) for name in OBJECT_SCORES}
    return {**means, "area_interval": interval_coverage(drawn, true)}


def _mean_known(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean of every score over the images that have it: other numbers of draws or raters have other ones."""
    names = dict.fromkeys(name for row in rows for name in row)
    known = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}  # type: ignore[arg-type]


def _of_draws(settings: Settings) -> dict[str, Any]:
    """What the draws of a sampling follow from."""
    sampling = {name: value for name, value in settings.get("sampling", {}).items() if name not in NOT_OF_DRAWS}
    return {"sampling": sampling, **{name: settings.get(name) for name in ("checkpoint", "members", "seed")}}


def _validation_details(folder: Path) -> list[Details]:
    """Of the run's newest complete sampling of the validation images with the same draws; empty where there is none."""
    own = _of_draws(read_json(folder / "settings.json", Settings))
    for other in reversed(folders_with(folder.parent, "settings.json")):
        theirs = read_json(other / "settings.json", Settings)
        if _of_draws(theirs) == own and "val data" in theirs and (other / "summary.json").is_file():
            return [read_details(other / key) for key in read_metrics(other / "metrics.csv")["image_id"]]
    return []


def _risk_control(validation: Sequence[Details], details: Sequence[Details], missed: float) -> dict[str, Any] | None:
    """The SDF below which foreground is taken so that the expected missed share stays under `missed`, chosen on the
    validation images, and what it does on these images. None where the validation images were not sampled."""
    if not validation:
        return None
    achieved = risk_control([own["risk"] for own in validation], [own["risk"] for own in details], missed)
    threshold = achieved.pop("threshold")
    return {**achieved, "sdf_below": None if threshold is None else -threshold}


def _spread(
    folder: Path, details: Sequence[Details], validation: Sequence[Details], dependent: int
) -> dict[str, Any] | None:
    """Numbers of the draws' spread, with the rank histograms written into the folder; None where no image has any.
    dependent: as in `ImageResult`."""
    known = [own for own in details if "spread" in own]
    if not known:
        return None
    drawn = [np.array(areas[::dependent]) for own in known for areas in own["objects"]["drawn_areas"]]
    true = [area for own in known for area in own["objects"]["true_areas"]]
    others = [own["spread"] for own in validation if "spread" in own]
    numbers = spread.summary([own["spread"] for own in known], drawn, true, others)
    rank_histograms(numbers).savefig(folder / "rank_histograms.png", dpi=100)
    return numbers


def _uncertainty(
    folder: Path, details: Sequence[Details], draws: float, risk: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All numbers of calibration, with its curves and figures written into the folder. draws: mean over images."""
    records = (ImageRecord.from_dict(own["uncertainty"]) for own in details)
    numbers = calibration.summary(records, draws if draws > 1 else math.inf)
    spread_skill_chart(numbers).savefig(folder / "spread_skill.png", dpi=100)
    reliability_diagram(numbers).savefig(folder / "reliability.png", dpi=100)
    sparsification_curve(numbers).savefig(folder / "sparsification.png", dpi=100)
    write_json(folder / "calibration.json", numbers)
    flat = {name: value for name, value in numbers.items() if not isinstance(value, list)}
    return {**flat, "risk_control": risk}


def write_raters(folder: Path, details: Mapping[str, Details]) -> None:
    """raters.png: lines of at most RATED images that some rater marked, from the least to the largest diversity of
    raters. details: by image. None where no image has a line."""
    known = []
    for key, own in details.items():
        diversity = own.get("raters", {}).get("fair_rater_diversity")
        marked = "spread" in own and any(own["spread"].true_areas)
        if marked and diversity is not None and (folder / key / "raters.png").is_file():
            known.append((diversity, key))
    places = np.linspace(0, len(known) - 1, min(RATED, len(known))).round().astype(int)
    known.sort()
    paths = [folder / known[i][1] / "raters.png" for i in places]
    if paths:
        with whole_file(folder / "raters.png") as temporary:
            rater_sheet([Image.fromarray(read_image(path)) for path in paths]).save(temporary)


def finish(folder: Path, scenes: Scenes, config: Config, facts: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """metrics.csv, summary.json and report.html from the scores of all images; returns summary and report."""
    rows, mmse, single, memory, details = [], [], [], [], []
    for key, group in zip(scenes.keys, scenes.groups, strict=True):
        scores = read_scores(folder / key, config.data.channels)
        whole = [Counts(*c) for c in scores["mmse"]]
        draws = [[Counts(*c) for c in draw] for draw in scores["draws"]]
        mmse.append(whole)
        single += draws
        memory.append(scores["peak_memory_mib"])
        details.append(read_details(folder / key))
        rows.append(_row(key, group, whole, draws, scores) | _object_columns(details[-1]["objects"]))
        rows[-1] |= details[-1].get("raters", {})
        if config.data.classes is not None:
            by_class = zip(config.data.classes, whole, strict=True)
            rows[-1] |= {f"f1_class_{value}": counts.f1 for value, counts in by_class}
        if "spread" in details[-1]:
            rows[-1] |= {name: getattr(details[-1]["spread"], name) for name in SPREAD_COLUMNS}
    validation = _validation_details(folder) if facts["split"] == "test" else []
    risk = _risk_control(validation, details, config.evaluation.missed)
    summary: dict[str, Any] = {
        "images": len(rows),
        "draws": _whole(float(np.mean([row["draws"] for row in rows]))),
        "nfe_per_draw": _whole(float(np.mean([row["nfe_per_draw"] for row in rows]))),
        "mmse": _scores(mmse, float(np.std([row["f1"] for row in rows]))),
        "single": _scores(single, float(np.std([row["single_f1"] for row in rows]))),
        "seconds_per_image": float(np.mean([row["seconds"] for row in rows])),
        "peak_memory_mib": max(memory),
        **facts,
        "objects": _object_summary([own["objects"] for own in details]),
        "uncertainty": _uncertainty(folder, details, float(np.mean([row["draws"] for row in rows])), risk),
        "spread": _spread(folder, details, validation, 1 + (config.sampling.noise == "antithetic")),
    }
    if any("raters" in own for own in details):
        rated = [own["raters"] for own in details if "raters" in own]
        summary["raters"] = {**_mean_known(rated), "diversity_ratio": diversity_ratio(rated)}
        write_raters(folder, dict(zip(scenes.keys, details, strict=True)))
    if config.data.classes is not None:
        summary["mmse"]["classes"] = _by_class(mmse, config.data.classes)
        summary["single"]["classes"] = _by_class(single, config.data.classes)
    write_text(folder / "metrics.csv", pd.DataFrame(rows).to_csv(index=False))
    write_json(folder / "summary.json", summary)
    title = f"{config.name}: {len(rows)} {facts['split']} images"
    places = {key: i for i, key in enumerate(scenes.keys)}

    def layers(key: str) -> ImageLayers:
        scene = scenes[places[key]]
        return read_layers(folder / key, scene.image, summary["draws"], scene, config.data.representation)

    write_text(folder / "report.html", render_report(title, summary, rows, layers, folder, dump_config(config)))
    return summary, folder / "report.html"
