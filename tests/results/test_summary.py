"""What a sampling run says besides its maps: objects, uncertainty, raters, risk control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.dataset import load_split
from data.scenes import scenes_of
from data.sdf import signed_distance
from evaluation.proper import energy_score, fair_crps
from results.read import read_metrics
from results.summary import _mean_known
from tests.commands import Workspace, newest, sets, truth
from utils.config import load_config

QUICK = ("--set", "sampling.animate=false")


def summary_of(folder: Path) -> dict[str, dict[str, Any]]:
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
    same = ["evaluation.missed=0.9", "sampling.max_batch=2", "sampling.save_draws=true"]
    assert trained("sample", *QUICK, *sets(same)).code == 0
    assert summary_of(newest(trained))["spread"]["jitter_of"] == "validation"
    control = summary_of(newest(trained))["uncertainty"]["risk_control"]
    assert control["validation_images"] == 2
    assert control["test_images"] == 3
    below = control["sdf_below"]
    missed = []
    for key in pd.read_csv(validation / "metrics.csv", dtype={"image_id": str})["image_id"]:
        mask = np.asarray(Image.open(trained.path / "prepared" / "Validation_patches" / f"{key}_mask.png")) > 0
        missed.append((np.load(validation / key / "mmse.npy")[mask] > below + 1e-6).mean())
    assert (sum(missed) + 1) / 3 <= 0.9 + 1e-9
    # Other draws are another prediction: nothing is promised for them.
    for other in ("sampling.draws=2", "sampling.tile=16"):
        assert trained("sample", *QUICK, *sets([other])).code == 0
        assert summary_of(newest(trained))["uncertainty"]["risk_control"] is None
    (validation / "metrics.csv").write_text("name,f1\nphantom,1\n")
    assert "metrics.csv: damaged, or not of this program (ValueError: no column image_id)" in trained.fails(
        "sample", *QUICK
    )


@pytest.mark.slow
def test_spread_is_of_the_draws_that_were_written(trained: Workspace) -> None:
    """Of antithetic pairs the first; folders of before are summed up without."""
    options = ["sampling.noise=antithetic", "sampling.draws=4", "sampling.save_draws=true"]
    assert trained("sample", *QUICK, *sets(options)).code == 0
    folder = newest(trained)
    summary, table = summary_of(folder), pd.read_csv(folder / "metrics.csv", dtype={"image_id": str})
    spread, data = summary["spread"], load_config("config.yaml").data
    scenes, truncation = scenes_of(load_split(data, "test")), data.truncation
    for scene, row in zip(scenes, table.to_dict("records"), strict=True):
        draws = np.load(folder / scene.key / "draws.npz")["sdf"][::2, None]
        assert row["fair_crps"] == pytest.approx(fair_crps(draws, scene.rater_sdfs[0]).mean(), abs=1e-6)
        assert row["energy"] == pytest.approx(energy_score(draws, scene.rater_sdfs[0]), abs=1e-5)
        exact = np.stack([signed_distance(draw < summary["threshold"], truncation) for draw in draws[:, 0]])[:, None]
        assert row["mask_crps"] == pytest.approx(fair_crps(exact, scene.rater_sdfs[0]).mean(), abs=1e-6)
        assert row["mask_energy"] == pytest.approx(energy_score(exact, scene.rater_sdfs[0]), abs=1e-5)
    for name in ("fair_crps", "fair_crps_band", "energy", "mask_crps", "mask_energy", "ged", "fair_ged"):
        assert spread[name] == pytest.approx(table[name].mean())
    assert {"coverage", "expected", "crps", "ranks", "p"} <= spread["image_area"].keys() & spread["object_area"].keys()
    assert spread["image_area"]["expected"] == pytest.approx(1 / 3)
    assert 0 <= spread["object_area"]["lost"] <= 1
    assert (spread["images"], spread["jitter_of"]) == (3, "these images")
    assert spread["ssr"] > 0
    again = ("sample", "--resume", *QUICK, *sets(options))
    for left, scene in zip((2, 1, None), scenes, strict=True):
        details = json.loads((folder / scene.key / "details.json").read_text())
        del details["spread"]
        (folder / scene.key / "details.json").write_text(json.dumps(details))
        assert trained(*again).code == 0
        spread = summary_of(folder)["spread"]
        assert (spread and spread["images"]) == left


@pytest.mark.slow
def test_one_evaluation_with_a_std_has_a_spread_and_one_without_has_none(workspace: Workspace) -> None:
    options = sets(["model.second_moment=true", "sde.prior_share=0.5", "sampling.sampler=mean"])
    assert workspace("prepare").code == 0
    assert workspace("main", *options).code == 0
    assert workspace("sample", *QUICK, *options).code == 0
    spread = summary_of(newest(workspace))["spread"]
    assert spread["ssr"] > 0
    assert [spread["energy"], spread["image_area"]["coverage"]] == [None, None]
    assert workspace("sample", *QUICK, *options[:4], *sets(["sampling.draws=1"])).code == 0
    spread = summary_of(newest(workspace))["spread"]
    assert [spread["ssr"], spread["image_area"]["coverage"], spread["object_area"]["ranks"]] == [None, None, []]
    assert spread["energy"] > 0


@pytest.mark.slow
def test_several_raters_have_scores_of_their_own(workspace: Workspace) -> None:
    raters = ["--set", "data.phantom.raters=3"]
    assert workspace("prepare", *raters).code == 0
    assert workspace("main", *raters).code == 0
    assert workspace("sample", *raters, *QUICK).code == 0
    folder = newest(workspace)
    scores, table = summary_of(folder)["raters"], pd.read_csv(folder / "metrics.csv")
    assert {
        "ged_3",
        "hm_iou_3",
        "d_max_3",
        "ncc",
        "volume_crps",
        "consensus_dice",
        "ece_rater_3",
        "diversity_ratio",
    } <= scores.keys()
    assert scores["ged_3"] == pytest.approx(table["ged_3"].mean())
    assert (folder / "raters.png").is_file()
    assert all((folder / name / "raters.png").is_file() for name in table["image_id"])
    assert 'data-layer="rater_std"' in (folder / "report.html").read_text()


def test_images_may_be_called_what_tables_take_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("image_id,f1\nNA,0.5\nnull,\n007,0.25\n")
    table = read_metrics(tmp_path / "metrics.csv", ["f1"])
    assert table["image_id"].tolist() == ["NA", "null", "007"]
    assert table["f1"].isna().tolist() == [False, True, False]


def test_a_score_that_the_first_image_lacks_is_in_the_summary() -> None:
    rows: list[dict[str, float | None]] = [
        {"ged_4": 0.5, "ece_rater_1": 0.1},
        {"ged_4": 0.3, "ged_16": 0.2, "ece_rater_1": None},
    ]
    assert _mean_known(rows) == {"ged_4": 0.4, "ece_rater_1": 0.1, "ged_16": 0.2}
