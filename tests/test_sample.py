"""sample.py as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from results import modes
from sampling.segmenter import Segmenter
from sampling.tiled import TiledDrawer
from tests.commands import RESUNET, ROOT, UNET, Workspace, content, newest, sets, shake_checkpoint
from tests.networks import LIBRARY
from utils.locks import held


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RESUNET, UNET], ids=["resunet", "unet"])
def test_commands(trained: Workspace, kind: list[str]) -> None:
    if kind is UNET:
        pytest.importorskip(LIBRARY["unet"])
    result = trained("main", *sets(kind))
    assert result.code == 0, result.err
    run = trained.run_folder()
    shake_checkpoint(run)
    result = trained("sample", *sets(kind))
    assert result.code == 0, result.err
    assert "MMSE of 1 draws" in result.out
    folder = newest(run)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["sampler"], summary["nfe_per_draw"], summary["threshold"]) == ("mean", 1, 0.0)
    assert summary["mmse"]["f1"] == summary["single"]["f1"]
    mmse = np.load(folder / "phantom_0010" / "mmse.npy")
    assert np.abs(mmse).max() <= 1
    assert (folder / "report.html").is_file()
    segmenter = Segmenter.from_run(run, device="cpu")
    found = segmenter(trained.path / "prepared" / "Test_patches" / "phantom_0010.png")
    np.testing.assert_allclose(found.mmse[0], mmse, atol=1e-5)
    assert np.array_equal(found.mask, mmse < 0)
    large = np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8)
    assert segmenter(large).mask.shape == (50, 70)


@pytest.mark.slow
def test_images_larger_than_a_tile_are_drawn_by_tiles(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pictures without masks are, whether or not they were cut into parts; smaller ones as without tiles."""
    run = trained.run_folder()
    shake_checkpoint(run)

    def sampled(*options: str) -> tuple[np.ndarray, dict[str, Any]]:
        result = trained("sample", *sets(options))
        assert result.code == 0, result.err
        folder = newest(run)
        return np.load(folder / "phantom_0010" / "mmse.npy"), json.loads((folder / "summary.json").read_text())

    whole, _ = sampled()
    np.testing.assert_array_equal(sampled("sampling.tile=32")[0], whole)
    tiled, summary = sampled("sampling.tile=16")
    assert (summary["draws"], summary["nfe_per_draw"]) == (3, 5)
    picture = trained.path / "prepared" / "Test_patches" / "phantom_0010.png"
    found = Segmenter.from_run(run, device="cpu", overrides=["sampling.tile=16"])(picture, "phantom_0010")
    np.testing.assert_allclose(tiled, found.mmse[0], atol=1e-5)
    assert np.abs(tiled - whole).max() > 1e-3
    parts = ["data.test_patch=[16, 16]"]
    assert trained("prepare", *sets(parts)).code == 0
    np.testing.assert_allclose(sampled(*parts, "sampling.tile=16")[0], tiled, atol=1e-5)
    monkeypatch.setattr(TiledDrawer, "in_one_band", lambda *_: False)
    message = trained.fails("sample", *sets([*parts, "sampling.tile=16"]))
    assert "phantom_0010 of 32 x 32 is too large to be scored by tiles" in message


DIRECT = ("--set", "sde.prior_share=0.5")


def test_regression_is_a_config(trained: Workspace) -> None:
    options = ["--set", "sde.prior_share=1", "--set", "sampling.sampler=mean"]
    assert trained("main", *options).code == 0
    result = trained("sample", *options)
    assert result.code == 0, result.err
    assert "MMSE of 1 draws" in result.out
    assert "sampler: mean" in trained.fails("main", "--set", "sde.prior_share=1")


@pytest.mark.slow
def test_mean_and_std_in_one_evaluation(trained: Workspace) -> None:
    options = [*DIRECT, "--set", "model.second_moment=true"]
    assert trained("main", *options).code == 0
    result = trained("sample", *options, "--set", "sampling.sampler=mean")
    assert result.code == 0, result.err
    folder = next((trained.run_folder() / "samples").iterdir())
    table = pd.read_csv(folder / "metrics.csv")
    assert (table["draws"] == 1).all()
    assert (table["nfe_per_draw"] == 1).all()
    std = np.load(folder / table["image_id"][0] / "std.npy")
    assert (std > 0).all()
    assert trained("sample", *options).code == 0


@pytest.mark.slow
def test_masks_given_images_as_any_other_model(joint: Workspace) -> None:
    result = joint("sample")
    assert result.code == 0, result.err
    folder = newest(joint, "samples")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["images"], summary["draws"], summary["nfe_per_draw"]) == (3, 3, 5)
    assert (folder / "report.html").is_file()
    mean = joint("sample", "--set", "sampling.sampler=mean", "--set", "sampling.animate=false")
    assert mean.code == 0, mean.err


