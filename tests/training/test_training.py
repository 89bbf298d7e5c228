"""main.py as a user types it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.conftest import ROOT, TINY, Workspace
from training.state import _averaging, ema_decay, learning_rate_factor
from utils.checkpoint import load_checkpoint
from utils.config import load_config
from utils.runs import MetricsFile, new_folder, newest_run
from utils.sections import EMAConfig, TrainingConfig


def tensors(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested checkpoint."""
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        items = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {name: leaf for key, value in items for name, leaf in tensors(value, f"{prefix}.{key}").items()}


def same_state(first: Path, second: Path) -> None:
    """Weights, average, optimiser, schedule, order and generators are equal bit for bit."""
    states = [
        tensors({k: v for k, v in load_checkpoint(p).items() if k not in ("config", "best_f1")})
        for p in (first, second)
    ]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        other = states[1][key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, key


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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


def test_interrupted_equals_uninterrupted_bit_for_bit(workspace: Workspace) -> None:
    workspace("prepare")
    dropout = ["--set", "model.dropout=0.2", "--set", "training.noises=2", "--set", "sde.prior_share=0.3"]
    assert workspace("main", *dropout, "--set", "training.steps=7").code == 0
    whole = workspace.run_folder()
    torch.manual_seed(123)  # what happens between the two commands must not matter
    assert workspace("main", *dropout, "--set", "training.steps=4").code == 0
    parts = workspace.run_folder()
    assert parts != whole
    result = workspace("main", *dropout, "--set", "training.steps=7", "--resume", str(parts))
    assert result.code == 0
    assert len(list((workspace.path / "runs" / "tiny").iterdir())) == 2
    same_state(whole / "checkpoints" / "last.pt", parts / "checkpoints" / "last.pt")
    assert rows(parts)[-1]["step"] == "7"


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


def test_loss_that_is_not_finite_names_step_files_and_checkpoint(trained: Workspace) -> None:
    line = trained.fails("main", "--set", "training.learning_rate=1e30", "--set", "training.checkpoint_every=1")
    assert "step 2: the loss is" in line or "step 3: the loss is" in line
    assert "Training_patches/phantom_000" in line
    last = trained.run_folder() / "checkpoints" / "last.pt"
    assert f"last good checkpoint: {last.relative_to(trained.path)}" in line
    assert load_checkpoint(last)["step"] >= 1


@pytest.mark.parametrize(
    ("override", "key"), [("model.channels=4", "model.channels"), ("sde.process=vp", "sde.process"), ("seed=3", "seed")]
)
def test_resume_refuses_another_experiment(trained: Workspace, override: str, key: str) -> None:
    line = trained.fails("main", "--resume", str(trained.run_folder()), "--set", override)
    assert f"{key} was" in line


def test_resume_refuses_what_is_no_run(trained: Workspace) -> None:
    assert "not a run folder" in trained.fails("main", "--resume", "nowhere")
    run = trained.run_folder()
    content = (run / "checkpoints" / "last.pt").read_bytes()
    (run / "checkpoints" / "last.pt").write_bytes(content[: len(content) // 2])
    assert "truncated" in trained.fails("main", "--resume", str(run), "--set", "training.steps=9")
    (run / "checkpoints" / "last.pt").unlink()
    assert "no such checkpoint" in trained.fails("main", "--resume", str(run), "--set", "training.steps=9")


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
    from PIL import Image

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
    assert trained("main", "--set", "data.validation_fraction=0.25").code == 0
    assert "6 training, 2 validation" in (trained.run_folder() / "log.txt").read_text()


# The schedules stand still at t = 0, where a velocity says nothing: refused (test_space.py).
PAIRS = [
    (process, prediction)
    for process in ("ve", "vp", "cosine", "flow")
    for prediction in ("edm", "x", "eps", "v", "velocity", "both", "score", "score_raw")
    if (process, prediction) != ("cosine", "velocity")
]


@pytest.mark.parametrize(("process", "prediction"), PAIRS)
def test_every_process_and_prediction_trains_and_samples(trained: Workspace, process: str, prediction: str) -> None:
    choice = [
        "--set",
        f"sde.process={process}",
        "--set",
        f"sde.prediction={prediction}",
        "--set",
        "sde.weighting=score",
    ]
    assert trained("main", *choice, "--set", "training.steps=2", "--set", "data.sdf_scale=0.2").code == 0
    result = trained("sample", *choice, "--set", "data.sdf_scale=0.2", "--set", "sampling.draws=1")
    assert result.code == 0, result.err


# Schedules and averages.


def test_learning_rate_schedules() -> None:
    constant = TrainingConfig(warmup=4, steps=100)
    assert [learning_rate_factor(constant, s) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    cosine = TrainingConfig(warmup=0, steps=100, schedule="cosine")
    assert [learning_rate_factor(cosine, s) for s in (0, 50, 100)] == pytest.approx([1, 0.5, 0])


@given(st.integers(1, 10_000))
def test_ema_decays(n: int) -> None:
    constant, power = EMAConfig(decay=0.99), EMAConfig(kind="power", gamma=6.94)
    assert 0 <= ema_decay(constant, n) <= 0.99
    assert ema_decay(constant, n) == pytest.approx(min(0.99, (1 + n) / (10 + n)))
    assert ema_decay(power, n) == pytest.approx((1 - 1 / (n + 1)) ** 7.94)


@pytest.mark.parametrize("ema", [EMAConfig(decay=0.9), EMAConfig(kind="power")])
def test_average_is_the_weighted_sum_by_hand(ema: EMAConfig) -> None:
    model = nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=_averaging(ema))  # type: ignore[arg-type]
    expected = None
    for n in range(12):
        model.weight.data.fill_(float(n * n))
        average.update_parameters(model)
        decay = ema_decay(ema, n)
        expected = 0.0 if expected is None else decay * expected + (1 - decay) * n * n
    assert average.module.weight.item() == pytest.approx(expected)  # type: ignore[union-attr,operator]


def test_newest_run_and_folders_within_a_second(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "runs" / "a") for _ in range(12)]
    assert len(set(folders)) == 12
    for folder in folders:
        (folder / "config.yaml").touch()
    assert newest_run("a", tmp_path / "runs") == folders[-1]


def test_metrics_file_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.csv", ["step", "loss"])
    for step in (1, 2, 3):
        file.append({"step": step, "loss": 0.5})
    again = MetricsFile(tmp_path / "m.csv", ["step", "loss"], last_step=2)
    again.append({"step": 3, "loss": 0.25})
    assert (tmp_path / "m.csv").read_text().split() == ["step,loss", "1,0.5", "2,0.5", "3,0.25"]


def test_tiny_config_is_the_file_users_would_write() -> None:
    assert yaml.safe_load(yaml.safe_dump(TINY)) == TINY
