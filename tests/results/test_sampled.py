"""Files of a sampling: the contract, and going on after an interruption."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.rows import Patch
from data.scenes import scenes_of
from data.sdf import signed_distance
from evaluation.calibration import ImageRecord, summary
from evaluation.metrics import count
from results.read import read_details
from results.sampled import ImageResult, write_image
from tests.commands import Workspace, content, newest, shake_checkpoint, truth
from utils.data_schema import DataConfig
from utils.sections import EvaluationConfig

PATCHES = ["--set", "data.phantom.size=48", "--set", "data.patch=[32, 32]", "--set", "data.stride=[16, 16]"]


PARTS = [*PATCHES, "--set", "data.test_patch=[24, 24]"]


@pytest.mark.slow
def test_images_in_parts_are_scored_as_a_whole(workspace: Workspace) -> None:
    for command in ("prepare", "main"):
        assert workspace(command, *PARTS).code == 0
    assert workspace("sample", *PARTS, "--set", "sampling.save_draws=true").code == 0
    folder = next((workspace.run_folder() / "samples").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["images"] == 3
    rows = pd.read_csv(folder / "metrics.csv")
    assert list(rows["image_id"]) == [f"phantom_00{i}" for i in (10, 11, 12)]
    draws = np.load(folder / "phantom_0011" / "draws.npz")["sdf"]
    assert draws.shape == (3, 48, 48)
    np.testing.assert_allclose(np.load(folder / "phantom_0011" / "mmse.npy"), draws.mean(axis=0), atol=1e-5)
    assert Image.open(folder / "phantom_0011" / "mask.png").size == (48, 48)
    # One draw at a time gives the same whole draws.
    options = ["--set", "sampling.save_draws=true", "--set", "sampling.max_batch=1"]
    assert workspace("sample", *PARTS, *options).code == 0
    again = sorted((workspace.run_folder() / "samples").iterdir())[-1]
    np.testing.assert_allclose(np.load(again / "phantom_0011" / "draws.npz")["sdf"], draws, atol=2e-4)


CLASSES = ["--set", "data.classes=[1, 2]", "--set", "data.phantom.objects=glands_and_lumina"]


def test_classes_are_trained_jointly_and_exclude_each_other(workspace: Workspace) -> None:
    for command in ("prepare", "main"):
        assert workspace(command, *CLASSES).code == 0
    assert workspace("sample", *CLASSES, "--set", "sampling.save_draws=true").code == 0
    folder = next((workspace.run_folder() / "samples").iterdir())
    image = folder / "phantom_0011"
    mmse, labels = np.load(image / "mmse.npy"), np.asarray(Image.open(image / "classes.png"))
    assert mmse.shape == np.load(image / "std.npy").shape == (2, 32, 32)
    assert np.load(image / "draws.npz")["sdf"].shape == (3, 2, 32, 32)
    summary = json.loads((folder / "summary.json").read_text())
    expected = np.where(mmse.min(axis=0) < summary["threshold"], 1 + (mmse[1] < mmse[0]), 0)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(np.asarray(Image.open(image / "mask.png")) > 0, labels > 0)
    drawn = np.load(image / "draws.npz")["sdf"]
    expected = np.where(drawn.min(axis=1) < summary["threshold"], 1 + (drawn[:, 1] < drawn[:, 0]), 0)
    np.testing.assert_array_equal(np.asarray(Image.open(image / "draws.png")), expected.reshape(-1, 32))
    scores = summary["mmse"]["classes"]
    assert set(scores) == {"1", "2"}
    assert summary["mmse"]["f1"] == pytest.approx((scores["1"]["f1"] + scores["2"]["f1"]) / 2)
    rows = pd.read_csv(folder / "metrics.csv")
    assert rows["f1"][0] == pytest.approx((rows["f1_class_1"][0] + rows["f1_class_2"][0]) / 2)
    assert "data.classes" in workspace.fails("sample", "--set", "data.classes=[2, 1]", *CLASSES[2:])


PER_IMAGE = {"mmse.npy", "std.npy", "probability.png", "mask.png", "mask_std.png", "overlay.png", "mmse.png", "std.png",
             "panel.png", "scores.json", "details.json", "draws.png", "instances.png", "objects.csv",
             "objects.geojson"}  # fmt: skip


def test_files_and_numbers_keep_the_contract(trained: Workspace) -> None:
    result = trained("sample", "--set", "sampling.save_draws=true", "--set", "sampling.threshold=0.05")
    assert result.code == 0, result.err
    folder = newest(trained)
    assert f"report: {(folder / 'report.html').relative_to(trained.path)}" in result.out
    summary = json.loads((folder / "summary.json").read_text())
    assert {
        "images", "draws", "nfe_per_draw", "sampler", "threshold", "mmse", "single", "seconds_per_image",
        "peak_memory_mib", "device", "checkpoint", "seed", "spread",
    } <= summary.keys()  # fmt: skip
    assert (summary["images"], summary["draws"], summary["nfe_per_draw"], summary["sampler"]) == (3, 3, 5, "heun")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mmse, single = [], []
    for row in rows:
        image = folder / row["image_id"]
        assert {path.name for path in image.iterdir()} == PER_IMAGE | {"draws.npz"}
        draws = np.load(image / "draws.npz")["sdf"]
        mean, std = np.load(image / "mmse.npy"), np.load(image / "std.npy")
        assert (mean.dtype, std.dtype, mean.shape) == (np.float32, np.float32, (32, 32))
        np.testing.assert_allclose(mean, draws.mean(0), atol=1e-5)
        np.testing.assert_allclose(std, draws.std(0, ddof=1), atol=1e-5)
        masks = draws < 0.05
        with Image.open(image / "draws.png") as first:
            assert first.mode == "1"  # a bit for a pixel
            np.testing.assert_array_equal(np.asarray(first).reshape(masks.shape), masks)
        probability = np.asarray(Image.open(image / "probability.png"))
        np.testing.assert_array_equal(probability, np.round(masks.mean(0) * 255).astype(np.uint8))
        mask = np.asarray(Image.open(image / "mask.png"))
        np.testing.assert_array_equal(mask, (mean < 0.05) * 255)
        mmse.append(count(mean < 0.05, truth(trained, row["image_id"])))
        single.append([count(m, truth(trained, row["image_id"])) for m in masks])
        assert float(row["f1"]) == pytest.approx(mmse[-1].f1)
        assert float(row["single_iou"]) == pytest.approx(np.mean([c.iou for c in single[-1]]))
    assert summary["mmse"]["f1"] == pytest.approx(np.mean([c.f1 for c in mmse]))
    assert summary["mmse"]["f1_std"] == pytest.approx(np.std([c.f1 for c in mmse]))
    assert summary["mmse"]["iou_pooled"] == pytest.approx((mmse[0] + mmse[1] + mmse[2]).iou)
    assert summary["single"]["f1"] == pytest.approx(np.mean([[c.f1 for c in draws] for draws in single]))
    assert (folder / "report.html").stat().st_size > 5000
    with Image.open(folder / "trajectory.gif") as gif:
        assert gif.n_frames >= 3  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_folder_of_before_gets_a_report_without_draws(trained: Workspace) -> None:
    assert trained("sample").code == 0
    folder = newest(trained)
    report = folder / "report.html"
    assert report.read_text().count('data-layer="draws"') == 4  # three cards and the toolbar
    for path in folder.glob("*/draws.png"):
        path.unlink()
    report.unlink()
    assert trained("sample", "--resume").code == 0
    assert 'data-layer="draws"' not in report.read_text()
    assert 'data-layer="probability"' in report.read_text()


@pytest.mark.slow
def test_resume_fills_in_what_is_missing(trained: Workspace) -> None:
    import shutil

    shake_checkpoint(trained.run_folder(), scale=0.03)
    assert trained("sample").code == 0
    folder = newest(trained)
    before, scores = content(folder), json.loads((folder / "summary.json").read_text())
    kept = (folder / "phantom_0010" / "scores.json").stat().st_mtime_ns
    shutil.rmtree(folder / "phantom_0011")
    for name in ("summary.json", "metrics.csv", "report.html", "trajectory.gif"):
        (folder / name).unlink()
    assert trained("sample", "--resume").code == 0
    assert newest(trained) == folder
    assert content(folder) == before
    assert (folder / "phantom_0010" / "scores.json").stat().st_mtime_ns == kept
    again = json.loads((folder / "summary.json").read_text())
    assert (again["mmse"], again["single"]) == (scores["mmse"], scores["single"])
    assert "another sampling" in trained.fails("sample", "--resume", "--set", "sampling.draws=9")


def test_empty_truth_and_odd_sizes_pass(trained: Workspace) -> None:
    root = trained.path / "prepared"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (21, 33), dtype=np.uint8)).save(root / "odd.png")
    Image.new("L", (33, 21)).save(root / "odd_mask.png")
    table = root / "test.csv"
    table.write_text(table.read_text() + "odd.png,odd_mask.png,,odd,0,0,21,33,\n")
    assert trained("sample", "--set", "sampling.threshold=0.05").code == 0
    mask = np.load(newest(trained) / "odd" / "mmse.npy") < 0.05
    assert mask.shape == (21, 33)
    table = pd.read_csv(newest(trained) / "metrics.csv").set_index("image_id")
    assert table.loc["odd", "f1"] == float(not mask.any())  # nothing to find


@pytest.mark.parametrize("representation", ["sdf", "binary"])
def test_a_std_that_knows_every_error_has_nothing_left(tmp_path: Path, representation: str) -> None:
    """Discs of slightly other radii than the true one: the std is large where the mean errs, of SDFs and of masks."""
    row, column = np.mgrid[:48, :48] - 24.0
    depth = np.hypot(row, column)

    def draw(radius: float) -> np.ndarray:
        sdf = np.clip((depth - radius) / 12, -1, 1).astype(np.float32)[None]
        return np.sign(sdf) if representation == "binary" else sdf

    inside = depth < 12
    patch = Patch("a", "a", "a.png", np.zeros((48, 48), np.uint8), signed_distance(inside, 12)[None, None], inside * 1)
    data = DataConfig(root="none", representation=representation, truncation=12)
    drawer = SimpleNamespace(denoiser=SimpleNamespace(mask_channels=1), threshold=0.0, antithetic=False)
    result = ImageResult(drawer, scenes_of([patch])[0], data, EvaluationConfig(), keep=False)  # type: ignore[arg-type]
    for radius in (10.3, 11.3, 12.3, 13.3, 14.3):
        result.add(draw(radius), 1.0)
    write_image(result, tmp_path, {"nfe": 1, "seconds": 0.0, "peak_memory_mib": 0.0})
    numbers: dict[str, Any] = summary([ImageRecord.from_dict(read_details(tmp_path / "a")["uncertainty"])])
    assert numbers["ause"] < 0.1 < 0.4 < numbers["ause_random"]
    assert numbers["pearson"] > 0.6
