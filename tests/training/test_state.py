"""Learning rate, average, and going on bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.helpers import LIBRARY, RESUNET, UNET, Workspace, rows, same_state, sets
from training.state import _averaging, ema_decay, learning_rate_factor
from utils.checkpoint import load_checkpoint
from utils.sections import EMAConfig, TrainingConfig


@pytest.mark.parametrize("kind", [RESUNET, UNET], ids=["resunet", "unet"])
def test_interrupted_training_ends_the_same(trained: Workspace, kind: list[str]) -> None:
    if kind is UNET:
        pytest.importorskip(LIBRARY["unet"])
    assert trained("main", *sets(kind)).code == 0
    whole = load_checkpoint(trained.run_folder() / "checkpoints" / "last.pt")
    half = [*kind, "name=half"]
    assert trained("main", *sets([*half, "training.steps=3"])).code == 0
    run = next((trained.path / "runs" / "half").iterdir())
    result = trained("main", *sets(half), "--resume", str(run))
    assert result.code == 0, result.err
    resumed = load_checkpoint(run / "checkpoints" / "last.pt")
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][name]), name


def test_interrupted_training_goes_on_bit_for_bit(joint: Workspace) -> None:
    assert joint("main", "--set", "training.steps=4").code == 0
    parts = joint.run_folder()
    assert joint("main", "--resume", str(parts)).code == 0
    whole = sorted((joint.path / "runs" / "tiny").iterdir())[0]
    assert parts != whole
    same_state(whole / "checkpoints" / "last.pt", parts / "checkpoints" / "last.pt")
    assert "sde.clean_share" in joint.fails("main", "--resume", str(parts), "--set", "sde.clean_share=0")


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
