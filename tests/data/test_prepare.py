"""data.prepare as a user types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT, Workspace


def test_command_says_when_there_is_nothing_to_do(workspace: Workspace) -> None:
    assert "prepared: prepared (8 train, 2 val, 3 test)" in workspace("prepare").out
    assert "up to date, nothing to do" in workspace("prepare").out
    assert "prepared: prepared" in workspace("prepare", "--set", "data.truncation=5").out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_preparation_leaves_nothing(workspace: Workspace, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "data.prepare", "--config", str(workspace.path / "config.yaml"), "--quiet"]
    options = ["--set", f"data.root={workspace.path / 'prepared'}", "--set", "data.phantom.train=5000"]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    partial_folder = workspace.path / "prepared.partial" / "Training_patches"
    while not (partial_folder.is_dir() and any(partial_folder.iterdir())):
        time.sleep(0.05)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert sorted(path.name for path in workspace.path.iterdir()) == ["config.yaml"]
