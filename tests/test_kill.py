"""kill -9 at random moments: what is gone on with ends as what was never interrupted, bit for bit."""

from __future__ import annotations

from utils.command import run_command

import multiprocessing
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.commands import COMMANDS, ROOT, Workspace, newest, rows, same_state, sets
from tests.pictures import picture

KILLS = 3
OFTEN = sets(["training.steps=9", "training.checkpoint_every=1", "training.validate_every=2", "training.log_every=4"])


def _run(folder: Path, command: str, words: list[str]) -> None:
    os.chdir(folder)
    os.environ["TQDM_DISABLE"] = "1"
    raise SystemExit(run_command(lambda: COMMANDS[command](words)))


def _names(folder: Path) -> set[str]:
    return {os.path.join(top, name) for top, folders, files in os.walk(folder) for name in folders + files}


def killed_often(workspace: Workspace, command: str, *words: str) -> int:
    """Start the command again and again in a process of its own, and kill it at a random moment after some files have
    come or gone; returns how many were killed before they had ended. All are forked from one that has the imports
    behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.commands"])
    generator, killed = random.Random(5), 0
    arguments = ["--config", "config.yaml", "--device", "cpu", "--quiet", *words]
    for _ in range(KILLS):
        process = context.Process(target=_run, args=(workspace.path, command, arguments))
        process.start()
        changes, seen = generator.randint(1, 12), _names(workspace.path)
        while changes and process.is_alive():
            now = _names(workspace.path)
            changes, seen = changes - (now != seen), now
        process.join(0.02 * generator.random())
        killed += process.is_alive()
        process.kill()
        process.join()
        assert process.exitcode in (-9, 0)
    return killed


@pytest.fixture(autouse=True)
def _imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the process that all others are forked from


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again(trained: Workspace) -> None:
    assert trained("main", *OFTEN).code == 0
    whole = trained.run_folder()
    run = whole.with_name("20000101-000000")
    run.mkdir()
    shutil.copy(whole / "config.yaml", run)
    assert killed_often(trained, "main", *OFTEN, "--resume", str(run)) > 0
    assert trained("main", *OFTEN, "--resume", str(run)).code == 0
    for name in ("last.pt", "best.pt"):
        same_state(whole / "checkpoints" / name, run / "checkpoints" / name)
    expected, found = ([{**row, "images_per_second": ""} for row in rows(each)] for each in (whole, run))
    assert found == expected
    assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}


def _maps(folder: Path) -> dict[str, np.ndarray]:
    return {str(p.relative_to(folder)): np.load(p) for p in sorted(folder.rglob("*.npy"))}


@pytest.mark.slow
def test_a_sampling_that_is_killed_again_and_again(trained: Workspace) -> None:
    options = sets(["sampling.steps=20", "sampling.animate=true"])
    assert trained("sample", *options).code == 0
    whole = newest(trained)
    folder = whole.with_name("30000101-000000")
    folder.mkdir()
    shutil.copy(whole / "settings.json", folder)
    assert killed_often(trained, "sample", *options, "--resume") > 0
    assert trained("sample", *options, "--resume").code == 0
    np.testing.assert_equal(_maps(folder), _maps(whole))
    assert (folder / "trajectory.gif").read_bytes() == (whole / "trajectory.gif").read_bytes()
    expected, found = (pd.read_csv(each / "metrics.csv").drop(columns="seconds") for each in (whole, folder))
    pd.testing.assert_frame_equal(found, expected)
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.mark.slow
def test_a_prediction_that_is_killed_again_and_again(trained: Workspace) -> None:
    (trained.path / "inbox").mkdir()
    for seed in range(4):
        Image.fromarray(picture(50, 60, seed=seed)).save(trained.path / f"inbox/{seed}.png")
    words = ["--run", str(trained.run_folder()), "--input", "inbox", *sets(["sampling.steps=20"]), "--resume"]
    assert trained("sample", *words, "--output", "whole").code == 0
    assert killed_often(trained, "sample", *words, "--output", "out") > 0
    assert trained("sample", *words, "--output", "out").code == 0
    np.testing.assert_equal(_maps(Path("out")), _maps(Path("whole")))
    expected, found = (pd.read_csv(f"{each}/results.csv").drop(columns="seconds") for each in ("whole", "out"))
    pd.testing.assert_frame_equal(found, expected)
    assert {p.name for p in Path("out").iterdir()} == {p.name for p in Path("whole").iterdir()}
