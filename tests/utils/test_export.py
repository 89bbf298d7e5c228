"""Weights written from a run."""

from __future__ import annotations

from utils.command import run_command

import json
from pathlib import Path

import pytest
import torch

from tests.commands import Workspace, exported
from utils import export
from utils.errors import UsageError
from utils.weights import read_header


def test_the_header_has_no_folder_of_one_machine(trained: Workspace) -> None:
    header = read_header(exported(trained))
    assert header.config["data"]["root"] == "prepared"
    assert header.config["data"]["raw"] is None
    assert header.config["name"] == "given"
    assert header.licence == "made up, free to use"
    assert header.step in (3, 6)
    glas = {"source": "glas", "raw": "/home/me/GlaS", "root": "/home/me/x"}
    glas |= {"stain": "macenko", "stain_target": "/home/me/one.png"}
    data = export.portable({**header.config, "data": {**header.config["data"], **glas}}, "other", Path("x")).data
    assert (data.raw, data.root, data.stain_target) == ("raw/glas", "prepared/other", "one.png")


def test_weights_may_be_sampled_otherwise_than_the_run(trained: Workspace) -> None:
    path = exported(trained, "--set", "sampling.draws=2", "--set", "sampling.steps=3")
    assert read_header(path).config["sampling"] | {"draws": 2, "steps": 3} == read_header(path).config["sampling"]
    words = ["--run", str(trained.run_folder()), "--output", "x.safetensors", "--licence", "free"]
    assert run_command(lambda: export.main([*words, "--set", "model.channels=4"])) == 2
    assert "the training is done" in trained.capture.readouterr().err
    assert not Path("x.safetensors").exists()


def test_an_ensemble_is_not_one_file(trained: Workspace) -> None:
    state = torch.load(trained.run_folder() / "checkpoints" / "best.pt", weights_only=True)
    state["config"]["sampling"] |= {"sampler": "ensemble", "members": ["/home/me/runs/a"]}
    state["config"]["sde"]["prior_share"] = 1.0
    with pytest.raises(UsageError, match="an ensemble is not one file"):
        export.portable(state["config"], "x", Path("x"))


def test_an_export_needs_a_name_of_weights(trained: Workspace) -> None:
    words = ["--run", str(trained.run_folder()), "--output", "x.pt", "--licence", "free"]
    assert run_command(lambda: export.main(words)) == 2
    assert "must end in .safetensors" in trained.capture.readouterr().err


def test_a_graph_for_oneself_needs_neither_name_nor_licence(trained: Workspace) -> None:
    run = trained.run_folder()
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    state["config"]["sde"]["prior_share"] = 0.5  # for a graph of the mean
    torch.save(state, run / "checkpoints" / "best.pt")
    assert run_command(lambda: export.main(["--run", str(run), "--format", "torchscript"])) == 0
    file, known = run / f"{run.parent.name}.pt", {"metadata.json": ""}
    torch.jit.load(file, _extra_files=known)
    facts = json.loads(known["metadata.json"])
    assert facts["name"] == run.parent.name
    assert facts["licence"] == "not stated"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--output", "x.onnx", "--licence", "free"], "must end in .safetensors with --format safetensors"),
        (["--output", "x.safetensors", "--licence", "free", "--weights", "w.safetensors"], "and not both"),
        (["--output", "x.safetensors"], "--run needs --licence with --format safetensors"),
        (["--output", "x.onnx", "--licence", "free", "--format", "onnx", "--full"], "--full goes with"),
        (["--output", "x.safetensors", "--licence", "free", "--draws", "4"], "--draws goes with"),
        (["--output", "x.onnx", "--licence", "free", "--format", "onnx", "--draws", "0"], "must be 1 to 128"),
        (["--output", "x.zip", "--licence", "free", "--format", "bioimageio", "--stretch"], "--stretch goes with"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: export.main(["--run", "absent", *words])) == 2
    assert problem in capsys.readouterr().err


def test_weights_are_exported_again_with_their_licence(trained: Workspace) -> None:
    first = exported(trained)
    words = ["--weights", str(first), "--output", "again.safetensors", "--set", "sampling.draws=2"]
    assert run_command(lambda: export.main(words)) == 0
    one, again = read_header(first), read_header(Path("again.safetensors"))
    assert (one.licence, one.commit, one.step, one.images) == (again.licence, again.commit, again.step, again.images)
    assert (again.config["name"], again.config["sampling"]["draws"]) == ("again", 2)


@pytest.mark.parametrize("name", ["nuclei", "weights/nuclei.safetensors"])
def test_shipped_weights_are_found_from_any_folder(workspace: Workspace, name: str) -> None:
    words = ["--weights", name, "--output", "mine.safetensors", "--set", "sampling.draws=4"]
    assert run_command(lambda: export.main(words)) == 0
    assert read_header(Path("mine.safetensors")).config["sampling"]["draws"] == 4
