"""What a sampling run says besides its maps: objects, uncertainty, raters, risk control."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.helpers import Workspace, newest, sets, truth

QUICK = ("--set", "sampling.animate=false")


def summary_of(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "summary.json").read_text())


def test_objects_of_an_image_are_those_of_its_mask(trained: Workspace) -> None:
    assert (
        trained("sample", *QUICK, "--set", "evaluation.object_depth=0", "--set", "evaluation.object_area=0").code == 0
    )
    folder = newest(trained)
    table = pd.read_csv(folder / "metrics.csv", dtype={"image_id": str})
    for _, row in table.iterrows():
        image = folder / row["image_id"]
        labels = np.asarray(Image.open(image / "instances.png"))
        np.testing.assert_array_equal(labels > 0, np.asarray(Image.open(image / "mask.png")) > 0)
        objects = pd.read_csv(image / "objects.csv")
        assert objects["area"].tolist() == np.bincount(labels.ravel(), minlength=1)[1:].tolist()
        assert objects["probability"].between(0, 1).all()
        features = json.loads((image / "objects.geojson").read_text())["features"]
        assert sum(f["properties"]["objectType"] == "detection" for f in features) == len(objects) == row["objects"]
    scores = summary_of(folder)["objects"]
    assert scores["pq"] == pytest.approx(table["pq"].mean())
    assert scores["f1"] == pytest.approx(table["object_f1"].mean())


def test_uncertainty_is_of_the_files_that_were_written(trained: Workspace) -> None:
    assert trained("sample", *QUICK).code == 0
    folder = newest(trained)
    wrong, seen = [], []
    for key in pd.read_csv(folder / "metrics.csv", dtype={"image_id": str})["image_id"]:
        p = np.asarray(Image.open(folder / key / "probability.png")) / 255
        seen.append(((p - truth(trained, key)) ** 2).mean())
        wrong.append((np.asarray(Image.open(folder / key / "mask.png")) > 0) != truth(trained, key))
    numbers = summary_of(folder)["uncertainty"]
    assert numbers["brier"] == pytest.approx(np.mean(seen), abs=0.01)
    assert numbers["aurc_random"] == pytest.approx(np.mean(wrong), abs=1e-6)
    assert numbers["risk_control"] is None  # the validation images were not sampled
    curves = json.loads((folder / "calibration.json").read_text())
    assert len(curves["reliability_probability"]) == len(curves["reliability_frequency"]) > 0
    assert (folder / "reliability.png").is_file()
    assert (folder / "sparsification.png").is_file()


@pytest.mark.slow
def test_risk_control_takes_its_threshold_from_the_validation_images(trained: Workspace) -> None:
    assert trained("sample", *QUICK, "--split", "val").code == 0
    validation = newest(trained)
    # What changes no draw may differ.
    same = ["evaluation.missed=0.9", "sampling.max_batch=2", "sampling.save_draws=true", "sampling.tile=32"]
    assert trained("sample", *QUICK, *sets(same)).code == 0
    control = summary_of(newest(trained))["uncertainty"]["risk_control"]
    assert control["validation_images"] == 2  # type: ignore[index]
    assert control["test_images"] == 3  # type: ignore[index]
    below = control["sdf_below"]  # type: ignore[index]
    missed = []
    for key in pd.read_csv(validation / "metrics.csv", dtype={"image_id": str})["image_id"]:
        mask = np.asarray(Image.open(trained.path / "prepared" / "Validation_patches" / f"{key}_mask.png")) > 0
        missed.append((np.load(validation / key / "mmse.npy")[mask] > below + 1e-6).mean())
    assert (sum(missed) + 1) / 3 <= 0.9 + 1e-9
    # Other draws are another prediction: nothing is promised for them.
    assert trained("sample", *QUICK, "--set", "sampling.draws=2").code == 0
    assert summary_of(newest(trained))["uncertainty"]["risk_control"] is None


def test_several_raters_have_scores_of_their_own(workspace: Workspace) -> None:
    raters = ["--set", "data.phantom.raters=3"]
    assert workspace("prepare", *raters).code == 0
    assert workspace("main", *raters).code == 0
    assert workspace("sample", *raters, *QUICK).code == 0
    folder = newest(workspace)
    scores, table = summary_of(folder)["raters"], pd.read_csv(folder / "metrics.csv")
    assert {"ged_3", "hm_iou_3", "d_max_3", "ncc", "volume_crps", "consensus_dice", "ece_rater_3"} <= scores.keys()
    assert scores["ged_3"] == pytest.approx(table["ged_3"].mean())
