"""Scored images and runs, and pages of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.sdf import signed_distance
from evaluation import calibration
from evaluation.comparison import Run
from evaluation.ensemble import Ensemble
from evaluation.metrics import count
from evaluation.object_scores import object_scores
from report.layers import ImageLayers
from report.page import render_report


def image_record(seed: int, classes: int = 1, draws: int = 8) -> calibration.ImageRecord:
    """An image of random draws around a random truth."""
    rng = np.random.default_rng(seed)
    sdf = rng.uniform(-1, 1, (classes, 12, 10)).astype(np.float32)
    spread = rng.uniform(0.05, 0.8, sdf.shape)
    centre = sdf + spread * rng.normal(size=sdf.shape)
    ensemble = Ensemble(sdf.shape, 0.03)  # type: ignore[arg-type]
    for _ in range(draws):
        ensemble.add((centre + spread * rng.normal(size=sdf.shape)).astype(np.float32))
    truth = np.where(sdf.min(axis=0) < 0.03, sdf.argmin(axis=0) + 1, 0)
    return calibration.measure(ensemble.mmse, ensemble.std, sdf, ensemble.probability, ensemble.labels, truth)


SUMMARY = {"draws": 8, "nfe_per_draw": 9, "seconds_per_image": 1.5, "device": "cpu"}


def scored_run(name: str, f1: Mapping[str, float], summary: Mapping[str, object] = SUMMARY) -> Run:
    """A scored_run with these F1; its other scores follow from them."""
    rows = [
        {"image_id": image, "f1": value, "iou": value / 2, "single_f1": value - 0.1, "single_iou": value / 4}
        for image, value in f1.items()
    ]
    return Run(name, pd.DataFrame(rows), summary)


def disc_layers(seed: int, size: int = 24, classes: int = 1, draws: int = 6, first: int = 0) -> ImageLayers:
    """A disc of each class, and draws whose radius differs; a larger seed makes them worse. first: how many are
    kept to be looked at."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]

    def sdf(k: int, radius: float) -> np.ndarray:
        centre = size * (k + 1) / (classes + 1)
        inside = np.hypot(rows - size / 2, columns - centre) < radius
        return signed_distance(inside, 6.0)

    radius = size / (3 * classes)
    truth_sdf = np.stack([sdf(k, radius) for k in range(classes)])
    shift = 0.1 * radius * seed
    stack = np.stack(
        [[sdf(k, radius + shift + rng.normal(0, 0.1 * radius)) for k in range(classes)] for _ in range(draws)]
    )

    def labels(maps: np.ndarray) -> np.ndarray:
        return np.where(maps.min(axis=0) < 0.03, maps.argmin(axis=0) + 1, 0).astype(np.uint8)

    mmse = stack.mean(axis=0)
    probability = np.mean([labels(draw) > 0 for draw in stack], axis=0)
    image = (120 + 60 * truth_sdf.min(axis=0) + rng.normal(0, 8, (size, size))).clip(0, 255).astype(np.uint8)
    spread = stack.std(axis=0, ddof=1) if draws > 1 else None
    kept = np.stack([labels(draw) for draw in stack[:first]]) if first else None
    return ImageLayers(image, mmse, labels(mmse), probability, spread, labels(truth_sdf), truth_sdf, draws=kept)


def row_of(name: str, layers: ImageLayers) -> dict[str, Any]:
    assert layers.truth is not None
    counts = count(layers.labels > 0, layers.truth > 0)
    spread = 0.0 if layers.std is None else float(layers.std.mean())
    scores = object_scores(layers.truth, layers.labels)
    return {"image_id": name, "f1": counts.f1, "iou": counts.iou, "single_f1": counts.f1 - 0.02, "mean_std": spread,
            "aji": scores["aji"], "pq": scores["pq"], "objects": 1, "true_objects": 1}  # fmt: skip


SPREAD: dict[str, Any] = {
    "images": 3, "ssr": 0.61, "fair_crps": 0.0617, "fair_crps_band": 0.0821, "energy": 0.613,
    "mask_crps": 0.0489, "mask_energy": 0.631, "ged": 0.144, "fair_ged": 0.131, "skill": 0.043,
    "jitter": 0.0858, "jitter_of": "validation",
    "image_area": {"cases": 60, "coverage": 0.4, "expected": 0.778, "crps": 0.011,
                   "ranks": [20, 6, 4, 2, 0, 4, 1, 7, 16], "chi_square": 56.7, "degrees_of_freedom": 8, "p": 2e-9},
    "object_area": {"cases": 3, "coverage": 0.55, "expected": 0.778, "crps": 33.2, "ranks": [], "chi_square": None,
                    "degrees_of_freedom": None, "p": None, "lost": 0.08},
}  # fmt: skip


def example(folder: Path, names: list[str], layers: Callable[[int], ImageLayers] = disc_layers, **changes: Any) -> str:
    """A page of these images, and the files that it links to in `folder`; changes of the summary."""
    images = {name: layers(seed) for seed, name in enumerate(names)}
    rows = [row_of(name, own) for name, own in images.items()]
    records = []
    for own in images.values():
        assert own.truth is not None
        assert own.truth_sdf is not None
        assert own.probability is not None
        std = np.zeros_like(own.mmse) if own.std is None else own.std
        records.append(calibration.measure(own.mmse, std, own.truth_sdf, own.probability, own.labels, own.truth))
    numbers = calibration.summary(records, 6)
    (folder / "calibration.json").write_text(json.dumps(numbers))
    for name in names:
        (folder / name).mkdir()
        (folder / name / "mmse.npy").write_bytes(b"")
    f1 = float(np.mean([row["f1"] for row in rows]))
    scores = {"f1": f1, "iou": f1 - 0.1, "f1_std": 0.05, "f1_pooled": f1, "iou_pooled": f1 - 0.1}
    summary = {
        "images": len(rows), "draws": 6, "nfe_per_draw": 9, "sampler": "heun", "threshold": 0.03, "split": "test",
        "mmse": scores, "single": {**scores, "f1": f1 - 0.02}, "seconds_per_image": 1.25, "peak_memory_mib": 300.0,
        "device": "cpu", "checkpoint": "runs/x/best.pt", "seed": 0,
        "objects": {"aji": 0.8, "pq": 0.7, "dq": 0.9, "sq": 0.78, "f1": 0.9, "dice": 0.85, "hausdorff": 2.5,
                    "area_interval": {"objects": 3, "level": 0.9, "coverage": 0.6, "expected": 0.71, "width": 0.1}},
        "spread": SPREAD,
        "uncertainty": {k: v for k, v in numbers.items() if not isinstance(v, list)} | {"risk_control": None},
    }  # fmt: skip
    return render_report("tiny: images", summary | changes, rows, images.__getitem__, folder, "name: tiny\n")
