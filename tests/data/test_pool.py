"""Processes that share work, one of which is killed."""

from __future__ import annotations

from utils.command import run_command

import os
import signal
from pathlib import Path

import pytest

from data.pool import cores, pool_of
from utils.errors import Unfinished
from utils.files import whole_folder


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
def test_a_killed_process_is_one_line_and_what_is_done_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with whole_folder(tmp_path / "a", part=tmp_path / ".part.a") as folder, pool_of(2) as pool:
            (folder / "done").touch()
            list(pool.map(die, range(8)))

    with pytest.raises(Unfinished):
        work()
    assert (tmp_path / ".part.a" / "done").is_file()
    assert run_command(work) == 2
    assert "a process was killed" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert cores() == 3
