"""Files that are shipped with the program are found from any folder, and never before a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import ROOT, Workspace, sampled
from utils.config import load_config
from utils.shipped import config_file, weights_file


@pytest.mark.parametrize("name", ["glas.yaml", "cfg/glas.yaml", "glas", "./glas.yaml"])
def test_a_shipped_config_has_three_names(workspace: Workspace, name: str) -> None:
    assert config_file(name) == ROOT / "cfg" / "glas.yaml"
    assert "name: glas\n" in workspace("main", "--print-config", config=name).out


@pytest.mark.parametrize("name", ["nuclei.safetensors", "weights/nuclei.safetensors", "nuclei"])
def test_shipped_weights_have_three_names(workspace: Workspace, name: str) -> None:
    assert weights_file(name) == ROOT / "weights" / "nuclei.safetensors"


@pytest.mark.parametrize(
    "name", ["mine/glas.yaml", "../glas.yaml", "cfg/x/glas.yaml", "glas.yml", "none.yaml", "a\0", ""]
)
def test_other_names_mean_what_they_say(workspace: Workspace, name: str) -> None:
    assert config_file(name) == Path(name)
    assert weights_file(name) == Path(name)


def test_a_file_of_ones_own_comes_first(workspace: Workspace) -> None:
    for folder in (Path(), Path("cfg")):
        folder.mkdir(exist_ok=True)
        (folder / "glas.yaml").write_text(f"base: {ROOT}/cfg/glas.yaml\nname: mine\n")
        assert config_file(folder / "glas.yaml") == folder / "glas.yaml"
        assert "name: mine\n" in workspace("main", "--print-config", config=str(folder / "glas.yaml")).out
    assert weights_file(".").samefile(".")


def test_a_folder_of_pictures_is_not_taken_for_weights_of_its_name(workspace: Workspace) -> None:
    Path("nuclei").mkdir()
    assert weights_file("nuclei") == ROOT / "weights" / "nuclei.safetensors"
    Path("nuclei", "config.yaml").touch()  # a run, to start from
    assert weights_file("nuclei") == Path("nuclei")


@pytest.mark.parametrize("name", ["quickstrat", "quickstrat.yaml", "cfg/quickstrat.yaml"])
def test_a_name_that_is_nearly_right_is_told(workspace: Workspace, name: str) -> None:
    assert workspace.fails("main", config=name).endswith("; did you mean cfg/quickstart.yaml?")
    assert "mean" not in workspace.fails("main", config=f"mine/{name}")


def test_weights_whose_name_is_nearly_right_are_told(workspace: Workspace) -> None:
    said = sampled(workspace, "--weights", "nucleus", "--input", ".").err
    assert said == "error: nucleus: no such file of weights; did you mean weights/nuclei.safetensors?\n"


@pytest.mark.parametrize("base", ["glas.yaml", "cfg/glas.yaml"])
def test_a_config_of_ones_own_has_a_shipped_base(tmp_path: Path, base: str) -> None:
    child = tmp_path / "mine.yaml"
    child.write_text(f"base: {base}\nname: mine\n")
    assert load_config(child) == load_config(ROOT / "cfg" / "glas.yaml", ["name=mine"])
    (tmp_path / "cfg").mkdir()
    (tmp_path / base).write_text("base: quickstart.yaml\nseed: 7\n")
    assert load_config(child) == load_config(ROOT / "cfg" / "quickstart.yaml", ["name=mine", "seed=7"])


def test_which_config_was_meant_is_said(workspace: Workspace) -> None:
    said = workspace("main", "--print-config", config="glas.yaml")
    assert (said.code, said.err) == (0, "")  # quiet
    from main import main

    workspace.capture.readouterr()
    main(["--config", "glas.yaml", "--print-config"])
    assert workspace.capture.readouterr().err == f"--config glas.yaml: {ROOT}/cfg/glas.yaml\n"
