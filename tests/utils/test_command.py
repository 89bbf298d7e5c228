"""Commands from their first moment on: signals, options, errors of one line."""

from __future__ import annotations

from utils.command import run_command

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

import main as training_command
import sample as sampling_command
from data import inspect as inspection_command
from tests.commands import ROOT, Workspace
from utils import export as export_command
from utils.errors import cut

PROGRAMS = [
    ["main.py"],
    ["sample.py"],
    *[["-m", f"data.{name}"] for name in ("prepare", "inspect")],
    *[["-m", name] for name in ("utils.export", "napari_plugin.correct", "bench.table", "bench.nfe")],
]


def catches(process: subprocess.Popen[str], number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux who handles signals")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p[-1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_ends_a_command_quietly(program: list[str], number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, *program, "--help"], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)  # fmt: skip
    while not catches(process, signal.SIGTERM):
        assert process.poll() is None
        time.sleep(0.001)
    loaded = Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(number)
    out, err = process.communicate()
    assert "libtorch" not in loaded  # the handler is there before what takes time
    assert (process.returncode, out, err) == (128 + number, "", "")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what is loaded")
def test_a_signal_during_later_imports_ends_a_command_quietly(workspace: Workspace) -> None:
    process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), "--config", "config.yaml"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (143, "", "")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "words", [["--help"], ["--config", "config.yaml", "--print-config"], ["--confg", "x"]], ids=str
)
@pytest.mark.parametrize("program", ["main.py", "sample.py"])
def test_what_needs_no_network_loads_no_libraries(workspace: Workspace, program: str, words: list[str]) -> None:
    """They would take seconds."""
    ask = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: print(*sys.modules, sep='\\n')"
    )
    command = [sys.executable, "-c", ask, str(ROOT / program), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    loaded = set(done.stdout.splitlines())
    assert "utils.cli" in loaded, done.stderr
    assert not loaded & {"torch", "torchvision", "pandas", "scipy", "skimage", "matplotlib", "tensorboard"}


OPTIONS = [
    (training_command, "--resume|", "--resume: is empty"),
    (training_command, "--config=", "--config: is empty"),
    (training_command, "", "--config, or a run to take it from, is needed"),
    (training_command, "--resume|nowhere", "--resume nowhere is not a run folder"),
    (training_command, "--config|config.yaml|--epochs|3", "unrecognized arguments: --epochs 3"),
    (training_command, "--config|config.yaml|--device|meta", "--device meta: not usable here"),
    (training_command, "--config|config.yaml|--set|", "--set: is empty"),
    (sampling_command, "--config|config.yaml|--input|", "--input: is empty"),
    (sampling_command, "--run|", "--run: is empty"),
    (sampling_command, "--weights|", "--weights: is empty"),
    (sampling_command, "--config|config.yaml|--input|x|--output|", "--output: is empty"),
    (sampling_command, "--config|config.yaml|--overwrite", "--overwrite goes with --input"),
    (sampling_command, "--config|config.yaml|--output|x", "--output goes with --input"),
    (sampling_command, "--config|config.yaml|--count|3", "--count goes with --generate"),
    (sampling_command, "--config|config.yaml|--split|test|--input|x", "leave out --split"),
    (sampling_command, "--config|config.yaml|--split|val|--generate|pairs", "leave out --split"),
    (sampling_command, "--config|config.yaml|--input|x|--generate|pairs", "leave out --generate"),
    (sampling_command, "--compare|a|b|--config|config.yaml", "leave out --config; --compare goes alone"),
    (sampling_command, "--compare|a|b|--resume|--run|c", "leave out --resume, --run; --compare goes alone"),
    (inspection_command, "--config|config.yaml|--output|", "--output: is empty"),
    (export_command, "--run||--output|x|--licence|y", "--run: is empty"),
]


@pytest.mark.parametrize(("command", "words", "message"), OPTIONS, ids=[words for _, words, _ in OPTIONS])
def test_options_that_say_nothing_or_do_not_go_together(
    workspace: Workspace, command: ModuleType, words: str, message: str
) -> None:
    before = sorted(workspace.path.rglob("*"))
    assert run_command(lambda: command.main(words.split("|") if words else [])) == 2
    (line,) = workspace.capture.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert sorted(workspace.path.rglob("*")) == before


def test_a_run_is_gone_on_with_by_its_name_alone(trained: Workspace) -> None:
    run = trained.run_folder()
    arguments = ["--resume", str(run), "--device", "cpu", "--quiet", "--set", "training.steps=8"]
    assert run_command(lambda: training_command.main(arguments)) == 0
    assert "steps: 8" in (run / "config.yaml").read_text()
    assert (run / "checkpoints" / "step_00000008.pt").is_file()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 3 bytes")])
def test_too_little_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    assert run_command(command) == 2
    assert capsys.readouterr().err.startswith("error: out of memory (")


def test_other_errors_of_the_program_are_not_hidden() -> None:
    def command() -> None:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        run_command(command)


def test_values_lose_their_middle_and_what_a_terminal_obeys() -> None:
    assert cut("short\x1b[31m\nline") == "short [31m line"
    assert cut("a" * 50 + "b" * 50, 30) == "a" * 20 + " ... " + "b" * 5
