"""Learning rate, average, and going on bit for bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from tests.commands import RESUNET, UNET, Workspace, rows, same_state, sets
from tests.networks import LIBRARY
from training import session, state
from training.state import Average, ema_decay, learning_rate_factor
from utils import checkpoint
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.locks import held
from utils.sections import EMAConfig, TrainingConfig


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("another seed", "the preparation's data.split_seed was 0 and is 5 now"),
        ("more images", "the number of patches in train.csv was 8 and is 9 now"),
        ("other pixels", "the images or masks of train.csv or val.csv have changed"),
        ("another order", "the images or masks of train.csv or val.csv have changed"),
    ],
)
def test_resume_refuses_other_data(trained: Workspace, change: str, said: str) -> None:
    run, root = trained.run_folder(), trained.path / "prepared"
    rows = (root / "train.csv").read_text().splitlines()
    if change == "another seed":
        assert trained("prepare", "--set", "data.split_seed=5", "--set", "data.phantom.seed=1").code == 0
    elif change == "more images":
        (root / "train.csv").write_text("\n".join([*rows, rows[1].replace("phantom_0000,", "another,")]))
    elif change == "other pixels":
        path = root / rows[1].split(",")[0]
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    else:
        (root / "train.csv").write_text("\n".join([rows[0], *rows[:0:-1]]))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert said in trained.fails("main", "--resume", str(run), "--set", "training.steps=9")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_data_prepared_again_are_the_same(trained: Workspace) -> None:
    root = trained.path / "prepared"
    next(root.glob("Training_patches/*_sdf.npy")).unlink()
    assert trained("prepare").code == 0
    assert trained("main", "--resume", str(trained.run_folder()), "--set", "training.steps=7").code == 0


def test_resume_refuses_what_is_no_run(trained: Workspace) -> None:
    assert "not a run folder" in trained.fails("main", "--resume", "nowhere")
    run = trained.run_folder()
    content = (run / "checkpoints" / "last.pt").read_bytes()
    (run / "checkpoints" / "last.pt").write_bytes(content[: len(content) // 2])
    assert "damaged, or not" in trained.fails("main", "--resume", str(run), "--set", "training.steps=9")
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
    model.weight.data.fill_(4.0)
    average, expected = Average(model, ema), 4.0  # type: ignore[arg-type]
    for n in range(1, 12):
        model.weight.data.fill_(float(n * n))
        average.update()
        decay = ema_decay(ema, n)
        expected = decay * expected + (1 - decay) * n * n
    assert next(average.module.parameters()).tolist() == [[pytest.approx(expected)]]
    assert average.count == 12


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(trained: Workspace) -> None:
    whole = trained.run_folder()
    killed = whole.with_name("20000101-000000")
    (killed / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "config.yaml", killed)
    (killed / "metrics.csv").write_text((whole / "metrics.csv").read_text()[:-100])  # torn
    (killed / "checkpoints/.77.step_00000003.pt").touch()
    assert trained("main", "--resume", str(killed)).code == 0
    same_state(whole / "checkpoints" / "last.pt", killed / "checkpoints" / "last.pt")
    assert [row["step"] for row in rows(killed)] == [row["step"] for row in rows(whole)]
    assert not list(killed.rglob(".*"))


@pytest.mark.slow
def test_a_kill_between_best_and_last_does_not_leave_an_old_best(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every validation is better than the one before; the process dies before the second name of step 6."""
    link, scores, done = checkpoint.link_checkpoint, iter((0.2, 0.1, 0.1)), list[Path]()

    def dying(source: Path, path: Path) -> None:
        if source.name == "step_00000006.pt" and done:
            raise KeyboardInterrupt
        done.extend([path] if source.name == "step_00000006.pt" else [])
        link(source, path)

    def validated(*_: object) -> tuple[dict[str, float], Tensor]:
        return dict.fromkeys(("val_f1", "val_energy"), next(scores)), torch.zeros(3, 3, 8, 8)

    monkeypatch.setattr(session, "validate", validated)
    with monkeypatch.context() as patch:
        patch.setattr(state, "link_checkpoint", dying)
        assert trained("main").code == 130
    run = trained.run_folder()
    assert trained("main", "--resume", str(run)).code == 0
    assert load_checkpoint(run / "checkpoints" / "best.pt")["step"] == 6
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] == 6


