"""Locks: one holder, who is named, and none after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from utils.errors import UsageError
from utils.locks import held

HOLD = "import sys, time\nfrom pathlib import Path\nfrom utils.locks import held\n" \
       "with held(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"  # fmt: skip


def test_the_second_is_told_who_holds_it_until_that_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".root.lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            UsageError, match=rf"data\.root: a is in use by process {other.pid} on \S+ since \d"
        ) as error:
            held(path, "data.root: a").__enter__()
        assert "\n" not in str(error.value)
    finally:
        other.kill()
        other.wait()
    with held(path, "data.root: a"):
        assert str(os.getpid()) in path.read_text()
        with pytest.raises(UsageError, match="in use"):
            held(path, "again").__enter__()
    assert list(tmp_path.iterdir()) == []
