"""main.py as a user types it."""

from __future__ import annotations

import os
import re
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

from data.batches import Batch, Batches
from data.dataset import load_split
from data.sdf import signed_distance
from tests.commands import ROOT, UNET, Workspace, full_disk, newest, rows, same_state, section, sets
from training import session
from training.recorder import Taken
from training.state import TrainingState
from utils.checkpoint import load_checkpoint
from utils.config import load_config


def test_random_crops_train_and_fixed_ones_test(workspace: Workspace) -> None:
    crop = ["--set", "data.crop=[16, 24]"]
    for command in ("prepare", "main", "sample"):
        assert workspace(command, *crop).code == 0
    tables = {s: pd.read_csv(workspace.path / "prepared" / f"{s}.csv") for s in ("train", "test")}
    assert set(tables["train"]["height"]) == {32}
    assert set(zip(tables["test"]["height"], tables["test"]["width"], strict=True)) == {(16, 24)}
    assert "up to date" in workspace("prepare", *crop).out
    assert "larger than" in workspace.fails("main", "--set", "data.crop=[40, 40]")


@pytest.mark.slow
def test_one_rater_at_a_time_is_learned(workspace: Workspace) -> None:
    raters = ["--set", "data.phantom.raters=3", "--set", "data.phantom.objects=nuclei"]
    for command in ("prepare", "main", "sample"):
        assert workspace(command, *raters).code == 0
    patches = load_split(section(root=workspace.path / "prepared", truncation=6), "train")
    assert patches[0].sdf.shape == (3, 1, 32, 32)
    for sdf, rater in zip(patches[0].sdf, patches[0].raters, strict=True):
        np.testing.assert_array_equal(sdf[0], signed_distance(rater, 6))


@pytest.mark.slow
def test_all_raters_of_sparse_patches_go_on_as_one_run(workspace: Workspace) -> None:
    data = ["raters=all", "foreground_share=0.6", "patch=[8,8]", "phantom.objects=nuclei", "phantom.raters=3"]
    draws = ["sde.prior_share=1", "sde.objective=distribution", "sampling.sampler=ancestral", "sampling.steps=1"]
    options = sets([*(f"data.{option}" for option in data), *draws])
    assert workspace("prepare", *options).code == 0
    assert workspace("main", *options, "--set", "training.steps=3").code == 0
    run = workspace.run_folder()
    assert workspace("main", *options, "--resume", str(run)).code == 0
    assert workspace("main", *options).code == 0
    same_state(run / "checkpoints" / "last.pt", workspace.run_folder() / "checkpoints" / "last.pt")
    one = ["--set", "data.raters=one"]
    assert "data.raters was 'all'" in workspace.fails("main", *options, *one, "--resume", str(run))


@pytest.mark.slow
def test_draws_as_one_rater_would(workspace: Workspace) -> None:
    data = ["data.phantom.objects=nuclei", "data.phantom.raters=3", "sampling.augment=true"]
    draws = ["sde.prior_share=1", "sde.objective=distribution", "sampling.sampler=ancestral", "sampling.steps=1"]
    assert workspace("prepare", *sets(data)).code == 0
    words = workspace.fails("main", *sets([*data, *draws, "model.raters=2"]))
    assert "model.raters: 2, but " in words
    assert words.rstrip().endswith("has 3")
    learns = ["training.learning_rate=0.02", "sampling.spread=1"]
    options = sets([*data, *draws, *learns, "model.raters=3", "sampling.save_draws=true"])
    assert workspace("main", *options).code == 0
    draws_of: dict[str, np.ndarray] = {}
    for rater in ("null", "0", "2"):
        assert workspace("sample", *options, "--set", f"sampling.rater={rater}").code == 0
        draws_of[rater] = np.load(next(newest(workspace).glob("*/draws.npz")))["sdf"]
    assert not np.allclose(draws_of["0"], draws_of["2"])  # the same noise, another rater
    np.testing.assert_allclose(draws_of["null"][0], draws_of["0"][0], atol=1e-6)
    np.testing.assert_allclose(draws_of["null"][2], draws_of["2"][2], atol=1e-6)


def test_an_absent_library_is_named(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    runs = set((trained.path / "runs" / "tiny").iterdir())
    assert "pip install segmentation-models-pytorch" in trained.fails("main", *sets(UNET))
    assert set((trained.path / "runs" / "tiny").iterdir()) == runs


def test_run_folder_keeps_the_contract(trained: Workspace) -> None:
    run = trained.run_folder()
    assert {"config.yaml", "environment.json", "log.txt", "metrics.csv", "tensorboard", "checkpoints"} <= {
        path.name for path in run.iterdir()
    }
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step_00000003.pt", "step_00000006.pt", "last.pt", "best.pt"}
    assert load_config(run / "config.yaml") == load_config(trained.path / "config.yaml")
    written = rows(run)
    assert [int(row["step"]) for row in written if row["loss"]] == [2, 4, 6]
    assert [int(row["step"]) for row in written if row["val_f1"]] == [3, 6]
    assert sum(any(row[f"loss_t{i}"] for row in written) for i in range(8)) >= 6  # 18 times, by chance in 8 bins
    assert any((run / "tensorboard").iterdir())
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] == 6


