"""A tiny experiment that trains in seconds, and the commands run in this process."""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

import main as training_command
import sample as sampling_command
from data import inspect as inspect_command
from data import prepare as prepare_command
from utils.cli import run_command

ROOT = Path(__file__).resolve().parents[1]

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
    "sde": {"sigma_min": 0.01, "weighting": "edm"},
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


@dataclass
class Workspace:
    """A folder with config.yaml, in which commands run as a user would type them."""

    path: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, command: str, *arguments: str, config: str = "config.yaml") -> Result:
        self.capture.readouterr()
        code = run_command(lambda: COMMANDS[command](["--config", config, "--device", "cpu", "--quiet", *arguments]))
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


@pytest.fixture(autouse=True)
def _undo_process_state() -> Iterator[None]:
    """Commands set signal handlers, log handlers and torch's seed."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    log_handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    state = torch.get_rng_state()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logging.getLogger().handlers[:] = log_handlers
    logging.getLogger().setLevel(level)
    torch.set_rng_state(state)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Workspace:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY))
    return Workspace(tmp_path, capsys)


def trained_in(folder: Path, config: Mapping[str, object]) -> Path:
    """The folder, with prepared data and a finished run of a config."""
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("prepare", "main"):
            arguments = ["--config", "config.yaml", "--device", "cpu", "--quiet"]
            assert run_command(lambda c=command, a=arguments: COMMANDS[c](a)) == 0  # type: ignore[misc]
    return folder


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data and a finished tiny run, to be copied."""
    return trained_in(tmp_path_factory.mktemp("trained"), TINY)


@pytest.fixture
def trained(workspace: Workspace, trained_folder: Path) -> Workspace:
    """A workspace with prepared data and a finished run."""
    shutil.copytree(trained_folder, workspace.path, dirs_exist_ok=True)
    return workspace
