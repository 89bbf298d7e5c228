"""training.start_from: weights of other runs, or given ones, of other images and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from models.denoiser import Denoiser, build_denoiser
from models.unet import Sizes
from sde.process import VE
from tests.commands import ROOT, Workspace, exported, sets
from tests.networks import shake, small_denoiser
from training.state import start_from
from utils.checkpoint import save_checkpoint
from utils.errors import CheckpointError


def saved(model: Denoiser, path: Path = Path("start.pt")) -> Path:
    save_checkpoint({"config": {}, "ema": model.state_dict()}, path)
    return path


def of_colours(image_channels: int, mask_channels: int) -> Denoiser:
    return build_denoiser(VE(), "edm", image_channels, mask_channels, Sizes(8, (1, 2)), Sizes(8, (1, 2)))


def test_the_same_network_is_taken_over_whole(tmp_path: Path) -> None:
    other, model = small_denoiser(sigma_data=0.3), small_denoiser(sigma_data=0.5)
    shake(other)
    (line,) = start_from(model, saved(other, tmp_path / "a.pt"))
    assert "M numbers" in line
    assert float(model.sigma_data) == 0.5  # of its own images
    for key, w in other.state_dict().items():
        assert key == "sigma_data" or torch.equal(model.state_dict()[key], w)


def test_what_does_not_fit_keeps_its_start_and_is_named(tmp_path: Path) -> None:
    other, model = of_colours(3, 2), of_colours(1, 1)
    shake(other)
    before = {key: w.clone() for key, w in model.state_dict().items()}
    lines = start_from(model, saved(other, tmp_path / "a.pt"))
    left = ("encoder.trunk.entry.weight", "network.trunk.entry.weight", "network.head.2.weight", "network.head.2.bias")
    for key, w in model.state_dict().items():
        expected = before[key] if key in (*left, "sigma_data") else other.state_dict()[key]
        assert torch.equal(w, expected), key
    assert lines[1].startswith("4 tensors, ")
    assert all(name in lines[1] for name in left)


def test_nothing_that_fits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint({"config": {}, "ema": {"sigma_data": torch.tensor(0.5), "elsewhere": torch.ones(2, 2)}}, path)
    with pytest.raises(CheckpointError, match="of another architecture"):
        start_from(small_denoiser(), path)
    model = small_denoiser()
    next(p for p in model.parameters() if p.ndim > 1).data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        start_from(small_denoiser(), saved(model, path))


def test_the_nuclei_weights_begin_a_training_on_two_classes_in_colour(workspace: Workspace) -> None:
    config = {
        "base": str(ROOT / "cfg" / "dsb2018_small.yaml"),
        "name": "tiny",
        "data": {
            "source": "phantom",
            "root": "two",
            "color": "rgb",
            "patch": [32, 32],
            "stride": [32, 32],
            "workers": 1,
            "classes": [1, 2],
            "phantom": {"train": 4, "val": 1, "test": 1, "size": 32, "objects": "glands_and_lumina"},
        },
        "training": {"steps": 1, "batch": 2, "start_from": str(ROOT / "weights" / "nuclei.safetensors")},
        "evaluation": {"images": 1, "draws": 2},
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert workspace("prepare").code == 0
    result = workspace("main")
    assert result.code == 0, result.err
    text = (workspace.run_folder() / "log.txt").read_text()
    for words in ("nuclei.safetensors: ", "keep their start: ", "encoder.trunk.entry.weight (16, 1, 3, 3)"):
        assert words in text


def test_a_run_goes_on_without_the_file_that_it_began_with(trained: Workspace) -> None:
    path = exported(trained)
    start = sets([f"training.start_from={path}"])
    assert trained("main", *start, *sets(["training.steps=3"])).code == 0
    run = trained.run_folder()
    assert "keep their start" not in (run / "log.txt").read_text()
    path.unlink()
    assert trained("main", *start, "--resume", str(run)).code == 0
    assert "no such" in trained.fails("main", *start)
    assert trained.run_folder() == run
