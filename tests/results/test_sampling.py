"""sample.py as a user types it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from data.dataset import Reading, load_split
from data.scenes import scenes_of
from evaluation.metrics import count
from models.unet import ImageEncoder
from sampling.drawer import drawer_of, groups
from sampling.loading import load_denoiser
from sampling.sampler import sampler_of
from tests.conftest import ROOT, Workspace
from utils.checkpoint import load_checkpoint
from utils.config import load_config
from utils.locks import held
from utils.schema import Config

PER_IMAGE = {"mmse.npy", "std.npy", "probability.png", "mask.png", "mask_std.png", "overlay.png", "mmse.png", "std.png",
             "panel.png", "scores.json", "details.json", "instances.png", "objects.csv", "objects.geojson"}  # fmt: skip


def samples(workspace: Workspace) -> Path:
    return sorted((workspace.run_folder() / "samples").iterdir())[-1]


def truth(workspace: Workspace, key: str) -> np.ndarray:
    return np.asarray(Image.open(workspace.path / "prepared" / "Test_patches" / f"{key}_mask.png")) > 0


def test_files_and_numbers_keep_the_contract(trained: Workspace) -> None:
    result = trained("sample", "--set", "sampling.save_draws=true", "--set", "sampling.threshold=0.05")
    assert result.code == 0, result.err
    folder = samples(trained)
    assert f"report: {(folder / 'report.html').relative_to(trained.path)}" in result.out
    summary = json.loads((folder / "summary.json").read_text())
    assert {
        "images", "draws", "nfe_per_draw", "sampler", "threshold", "mmse", "single", "seconds_per_image",
        "peak_memory_mib", "device", "checkpoint", "seed",
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


def test_pc_sampler_counts_its_evaluations(trained: Workspace) -> None:
    options = ["--set", "sampling.sampler=pc", "--set", "sampling.steps=12", "--set", "sampling.corrector_steps=2"]
    result = trained("sample", *options)
    assert result.code == 0, result.err
    summary = json.loads((samples(trained) / "summary.json").read_text())
    assert (summary["nfe_per_draw"], summary["sampler"], summary["threshold"]) == (12, "pc", pytest.approx(0.03))


def shaken(trained: Workspace) -> Config:
    """Give the trained weights something to say, as after a long training."""
    path = trained.run_folder() / "checkpoints" / "best.pt"
    state = load_checkpoint(path)
    generator = torch.Generator().manual_seed(0)
    for tensor in state["ema"].values():
        if tensor.ndim:
            tensor += 0.03 * torch.randn(tensor.shape, generator=generator)
    torch.save(state, path)
    return load_config(trained.path / "config.yaml")


@pytest.mark.parametrize("sampler", ["heun", "pc"])
def test_a_draw_is_the_same_in_any_batch_and_order(trained: Workspace, sampler: str) -> None:
    config = shaken(trained)
    config = load_config(trained.path / "config.yaml", [f"sampling.sampler={sampler}", "sampling.steps=10"])
    denoiser = load_denoiser(config, trained.run_folder() / "checkpoints" / "best.pt", torch.device("cpu"))
    images = torch.randint(0, 255, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def draw(order: list[int], batch: int, draws: int) -> dict[tuple[int, int], torch.Tensor]:
        drawer = drawer_of(config, denoiser, sampler_of(config.sampling))
        drawer.max_batch = batch
        seen: dict[tuple[int, int], torch.Tensor] = {}
        for i, sdf in drawer(images[order], [f"image{k}" for k in order], draws):
            number = sum(key[0] == order[i] for key in seen)
            seen[order[i], number] = sdf
        return seen

    reference = draw([0, 1, 2], 64, 3)
    assert reference[0, 0].std() > 0.01
    assert not torch.allclose(reference[0, 0], reference[0, 1], atol=1e-2)
    for order, batch, draws in (([2, 0, 1], 2, 3), ([1], 1, 2), ([0, 2], 5, 1)):
        for key, sdf in draw(order, batch, draws).items():
            torch.testing.assert_close(sdf, reference[key], atol=2e-4, rtol=0)


def test_features_are_computed_once_per_image(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    forward = ImageEncoder.forward

    def counting(self: ImageEncoder, image: torch.Tensor) -> list[torch.Tensor]:
        encoded.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(ImageEncoder, "forward", counting)
    options = ["--set", "sampling.draws=7", "--set", "sampling.max_batch=2", "--set", "sampling.animate=false"]
    assert trained("sample", *options).code == 0
    assert sum(encoded) == 3  # three images; 3 * 7 draws * 5 evaluations of the network


def test_groups_do_not_depend_on_what_is_done(trained: Workspace) -> None:
    scenes = scenes_of(load_split(trained.path / "prepared", "test", Reading(rgb=False, truncation=6)))
    assert [len(group) for group in groups(scenes, 2)] == [2, 1]
    assert [scene.key for group in groups(scenes, 1) for scene in group] == [scene.key for scene in scenes]


def content(folder: Path) -> dict[str, bytes]:
    """All result files but for timings."""
    skipped = {"summary.json", "metrics.csv", "scores.json", "report.html", "environment.json"}
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in skipped
    }


def test_resume_fills_in_what_is_missing(trained: Workspace) -> None:
    import shutil

    shaken(trained)
    assert trained("sample").code == 0
    folder = samples(trained)
    before, scores = content(folder), json.loads((folder / "summary.json").read_text())
    kept = (folder / "phantom_0010" / "scores.json").stat().st_mtime_ns
    shutil.rmtree(folder / "phantom_0011")
    for name in ("summary.json", "metrics.csv", "report.html", "trajectory.gif"):
        (folder / name).unlink()
    assert trained("sample", "--resume").code == 0
    assert samples(trained) == folder
    assert content(folder) == before
    assert (folder / "phantom_0010" / "scores.json").stat().st_mtime_ns == kept
    again = json.loads((folder / "summary.json").read_text())
    assert (again["mmse"], again["single"]) == (scores["mmse"], scores["single"])
    assert "another sampling" in trained.fails("sample", "--resume", "--set", "sampling.draws=9")


@pytest.mark.slow
def test_sigterm_stops_cleanly_and_resume_ends_with_the_same_files(trained: Workspace) -> None:
    shaken(trained)
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
    folder = samples(trained)
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
    fresh = content(samples(trained))
    resumed.pop("settings.json")
    fresh.pop("settings.json")
    assert resumed == fresh


def test_a_film_is_whole_or_absent(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(frames: object, threshold: float, path: Path) -> None:
        path.write_bytes(b"GIF89a")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample, "trajectory", killed)
        assert trained("sample", "--set", "sampling.animate=true").code == 130
    assert not list(samples(trained).glob("*trajectory.gif"))
    assert trained("sample", "--set", "sampling.animate=true", "--resume").code == 0
    with Image.open(samples(trained) / "trajectory.gif") as film:
        assert film.n_frames > 2  # type: ignore[attr-defined]


def test_a_sampling_is_held(trained: Workspace) -> None:
    assert trained("sample").code == 0
    with held(samples(trained) / ".lock", "this test"):
        assert f"{samples(trained).name} is in use by process {os.getpid()}" in trained.fails("sample", "--resume")


def test_run_and_checkpoint_can_be_named(trained: Workspace) -> None:
    run = trained.run_folder()
    assert trained("sample", "--run", str(run), "--checkpoint", "last").code == 0
    assert trained("sample", "--checkpoint", str(run / "checkpoints" / "step_00000003.pt")).code == 0
    summary = json.loads((samples(trained) / "summary.json").read_text())
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
    assert "without config, ema" in trained.fails("sample", "--checkpoint", str(run / "bare.pt"))
    best = run / "checkpoints" / "best.pt"
    whole = best.read_bytes()
    best.unlink()
    assert "--checkpoint last" in trained.fails("sample")
    best.write_bytes(whole[:2000])
    assert "truncated" in trained.fails("sample")
    best.write_bytes(whole)
    table = trained.path / "prepared" / "test.csv"
    header = table.read_text().splitlines()[0]
    table.write_text(header + "\n")
    assert "lists no images" in trained.fails("sample")
    assert not (run / "samples").exists()


def test_empty_truth_and_odd_sizes_pass(trained: Workspace) -> None:
    root = trained.path / "prepared"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (21, 33), dtype=np.uint8)).save(root / "odd.png")
    Image.new("L", (33, 21)).save(root / "odd_mask.png")
    table = root / "test.csv"
    table.write_text(table.read_text() + "odd.png,odd_mask.png,,odd,0,0,21,33,\n")
    assert trained("sample").code == 0
    assert np.load(samples(trained) / "odd" / "mmse.npy").shape == (21, 33)
