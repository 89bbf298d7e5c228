"""Fixtures: a tiny experiment that trains in seconds, and pictures to predict on."""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from hypothesis import settings
from PIL import Image

from tests.commands import TINY, Workspace, joint_config, trained_in
from tests.pictures import picture

settings.register_profile("any machine", deadline=None)  # a busy one is slow now and then
settings.load_profile("any machine")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


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


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data and a finished tiny run, to be copied."""
    return trained_in(tmp_path_factory.mktemp("trained"), TINY)


@pytest.fixture
def trained(workspace: Workspace, trained_folder: Path) -> Workspace:
    """A workspace with prepared data and a finished run."""
    shutil.copytree(trained_folder, workspace.path, dirs_exist_ok=True)
    return workspace


@pytest.fixture(scope="session")
def joint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_in(tmp_path_factory.mktemp("joint"), joint_config())


@pytest.fixture
def joint(workspace: Workspace, joint_folder: Path) -> Workspace:
    """The same of a joint model."""
    shutil.copytree(joint_folder, workspace.path, dirs_exist_ok=True)
    return workspace


@pytest.fixture
def inbox(trained: Workspace) -> Path:
    """A folder of good pictures of several formats and sizes."""
    folder = trained.path / "inbox"
    folder.mkdir()
    Image.fromarray(picture(40, 56)).save(folder / "grey.png")
    Image.fromarray(picture(32, 32, 3)).save(folder / "colour.jpg")
    Image.fromarray(picture(90, 70, 3)).save(folder / "large.bmp")
    tifffile.imwrite(folder / "deep.tif", picture(33, 47).astype(np.uint16) * 200)
    return folder
