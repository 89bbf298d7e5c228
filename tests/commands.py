"""A tiny experiment and its commands, as a user types them, and what they leave."""

from __future__ import annotations

from utils.command import run_command

import csv
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import main as training_command
import sample as sampling_command
from data import inspect as inspect_command
from data import prepare as prepare_command
from data.sources.record import Archive
from utils import export
from utils.checkpoint import load_checkpoint
from utils.data_schema import DataConfig
from utils.weights import SUFFIX

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"
TINY = {
    "name": "tiny",
    "data": {
        "source": "phantom",
        "root": "prepared",
        "truncation": 6,
        "workers": 1,
        "phantom": {"train": 8, "val": 2, "test": 3, "size": 32},
    },
    "model": {"channels": 8, "multipliers": [1, 2], "encoder": {"channels": 8, "multipliers": [1, 2]}},
    "sde": {"sigma_min": 0.01, "sigma_max": 10, "weighting": "edm"},
    "training": {
        "steps": 6,
        "batch": 3,
        "learning_rate": 1e-3,
        "warmup": 2,
        "log_every": 2,
        "checkpoint_every": 3,
        "validate_every": 3,
    },
    "sampling": {"sampler": "heun", "steps": 5, "draws": 3, "max_batch": 4},
    "evaluation": {"images": 2, "draws": 1, "steps": 3},
}
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "prepare": prepare_command.main,
    "inspect": inspect_command.main,
    "main": training_command.main,
    "sample": sampling_command.main,
}


@dataclass
class Result:
    code: int
    out: str
    err: str


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Writes past `room` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@dataclass
class Workspace:
    """A folder with config.yaml, in which commands run as a user would type them."""

    path: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, command: str, *arguments: str, config: str = "config.yaml") -> Result:
        self.capture.readouterr()
        shared = [] if "--compare" in arguments else ["--config", config, "--device", "cpu"]  # it goes alone
        code = run_command(lambda: COMMANDS[command]([*shared, "--quiet", *arguments]))
        captured = self.capture.readouterr()
        return Result(code, captured.out, captured.err)

    def run_folder(self) -> Path:
        return sorted((self.path / "runs" / "tiny").iterdir())[-1]

    def fails(self, command: str, *arguments: str, config: str = "config.yaml") -> str:
        """Run a command that must end with exit code 2 and one line of error; return the line."""
        result = self(command, *arguments, config=config)
        assert result.code == 2
        lines = result.err.strip().splitlines()
        assert len(lines) == 1, result.err
        assert lines[0].startswith("error: ")
        return lines[0]


def section(
    source: str = "prepared", raw: Path = Path("raw"), root: Path = Path("unused"), **options: Any
) -> DataConfig:
    """The data section of a config."""
    return DataConfig.model_validate({"source": source, "raw": str(raw), "root": str(root), **options})


def listed(source: str, raw: Path, **options: Any) -> Archive:
    """What an archive lists."""
    return prepare_command.list_archive(section(source, raw, **options))


def trained_in(folder: Path, config: Mapping[str, object]) -> Path:
    """The folder, with prepared data and a finished run of a config."""
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("prepare", "main"):
            arguments = ["--config", "config.yaml", "--device", "cpu", "--quiet"]
            assert run_command(lambda c=command, a=arguments: COMMANDS[c](a)) == 0  # type: ignore[misc]
    return folder


def joint_config() -> dict[str, object]:
    return {
        **TINY,
        "model": {"kind": "joint", "channels": 8, "multipliers": [1, 2]},
        "sde": {"sigma_min": 0.01, "sigma_max": 10, "weighting": "edm", "clean_share": 0.25},
    }


def sets(overrides: Iterable[str]) -> list[str]:
    """The words of --set for each of them."""
    return [part for override in overrides for part in ("--set", override)]


SIZES = ["model.channels=8", "model.multipliers=[1,2,2]"]
MASK = [*SIZES, "data.representation=binary", "sampling.sampler=mean"]
RESUNET = [*MASK, "model.kind=resunet", "model.dropout=0.2"]
UNET = [*MASK, "model.kind=unet", "model.backbone=resnet18"]
REGRESSION = ["sde.prior_share=1", "model.dropout=0.2", "sampling.sampler=mean"]
DROPOUT = ["sampling.sampler=mc_dropout", "sampling.draws=3"]


def newest(owner: Workspace | Path, kind: str = "samples") -> Path:
    """The newest folder of a kind, samples or generated, of a run folder or of a workspace's newest run."""
    run = owner.run_folder() if isinstance(owner, Workspace) else owner
    return max((run / kind).iterdir(), key=lambda p: (p.name[:15], len(p.name), p.name))


def truth(workspace: Workspace, key: str) -> np.ndarray:
    """The mask of a test image, bool."""
    return np.asarray(Image.open(workspace.path / "prepared" / "Test_patches" / f"{key}_mask.png")) > 0


def content(folder: Path) -> dict[str, bytes]:
    """All result files but for timings."""
    skipped = {"summary.json", "metrics.csv", "scores.json", "report.html", "environment.json"}
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in skipped
    }


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv of a run."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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


def shake_checkpoint(run: Path, seed: int = 0, scale: float = 0.05) -> None:
    """Give the short-trained weights of best.pt something to say, as after a long training."""
    path = run / "checkpoints" / "best.pt"
    state = load_checkpoint(path)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state["ema"].items():
        if tensor.ndim and "running" not in name:
            tensor += scale * torch.randn(tensor.shape, generator=generator)
    path.unlink()  # a link to another name of the same file
    torch.save(state, path)


def exported(workspace: Workspace, *more: str, name: str = "given") -> Path:
    path = Path("weights", name + SUFFIX)
    run = str(workspace.run_folder())
    words = ["--run", run, "--output", str(path), "--licence", "made up, free to use", *more]
    assert run_command(lambda: export.main(words)) == 0
    return path


def sampled(workspace: Workspace, *words: str) -> Result:
    """sample.py without --config."""
    workspace.capture.readouterr()
    code = run_command(lambda: sampling_command.main(["--device", "cpu", "--quiet", *words]))
    captured = workspace.capture.readouterr()
    return Result(code, captured.out, captured.err)


TWO_SYSTEMS = """
name: two
title: Two systems
config: config.yaml
set: [sampling.draws=2]
small: [training.steps=2]
systems:
  - {name: regression, set: [sde.prior_share=1, sampling.sampler=mean], sample_once: []}
  - {name: VE, set: []}
samplings:
  - {name: mean, set: [sampling.sampler=mean]}
  - {name: heun 5, set: []}
"""
