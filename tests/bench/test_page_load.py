"""Loading a report in a browser, where there is one."""

from __future__ import annotations

from utils.command import run_command

import shutil
from pathlib import Path

import pytest

from bench import page_load
from tests.pages import example


@pytest.mark.slow
@pytest.mark.skipif(page_load.browser_there() is None, reason="needs Chromium or Chrome on the PATH")
def test_a_report_tells_when_it_was_loaded(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(example(tmp_path, ["a", "b"]))
    (load, picture), (empty, _) = page_load.measure(tmp_path / "report.html", 1)
    assert 0 < load <= picture
    assert empty > 0


@pytest.mark.parametrize(("found", "said"), [(None, "on the PATH"), ("/bin/false", "nothing.html: no such file")])
def test_what_is_missing_is_named(
    found: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: found)
    assert run_command(lambda: page_load.main(["nothing.html"])) == 2
    assert said in capsys.readouterr().err
