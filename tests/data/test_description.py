"""dataset.json: what it says is compared with the config, and a damaged one is no absent one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.dataset import load_split
from data.description import check_chosen, check_prepared
from data.prepare import prepare
from tests.commands import Workspace, section
from tests.data.sources.test_folder import fake_folder
from utils.config import load_config
from utils.data_schema import DataConfig
from utils.errors import DataError


@pytest.mark.parametrize(
    ("change", "said"),
    [("data.truncation=5", "data.truncation: 6.0, the config says 5.0"), ("data.stretch=true", "data.stretch: False")],
)
def test_data_prepared_otherwise_are_not_trained_on(workspace: Workspace, change: str, said: str) -> None:
    assert workspace("prepare").code == 0
    for command in ("main", "sample"):
        if command == "sample":
            assert workspace("main").code == 0
        assert said in workspace.fails(command, "--set", change)
    assert len(list((workspace.path / "runs" / "tiny").iterdir())) == 1
    (workspace.path / "prepared" / "dataset.json").unlink()  # then nobody can tell
    assert workspace("main", "--set", change, "--set", "training.steps=1").code == 0


def test_a_damaged_description_is_no_absent_one(workspace: Workspace) -> None:
    assert workspace("prepare").code == 0
    path = workspace.path / "prepared" / "dataset.json"
    whole = path.read_text()
    for content in ("", whole[:200], "[]", '{"options": null}', whole.replace("truncation", "trunkation"), "\0"):
        path.write_text(content)
        with pytest.raises(DataError, match=r"dataset\.json: damaged"):
            load_split(load_config("config.yaml", ["data.truncation=9"]).data, "train")
    assert "dataset.json: damaged" in workspace.fails("main", "--set", "data.truncation=9")
    assert not (workspace.path / "runs").exists()
    assert workspace("prepare").code == 0  # mends it
    assert path.read_text() == whole
    path.write_text('{"name": "of another program"}')
    load_split(load_config("config.yaml", ["data.truncation=9"]).data, "train")


def test_colours_are_not_made_of_grey(workspace: Workspace) -> None:
    assert workspace("prepare").code == 0
    assert "data.color: grey, the config says rgb" in workspace.fails("main", "--set", "data.color=rgb")
    assert workspace("prepare", "--set", "data.color=rgb").code == 0
    assert workspace("main", "--set", "training.steps=1").code == 0


def test_other_patches_matter_to_training_only(workspace: Workspace) -> None:
    cut = ["--set", "data.patch=[24, 24]", "--set", "training.steps=1"]
    assert workspace("prepare", *cut).code == 0
    assert workspace("main", *cut).code == 0
    assert workspace("prepare").code == 0
    assert "data.patch: None" in workspace.fails("main", *cut)
    assert workspace("sample", *cut, "--set", "sampling.draws=1").code == 0


def test_another_split_or_window_is_not_taken_for_the_prepared_one(tmp_path: Path) -> None:
    """Of a folder: a cross-validation by split_seed alone would train on one split again and again."""
    folder = fake_folder(tmp_path / "raw", count=6)
    (tmp_path / "p").mkdir()

    def folder_section(**more: Any) -> DataConfig:
        own: dict[str, Any] = {"source": "folder", "raw": folder, "root": tmp_path / "p", "truncation": 4}
        return section(**{**own, "test_fraction": 0.2, "workers": 1, **more})

    prepare(folder_section(), quiet=True)
    check_chosen(folder_section())
    for key, value in (("split_seed", 3), ("validation_fraction", 0.4), ("foreground", (255,)), ("stride", (8, 8))):
        more = {"patch": (16, 16)} if key == "stride" else {}
        with pytest.raises(DataError, match=rf"data\.{key}: "):
            check_chosen(folder_section(**{key: value}, **more))
        check_prepared(folder_section(**{key: value}, **more), training=False)
    with pytest.raises(DataError, match=r"data\.window: None"):
        check_prepared(folder_section(window=(0, 100)), training=False)
