"""torchrun main.py: several processes take the steps of one, and leave what one leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from data.batches import representation_of
from data.packed import open_training
from models.layers import Dropout
from tests.commands import ROOT, Workspace, rows, sets
from tests.networks import shake
from training.losses import Losses, loss_of
from training.parallel import SharedDropout, Team
from training.session import build_state
from utils.checkpoint import load_checkpoint
from utils.config import load_config
from utils.share import WHOLE, Share

BATCH = ["training.batch=4"]
DRAWS = ["sde.prior_share=1", "sde.objective=distribution", "sampling.sampler=ancestral", "sampling.steps=1"]
TRUNK = ["model.channels=8", "model.multipliers=[1,2,2]", "data.representation=binary"]


def command(workspace: Workspace, processes: int, *words: str) -> subprocess.Popen[str]:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    arguments = ["--config", "config.yaml", "--device", "cpu", "--quiet", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *start, str(ROOT / "main.py"), *arguments],
        cwd=workspace.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def runs(workspace: Workspace) -> set[Path]:
    return set((workspace.path / "runs" / "tiny").iterdir())


def trained_by(workspace: Workspace, processes: int, *words: str) -> Path:
    """The run of a training that ends well: the one new folder."""
    before, process = runs(workspace), command(workspace, processes, *words)
    out, err = process.communicate(timeout=6000)
    assert process.returncode == 0, err
    assert out.count("trained") == 1
    (run,) = runs(workspace) - before
    return run


def same_up_to_rounding(run: Path, other: Path, atol: float = 2e-5) -> None:
    """Weights, their average, generators, and the curves; what is a time differs."""
    first, second = (load_checkpoint(path / "checkpoints" / "last.pt") for path in (run, other))
    for kind in ("model", "ema"):
        for key, weight in first[kind].items():
            torch.testing.assert_close(second[kind][key], weight, rtol=0, atol=atol, msg=key)
    for kind in ("batches", "generators"):
        assert str(first[kind]) == str(second[kind])
    assert torch.equal(first["generators"]["noise"], second["generators"]["noise"])
    for row, same in zip(rows(run), rows(other), strict=True):
        for name in row.keys() - {"images_per_second"}:
            number, expected = (float(text or "nan") for text in (same[name], row[name]))
            np.testing.assert_allclose(number, expected, rtol=2e-3, atol=1e-5, err_msg=name)


KINDS = {
    "mean": [],
    "distribution": [*DRAWS, "data.rotations=true", "data.augment.elastic=2", "data.crop=[24,24]"],
    "raters": [*DRAWS, "data.raters=all", "data.phantom.objects=nuclei", "data.phantom.raters=3"],
    "ssn": ["model.kind=ssn", "model.rank=2", "sampling.sampler=mean", *TRUNK],
    "prob_unet": ["model.kind=prob_unet", "sampling.sampler=mean", *TRUNK],
    "joint": ["model.kind=joint", "sde.clean_share=0.25"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_the_parts_are_those_of_the_whole(workspace: Workspace, kind: str) -> None:
    options = [*BATCH, *KINDS[kind], "training.noises=2"] if kind in ("mean", "joint") else [*BATCH, *KINDS[kind]]
    assert workspace("prepare", *sets(options)).code == 0
    config = load_config(Path("config.yaml"), options)
    patches, _ = open_training(config.data)

    def losses(share: Share) -> Losses:
        """Of the second batch."""
        state = build_state(config, patches, torch.device("cpu"))
        shake(state.model)
        state.batches.part, state.generators = share, state.generators._replace(share=share)
        for _ in range(2):
            batch = state.batches.next()
            batch = batch._replace(m=representation_of(batch.m, config.data))
            found = loss_of(state.model, batch, state.generators, config.sde, config.training)
        return found

    whole, parts = losses(WHOLE), [losses(Share(rank, 2)) for rank in (0, 1)]
    assert len(whole[0]) >= 4
    for i, one in enumerate(whole):  # of a joint model masks come first, then images
        torch.testing.assert_close(torch.cat([p[i] for p in parts]).sort()[0], one.sort()[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(trained: Workspace) -> None:
    draws = [*DRAWS, "sde.mean_first=0.4", "training.noises=2", "model.dropout=0.2"]
    two = trained_by(trained, 2, *sets([*BATCH, *draws]))
    assert trained("main", *sets([*BATCH, *draws])).code == 0
    same_up_to_rounding(trained.run_folder(), two)


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_two(trained: Workspace) -> None:
    begin = sets([*BATCH, "training.steps=3"])
    two = trained_by(trained, 2, *begin)
    assert trained("main", *begin).code == 0
    one = trained.run_folder()
    for run in (one, two):
        assert trained("main", *sets(BATCH), "--resume", str(run)).code == 0
    same_up_to_rounding(one, two)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_out_is_one_line(trained: Workspace) -> None:
    before, process = runs(trained), command(trained, 2)
    _, err = process.communicate(timeout=600)
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert line == "error: training.batch: 3 cannot be shared out to 2 processes; use a multiple of 2"
    assert "exitcode  : 2" in err
    assert runs(trained) == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_both_with_one_line(trained: Workspace) -> None:
    path = trained.run_folder() / "checkpoints" / "best.pt"
    state = load_checkpoint(path)
    for weight in state["ema"].values():
        if weight.ndim:
            weight.fill_(1e30)
    torch.save(state, trained.path / "large.pt")
    process = command(trained, 2, *sets([*BATCH, "training.start_from=large.pt"]))
    _, err = process.communicate(timeout=600)
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: step 1: the loss is ")
    assert line.count("phantom_") == 4  # of both processes


def children(process: subprocess.Popen[str]) -> list[int]:
    """In the order of their ranks."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return sorted(map(int, text.split()))


