"""Files of one image of a sampling run: samples/<id>/<image>/..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from skimage.measure import label as connected_parts

from data.pixel_size import Microns
from data.scenes import Scene
from data.sdf import signed_distance
from evaluation.calibration import measure
from evaluation.conformal import RISK_THRESHOLDS, risk_curve
from evaluation.ensemble import Ensemble, FirstDraws, Moments, classify, mask_std
from evaluation.instances import DrawObjects, ObjectRecord, matched_areas, objects_of
from evaluation.metrics import Counts, count_classes, mean_f1
from evaluation.object_scores import object_scores
from evaluation.raters import consensus_dice, rater_scores
from evaluation.spread import SpreadRecord, measure_draws, measure_moments
from report import figures
from report.raters import rater_line
from results.exports import write_geojson, write_labels
from sampling.drawer import Drawer
from sampling.loading import member_checkpoints
from utils.data_schema import DataConfig
from utils.files import whole_folder, write_array, write_json
from utils.runs import file_hash
from utils.schema import Config
from utils.sections import EvaluationConfig

SCORED = 64  # draws at most whose spread is scored; fair scores do not depend on their number
MEMORY = 1 << 27  # values of these at most, 512 MiB


class ImageResult:
    """What is gathered of one image, draw by draw.

    draw_counts: of each draw, by class. draws: only if they are to be kept (`keep`). first: for the report. scored:
    draws that do not depend on each other (of antithetic pairs the first), for the scores of their spread. masks: of
    the draws, only if several raters are there to compare them with. evaluations: of the network, for all draws.
    """

    def __init__(
        self, drawer: Drawer, scene: Scene, data: DataConfig, evaluation: EvaluationConfig, keep: bool
    ) -> None:
        self.scene, self.data, self.classes = scene, data, drawer.denoiser.mask_channels
        threshold = drawer.threshold
        self.ensemble: Ensemble | Moments = Ensemble((self.classes, *scene.shape), threshold)
        self.objects = DrawObjects(threshold, evaluation.object_depth, evaluation.object_area)
        self.draw_counts: list[list[Counts]] = []
        self.draws: list[np.ndarray] | None = [] if keep else None
        self.first = FirstDraws()
        self.scored: list[np.ndarray] = []
        self.dependent = 1 + drawer.antithetic
        self.masks: list[np.ndarray] | None = None if scene.raters is None else []
        self.evaluations = 0.0

    def _score(self, sdf: np.ndarray, labels: np.ndarray) -> None:
        self.draw_counts.append(count_classes(labels, self.scene.labels, self.classes))
        self.objects.add(sdf.min(axis=0))
        self.first.add(labels)
        if self.masks is not None:
            self.masks.append(labels > 0)

    def add(self, sdf: np.ndarray, evaluations: float) -> None:
        """Take in one draw (K, H, W)."""
        assert isinstance(self.ensemble, Ensemble)
        self.evaluations += evaluations
        self._score(sdf, self.ensemble.add(sdf))
        if self.draws is not None:
            self.draws.append(sdf)
        first = len(self.draw_counts) % self.dependent == 1 % self.dependent
        if first and len(self.scored) < min(SCORED, max(2, MEMORY // sdf.size)):
            self.scored.append(sdf)

    def set_moments(self, mmse: np.ndarray, std: np.ndarray) -> None:
        """Instead of draws: mean and standard deviation (K, H, W); the mean is scored as the one draw."""
        self.ensemble = Moments(mmse, std, self.ensemble.threshold)
        self._score(mmse, self.ensemble.labels)


def write_maps(
    folder: Path,
    mmse: np.ndarray,
    std: np.ndarray,
    probability: np.ndarray,
    labels: np.ndarray,
    draws: np.ndarray | None,
) -> None:
    """Arrays and pictures of the maps (K, H, W), (K, H, W), (H, W) and (H, W) of one image. draws: (D, H, W), see
    `FirstDraws`."""
    one, zoom = len(mmse) == 1, figures.zoom_of(labels.shape)
    write_array(folder / "mmse.npy", mmse[0] if one else mmse)
    write_array(folder / "std.npy", std[0] if one else std)
    figures.gray_image(probability).save(folder / "probability.png")
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(folder / "mask.png")
    if not one:
        Image.fromarray(labels).save(folder / "classes.png")
    if draws is not None:
        stacked = draws.reshape(-1, draws.shape[2])
        Image.fromarray(stacked > 0 if one else stacked).save(folder / "draws.png")  # of one class a bit for a pixel
    figures.mmse_map(mmse.min(axis=0), zoom).save(folder / "mmse.png")
    figures.std_map(std.max(axis=0), zoom).save(folder / "std.png")


def object_table(records: Sequence[ObjectRecord], microns: Microns | None = None) -> pd.DataFrame:
    """objects.csv: a row for each object, without contours; areas in square micrometres too where the size of a pixel
    is known."""
    names = ["label", "area", "equivalent_diameter", "row", "column",
             "probability", "area_mean", "area_std", "area_low", "area_high", "mean_std"]  # fmt: skip
    rows = [{**vars(r), "row": r.centroid[0], "column": r.centroid[1]} for r in records]
    table = pd.DataFrame(rows, columns=names)
    if microns is not None:
        table.insert(2, "area_um2", table["area"] * microns[0] * microns[1])
    return table


def write_objects(
    folder: Path, labels: np.ndarray, records: Sequence[ObjectRecord], image: str, microns: Microns | None = None
) -> None:
    """instances.png (.tif where 16 bits are too few), and the tables of `write_records`."""
    write_labels(folder / ("instances.tif" if labels.max(initial=0) >= 2**16 else "instances.png"), labels, microns)
    write_records(folder, records, image, microns)


def write_records(folder: Path, records: Sequence[ObjectRecord], image: str, microns: Microns | None) -> None:
    """objects.csv and objects.geojson. microns: size of the pixels that records count in, where it is known."""
    object_table(records, microns).to_csv(folder / "objects.csv", index=False)
    write_geojson(folder / "objects.geojson", records, image, microns)


def _object_details(result: ImageResult, labels: np.ndarray) -> dict[str, Any]:
    """Scores against the true objects, and the areas of these in the draws."""
    truth = result.scene.instances
    if truth is None:
        truth = connected_parts(result.scene.labels > 0, connectivity=1)
    truth = np.unique(truth, return_inverse=True)[1].reshape(truth.shape) + int(truth.min() > 0)
    count = int(truth.max(initial=0))
    areas = np.nan_to_num(matched_areas(truth.astype(np.int32), result.objects, count)).astype(int)
    return {
        **object_scores(truth, labels),
        "objects": int(labels.max(initial=0)),
        "true_objects": count,
        "true_areas": np.bincount(truth.ravel(), minlength=count + 1)[1:].tolist(),
        "drawn_areas": areas.T.tolist(),
    }


def _sdf_of_mask(draw: np.ndarray, threshold: float, truncation: float) -> np.ndarray:
    """SDF (K, H, W) of the mask, or of the classes, that a draw (K, H, W) stands for."""
    labels = classify(draw, threshold)
    return np.stack([signed_distance(labels == k, truncation) for k in range(1, len(draw) + 1)])


def _spread(result: ImageResult) -> SpreadRecord:
    """Scores of the draws' spread; of a mean and its standard deviation where these came without draws.

    The truths are SDFs; those of the draws' masks, with their truncation, are scored besides, and in the draws' place
    where these are no SDFs (data.representation: binary). A mean with a standard deviation is scored as it is.
    """
    scene, ensemble, draws = result.scene, result.ensemble, result.scored
    if isinstance(ensemble, Moments):
        return measure_moments(ensemble.mmse, ensemble.std, scene.rater_sdfs)
    raters, threshold = scene.labels[None] > 0 if scene.raters is None else scene.raters, ensemble.threshold
    truncation = result.data.truncation
    exact = [_sdf_of_mask(draw, threshold, truncation) for draw in draws]
    if result.data.representation == "binary":
        draws = exact
        threshold = 0.5 / max(1.0, truncation)  # inside is 0 and below, the next pixel outside is 1 / truncation
    return measure_draws(draws, scene.rater_sdfs, raters, threshold, exact)


def _details(result: ImageResult, labels: np.ndarray) -> dict[str, Any]:
    """What the summary of all images needs of this one, besides scores.json."""
    scene, ensemble = result.scene, result.ensemble
    mmse, truth = ensemble.mmse, scene.labels
    target = scene.target(result.data.representation).mean(axis=0)
    record = measure(mmse, ensemble.std, target, ensemble.probability, ensemble.labels, truth)
    details = {
        "uncertainty": record.to_dict(),
        "risk": asdict(risk_curve(-mmse.min(axis=0), truth > 0, RISK_THRESHOLDS)),
        "objects": _object_details(result, labels),
        "spread": asdict(_spread(result)),
    }
    if result.masks and scene.raters is not None:
        dice = consensus_dice(ensemble.labels > 0, scene.raters)
        details["raters"] = {**rater_scores(np.stack(result.masks), scene.raters), "consensus_dice": dice}
    return details


def write_image(result: ImageResult, folder: Path, costs: Mapping[str, float]) -> None:
    """All files of one image: maps, pictures that compare them with the truth, objects and scores."""
    scene, ensemble, zoom = result.scene, result.ensemble, figures.zoom_of(result.scene.shape)
    classes, mmse, std = ensemble.labels, ensemble.mmse, ensemble.std
    counts = count_classes(classes, scene.labels, result.classes)
    scores = {
        "mmse": [astuple(c) for c in counts],
        "draws": [[astuple(c) for c in draw] for draw in result.draw_counts],
        "mean_std": float(std.mean()),
        **costs,
    }
    labels, records = objects_of(mmse, std, result.objects)
    with whole_folder(folder / scene.key) as partial:
        write_maps(partial, mmse, std, ensemble.probability, classes, result.first.labels)
        figures.gray_image(mask_std(ensemble.probability)).save(partial / "mask_std.png")
        figures.overlay(scene.image, scene.labels, classes, zoom, result.classes).save(partial / "overlay.png")
        figures.panel(scene.image, scene.labels, mmse, std, classes, mean_f1(counts), zoom).save(partial / "panel.png")
        if result.masks and scene.raters is not None:
            stds = mask_std(ensemble.probability), mask_std(scene.raters.mean(axis=0))
            line = rater_line(scene.key, scene.image, scene.raters, np.stack(result.masks), stds)
            line.save(partial / "raters.png")
        if result.draws:
            draws = np.stack(result.draws)
            np.savez_compressed(partial / "draws.npz", sdf=draws[:, 0] if result.classes == 1 else draws)
        side = result.data.microns_per_pixel
        write_objects(partial, labels, records, scene.key, None if side is None else (side, side))
        write_json(partial / "details.json", _details(result, labels))
        write_json(partial / "scores.json", scores)


def settings_of(config: Config, path: Path, split: str) -> dict[str, Any]:
    """What results depend on besides the config of the run."""
    members = [file_hash(other) for other in member_checkpoints(config.sampling, path)]
    return {
        "checkpoint": file_hash(path),
        **({"members": members} if members else {}),
        f"{split} data": file_hash(Path(config.data.root) / f"{split}.csv"),
        "sampling": config.sampling.model_dump(mode="json"),
        "seed": config.seed,
    }