@pytest.mark.slow
def test_training_learns(trained: Workspace) -> None:
    result = trained("main", "--set", "training.steps=60", "--set", "training.learning_rate=5e-3")
    assert result.code == 0
    losses = [float(row["loss"]) for row in rows(trained.run_folder()) if row["loss"]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--config",
        "config.yaml",
        "--device",
        "cpu",
        "--quiet",
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_step(run: Path, step: int) -> None:
    for _ in range(600):
        if (run / "metrics.csv").is_file() and any(int(row["step"]) >= step for row in rows(run)):
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} within a minute")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_the_run_goes_on(trained: Workspace, number: signal.Signals, code: int) -> None:
    old = trained.run_folder()
    process = start(trained.path, "--set", "training.steps=100000")
    while trained.run_folder() == old:
        time.sleep(0.1)
    run = trained.run_folder()
    wait_for_step(run, 4)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    saved = load_checkpoint(run / "checkpoints" / "last.pt")["step"]
    assert saved >= 4
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = ["--set", f"training.steps={saved + 3}"]
        assert trained("main", *steps, "--resume", str(run)).code == 0
        assert trained("main", *steps).code == 0
    finally:
        torch.set_num_threads(threads)
    same_state(run / "checkpoints" / "last.pt", trained.run_folder() / "checkpoints" / "last.pt")


def test_loss_that_is_not_finite_names_step_files_and_checkpoint(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.state.learning_rate_factor", lambda training, step: 1e33)
    line = trained.fails("main", "--set", "training.checkpoint_every=1")
    assert "step 2: the loss is" in line or "step 3: the loss is" in line
    assert "Training_patches/phantom_000" in line
    last = trained.run_folder() / "checkpoints" / "last.pt"
    assert f"last good checkpoint: {last.relative_to(trained.path)}" in line
    assert load_checkpoint(last)["step"] >= 1


def test_what_is_not_finite_is_found_by_the_next_row_and_never_saved(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of step 3 turn to NaN; the steps are looked at after the fourth."""
    inner, count = Batches.next, iter(range(1, 100))

    def spoilt(self: Batches) -> Batch:
        batch = inner(self)
        return batch._replace(m=batch.m * float("nan")) if next(count) == 3 else batch

    monkeypatch.setattr(Batches, "next", spoilt)
    options = ["training.log_every=4", "training.validate_every=100", "training.checkpoint_every=2"]
    line = trained.fails("main", *sets(options))
    assert "step 3: the loss is nan" in line
    assert line.count("phantom_") == 3
    checkpoints = trained.run_folder() / "checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["last.pt", "step_00000002.pt"]
    assert next(count) == 5
    for weights in (load_checkpoint(checkpoints / "last.pt")[kind] for kind in ("model", "ema")):
        assert all(torch.isfinite(w).all() for w in weights.values())


def test_weights_that_are_not_finite_are_not_saved(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the step that made them was."""
    inner = session.training_step

    def spoilt(state: TrainingState, *arguments: Any) -> Taken:
        taken = inner(state, *arguments)
        if state.step == 3:
            next(state.model.parameters()).data.view(-1)[0] = float("inf")
        return taken

    monkeypatch.setattr(session, "training_step", spoilt)
    line = trained.fails("main", *sets(["training.validate_every=100"]))
    assert "step 3: weights are not finite; last good checkpoint: none" in line
    assert not list((trained.run_folder() / "checkpoints").iterdir())


def test_bad_input_writes_nothing(workspace: Workspace) -> None:
    assert "data.prepare" in workspace.fails("main")
    assert "did you mean training.steps" in workspace.fails("main", "--set", "training.step=3")
    assert "cannot be read" in workspace.fails("main", config="nowhere.yaml")
    assert "--device" in workspace.fails("main", "--device", "abacus")
    assert not (workspace.path / "runs").exists()


def test_no_permission_to_write(trained: Workspace) -> None:
    (trained.path / "blocked").touch()
    assert "blocked" in trained.fails("prepare", "--set", "data.root=blocked/prepared")
    run = trained.run_folder()
    run.rename(trained.path / "kept")
    run.parent.rmdir()
    run.parent.touch()  # a file where the folder of runs should be
    assert "runs/tiny" in trained.fails("main")


def test_images_of_two_sizes_cannot_be_trained_on(trained: Workspace) -> None:

    table = trained.path / "prepared" / "train.csv"
    Image.new("L", (40, 32)).save(trained.path / "prepared" / "wide.png")
    table.write_text(table.read_text() + "wide.png,wide.png,,wide,0,0,32,40,\n")
    assert "wide.png is (32, 40)" in trained.fails("main")


def test_print_config_prints_what_load_config_reads(workspace: Workspace) -> None:
    result = workspace("main", "--print-config", "--set", "training.steps=17")
    assert result.code == 0
    (workspace.path / "shown.yaml").write_text(result.out)
    assert load_config(workspace.path / "shown.yaml").training.steps == 17
    assert not (workspace.path / "runs").exists()


def test_without_a_val_csv_images_are_held_out(trained: Workspace) -> None:
    (trained.path / "prepared" / "val.csv").unlink()
    assert trained("main", *sets(["data.source=prepared", "data.validation_fraction=0.25"])).code == 0
    assert "6 training, 2 validation" in (trained.run_folder() / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("room", "file"), [(30, ".lock"), (900, "config.yaml"), (30_000, "step_00000003.pt")])
def test_a_full_disk_is_one_line_that_names_a_file(trained: Workspace, room: int, file: str) -> None:
    with full_disk(room):
        assert re.search(rf"runs/tiny/\S*{file}: .*File too large", trained.fails("main"))