def endless(workspace: Workspace) -> tuple[subprocess.Popen[str], Path]:
    """Two processes that have taken some steps of many."""
    before = runs(workspace)
    process = command(workspace, 2, *sets([*BATCH, "training.steps=100000", "training.validate_every=100000"]))
    for _ in range(6000):
        for run in runs(workspace) - before:
            if (run / "metrics.csv").is_file() and any(int(row["step"]) >= 4 for row in rows(run)):
                return process, run
        time.sleep(0.1)
    raise AssertionError("no step within ten minutes")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_a_signal_to_one_process_stops_both_at_one_step(trained: Workspace) -> None:
    process, run = endless(trained)
    os.kill(children(process)[1], signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert f'File "{ROOT / "main.py"}' not in err  # no traceback of ours
    saved = load_checkpoint(run / "checkpoints" / "last.pt")["step"]
    assert saved >= 4
    assert f"step_{saved:08d}.pt" in {path.name for path in (run / "checkpoints").iterdir()}
    assert not (run / ".lock").exists()
    words = sets([*BATCH, f"training.steps={saved + 2}"])
    assert trained("main", *words, "--resume", str(run)).code == 0
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] == saved + 2


def test_a_signal_during_the_exchange_is_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not forgotten, and does not stop this process alone."""
    stop = SimpleNamespace(number=None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: setattr(stop, "number", stop.number or 15))
    team = Team(Share(1, 2))
    assert not team.stopped(cast(Any, stop))
    assert stop.number == 15
    assert team.stopped(cast(Any, stop))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_a_process_that_is_lost_ends_the_other(trained: Workspace) -> None:
    process, run = endless(trained)
    os.kill(children(process)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert "error: process 0 has lost another one of 2" in err
    assert not (run / ".lock").exists()


def test_dropout_in_parts_drops_what_it_drops_in_the_whole() -> None:
    x = torch.randn(6, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    whole = Dropout(0.4)(x)
    parts = []
    for rank in range(3):
        torch.manual_seed(3)
        parts.append(SharedDropout(0.4, Share(rank, 3))(x.chunk(3)[rank]))
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.equal(parts[0] == 0, parts[1] == 0)