@pytest.mark.slow
def test_the_row_after_a_resume_speaks_of_all_its_steps(trained: Workspace) -> None:
    """Rows at 4 and 8, a stop at 6: the second row is that of an uninterrupted run."""
    options = ["--set", "training.log_every=4", "--set", "training.validate_every=100"]
    assert trained("main", *options, "--set", "training.steps=8").code == 0
    whole = trained.run_folder()
    stopped = ["--set", "training.checkpoint_every=6", "--set", "training.steps=7"]
    assert trained("main", *options, *stopped).code == 0
    run = trained.run_folder()
    last = run / "checkpoints" / "last.pt"
    last.unlink()
    (run / "checkpoints" / "step_00000006.pt").rename(last)
    assert trained("main", *options, "--set", "training.steps=8", "--resume", str(run)).code == 0
    expected, found = ([{**r, "images_per_second": ""} for r in rows(each) if r["loss"]] for each in (whole, run))
    assert [row["step"] for row in expected] == ["4", "8"]
    assert found == expected


@pytest.mark.slow
def test_a_resumed_training_has_the_rates_of_its_config(trained: Workspace) -> None:
    run = trained.run_folder()
    before = load_checkpoint(run / "checkpoints" / "last.pt")["model"]
    keys = ["training.learning_rate=1e-30", "training.optimizer=adamw", "training.weight_decay=0.5", "training.steps=8"]
    assert trained("main", "--resume", str(run), *sets(keys)).code == 0
    after = load_checkpoint(run / "checkpoints" / "last.pt")
    assert after["step"] == 8
    assert all(torch.equal(tensor, after["model"][name]) for name, tensor in before.items())
    assert after["optimizer"]["param_groups"][0]["weight_decay"] == 0.5


def test_a_run_is_held(trained: Workspace) -> None:
    with held(trained.run_folder() / ".lock", "this test"):
        assert f"in use by process {os.getpid()}" in trained.fails("main", "--resume", str(trained.run_folder()))


@pytest.mark.slow
def test_another_score_begins_with_no_best(trained: Workspace) -> None:
    """An energy is above any -F1."""
    run = trained.run_folder()
    last = run / "checkpoints" / "last.pt"
    saved = load_checkpoint(last, dict[str, Any])
    saved["best"] = -0.8
    save_checkpoint(saved, last)
    more = sets(["training.steps=9", "evaluation.choose_by=energy"])
    assert trained("main", "--resume", str(run), *more).code == 0
    assert load_checkpoint(run / "checkpoints" / "best.pt")["step"] == 9


@pytest.mark.parametrize("device", [None, "cuda", "mps"])
def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(trained: Workspace, device: str | None) -> None:
    """Its optimiser is fused, and the state of its noise has another size; two continuations are alike."""
    run = trained.run_folder()
    last = run / "checkpoints" / "last.pt"
    saved = load_checkpoint(last, dict[str, Any])
    assert saved.pop("device") == "cpu"
    if device:  # None: of before it was noted
        saved["device"] = device
    cuda = [] if device == "mps" else [torch.zeros(16, dtype=torch.uint8)]
    saved["generators"].update(noise=torch.zeros(16, dtype=torch.uint8), cuda=cuda)
    for group in saved["optimizer"]["param_groups"]:
        group["fused"] = True
    save_checkpoint(saved, last)
    other = run.with_name("other")
    shutil.copytree(run, other)
    for folder in (run, other):
        result = trained("main", "--resume", str(folder), "--set", "training.steps=9")
        assert result.code == 0, result.err
    same_state(last, other / "checkpoints" / "last.pt")
    on = load_checkpoint(last, dict[str, Any])
    assert on["step"] == 9
    assert not on["generators"]["cuda"]
    assert on["optimizer"]["param_groups"][0]["fused"] is None


CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda saved: saved.pop("step"),
    lambda saved: saved.pop("batches"),
    lambda saved: saved["generators"].pop("times"),
    lambda saved: saved["generators"].update(torch=torch.zeros(3, dtype=torch.uint8)),
    lambda saved: saved["batches"].update(order=torch.tensor([99])),
    lambda saved: saved.update(schedule=3),
    lambda saved: saved["optimizer"].update(param_groups=[]),
    lambda saved: saved["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)),
    lambda saved: saved["ema"].popitem(),
]


@pytest.mark.slow
def test_a_checkpoint_of_another_shape_is_one_line(trained: Workspace) -> None:
    run = trained.run_folder()
    last = run / "checkpoints" / "last.pt"
    content = last.read_bytes()
    for change in CHANGES:
        last.write_bytes(content)
        saved = load_checkpoint(last, dict[str, Any])
        change(saved)
        save_checkpoint(saved, last)
        line = trained.fails("main", "--resume", str(run), "--set", "training.steps=9")
        assert "last.pt: damaged, or not of this" in line or "last.pt: of another architecture" in line