def test_pc_sampler_counts_its_evaluations(trained: Workspace) -> None:
    options = ["--set", "sampling.sampler=pc", "--set", "sampling.steps=12", "--set", "sampling.corrector_steps=2"]
    result = trained("sample", *options)
    assert result.code == 0, result.err
    summary = json.loads((newest(trained) / "summary.json").read_text())
    assert (summary["nfe_per_draw"], summary["sampler"], summary["threshold"]) == (12, "pc", pytest.approx(0.5 / 6))


@pytest.mark.slow
def test_sigterm_stops_cleanly_and_resume_ends_with_the_same_files(trained: Workspace) -> None:
    shake_checkpoint(trained.run_folder(), scale=0.03)
    options = ["--set", "sampling.steps=401", "--set", "sampling.draws=2", "--set", "sampling.max_batch=2"]
    command = [
        sys.executable,
        str(ROOT / "sample.py"),
        "--config",
        "config.yaml",
        "--device",
        "cpu",
        "--quiet",
        *options,
    ]
    process = subprocess.Popen(command, cwd=trained.path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    pattern = "samples/*/phantom_0010/scores.json"
    for _ in range(600):
        if list(trained.run_folder().glob(pattern)):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    folder = newest(trained)
    assert not (folder / "summary.json").exists()
    assert not list(folder.glob(".*"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert trained("sample", *options, "--resume").code == 0
        resumed = content(folder)
        assert trained("sample", *options).code == 0
    finally:
        torch.set_num_threads(threads)
    fresh = content(newest(trained))
    resumed.pop("settings.json")
    fresh.pop("settings.json")
    assert resumed == fresh


def test_a_film_is_whole_or_absent(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(frames: object, threshold: float, path: Path) -> None:
        path.write_bytes(b"GIF89a")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(modes, "trajectory", killed)
        assert trained("sample", "--set", "sampling.animate=true").code == 130
    assert not list(newest(trained).glob("*trajectory.gif"))
    assert trained("sample", "--set", "sampling.animate=true", "--resume").code == 0
    with Image.open(newest(trained) / "trajectory.gif") as film:
        assert film.n_frames > 2  # type: ignore[attr-defined]


def test_a_sampling_is_held(trained: Workspace) -> None:
    assert trained("sample").code == 0
    with held(newest(trained) / ".lock", "this test"):
        assert f"{newest(trained).name} is in use by process {os.getpid()}" in trained.fails("sample", "--resume")


@pytest.mark.slow
def test_run_and_checkpoint_can_be_named(trained: Workspace) -> None:
    run = trained.run_folder()
    assert trained("sample", "--run", str(run), "--checkpoint", "last").code == 0
    assert json.loads((newest(trained) / "summary.json").read_text())["checkpoint"].endswith("last.pt")
    assert trained("sample", "--checkpoint", str(run / "checkpoints" / "step_00000003.pt")).code == 0
    summary = json.loads((newest(trained) / "summary.json").read_text())
    assert summary["checkpoint"].endswith("step_00000003.pt")


def test_bad_input_is_one_line_and_writes_nothing(trained: Workspace) -> None:
    run = trained.run_folder()
    assert "no run yet" in trained.fails("sample", "--set", "name=other")
    assert "not a run folder" in trained.fails("sample", "--run", "nowhere")
    assert "no such checkpoint" in trained.fails("sample", "--checkpoint", "nowhere.pt")
    line = trained.fails("sample", "--set", "model.channels=12")
    assert "another architecture" in line
    assert "encoder.project.0.2.weight is (8, 8, 1, 1), the model has (12, 8, 1, 1)" in line
    assert "sde.prediction" in trained.fails("sample", "--set", "sde.prediction=eps")
    assert "nothing to go on with" in trained.fails("sample", "--resume")
    (run / "evil.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "evil.pt" in trained.fails("sample", "--checkpoint", str(run / "evil.pt"))
    torch.save({"format": 1, "step": 3}, run / "bare.pt")
    assert "config: Field required" in trained.fails("sample", "--checkpoint", str(run / "bare.pt"))
    best = run / "checkpoints" / "best.pt"
    whole = best.read_bytes()
    best.unlink()
    assert "--checkpoint last" in trained.fails("sample")
    best.write_bytes(whole[:2000])
    assert "damaged, or not" in trained.fails("sample")
    best.write_bytes(whole)
    table = trained.path / "prepared" / "test.csv"
    header = table.read_text().splitlines()[0]
    table.write_text(header + "\n")
    assert "lists no images" in trained.fails("sample")
    assert not (run / "samples").exists()
