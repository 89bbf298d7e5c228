"""Configs that want to crash, hang or fill the memory: exit code 2 and one short line, whatever stands where."""

from __future__ import annotations

from utils.command import run_command

import resource
import time
from pathlib import Path

import pytest

import main as training_command
from tests.commands import Workspace

BOMB = "[&a0 [x, x, x, x, x, x, x, x, x, x]" + "".join(
    f", &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)
) + "]"  # fmt: skip
FRAGMENTS = {
    "date": "2020-13-45", "int": "!!int abc", "bool": "!!bool x", "time": "!!timestamp x", "set": "!!set [a]",
    "python": "!!python/object/apply:os.system [touch run]", "hex": "0x_", "digits": "1" * 5000, "fewer": "9" * 900,
    "sixties": "1:" * 400 + "1", "brackets": "[" * 3000, "braces": "{a: " * 500, "dashes": "- " * 3000, "alias": "*x",
    "itself": "&a [*a]", "bomb": BOMB, "merge": "{<<: {<<: {<<: 3}}}", "infinity": ".inf", "nan": ".nan",
    "large": "1e300", "negative": "-1", "many": "1000000000000", "wide": "[100000, 1]", "empty": '""', "nothing": "",
    "list": "[" + "1, " * 2000 + "]", "nul": '"a\\0"', "escape": '"\\e[31m\\n"', "text": "'" + "x" * 999 + "'",
    "faces": "\U0001f600" * 900, "tag": "! &", "binary": "!!binary aaaa", "omap": "!!omap [a: 1]",
    "tab": "\t", "bom": "\ufeff",
}  # fmt: skip
PLACES = {
    "name": "name: {}\ndata: {{root: nowhere}}\n",
    "root": "name: a\ndata: {{root: {}}}\n",
    "section": "name: a\ndata: {{root: nowhere}}\nsde: {}\n",
    "list": "name: a\ndata: {{root: nowhere}}\nmodel: {{multipliers: {}}}\n",
    "number": "name: a\ndata: {{root: nowhere}}\ntraining: {{learning_rate: {}}}\n",
    "union": "name: a\ndata: {{root: nowhere}}\nsampling: {{draws: {}}}\n",
    "key": "name: a\ndata: {{root: nowhere}}\n? {}\n: 1\n",
    "base": "base: {}\nname: a\ndata: {{root: nowhere}}\n",
    "whole": "{}\n",
}


def refused(workspace: Workspace, *arguments: str) -> str:
    """The line of error of a training that must not begin."""
    workspace.capture.readouterr()
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = run_command(lambda: training_command.main([*arguments, "--device", "cpu", "--quiet"]))
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB
    out, err = workspace.capture.readouterr()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.isprintable()
    assert line.startswith("error: ")
    assert len(line) <= 300
    assert not Path("runs").exists()
    assert not Path("run").exists()
    return line


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_hostile_values_are_one_line(workspace: Workspace, place: str) -> None:
    for fragment in FRAGMENTS.values():
        Path("config.yaml").write_text(PLACES[place].format(fragment))
        refused(workspace, "--config", "config.yaml")


@pytest.mark.parametrize("fragment", ["date", "digits", "bomb", "nul", "many"])
def test_hostile_overrides_are_one_line(workspace: Workspace, fragment: str) -> None:
    for key in ("name", "training.steps", "a.b", "a" + ".a" * 2000, "x" * 5000):
        assert "--set" in refused(workspace, "--config", "config.yaml", "--set", f"{key}={FRAGMENTS[fragment]}")


def test_hostile_files_are_one_line(workspace: Workspace) -> None:
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("latin.yaml").write_bytes(b"name: \xe9\n")
    Path("long.yaml").write_text("# comment\n" * 10_000)
    for i in range(1500):
        Path(f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n")
    for name, reason in (
        ("loop.yaml", "symbolic links"),
        ("latin.yaml", "codec can't decode"),
        ("long.yaml", "larger than 65536 bytes"),
        ("0.yaml", "more than 20 files inherit"),
        ("/dev/zero", "larger than 65536 bytes"),
        (".", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ):
        assert reason in refused(workspace, "--config", name)
