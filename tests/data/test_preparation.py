"""Prepared folders: whole or as they were, up to date, and compared with the config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.preparation import prepare
from data.processing import PrepareOptions
from data.sdf import signed_distance
from data.sources import glas
from tests.helpers import Workspace, fake_glas
from utils.errors import DataError

OPTIONS = PrepareOptions(source="test", size=(16, 24), color="grey", truncation=4, validation_fraction=0.2)


def prepared(tmp_path: Path) -> Path:
    raw = fake_glas(tmp_path / "raw", counts={"train": 8, "testA": 3, "testB": 0})
    prepare(glas.records(raw, True), tmp_path / "p", OPTIONS, workers=1, quiet=True)
    return tmp_path / "p"


def test_prepared_folder_keeps_the_contract(tmp_path: Path) -> None:
    root = prepared(tmp_path)
    for split, folder in (("train", "Training_patches"), ("val", "Validation_patches"), ("test", "Test_patches")):
        table = pd.read_csv(root / f"{split}.csv")
        expected = ["filename", "maskname", "maskdtname", "image_id", "top", "left", "height", "width", "instancename"]
        assert list(table.columns[:9]) == expected
        assert len(table) > 0
        for row in table.to_dict("records"):
            assert row["filename"].startswith(folder)
            image, mask = (np.asarray(Image.open(root / row[c])) for c in ("filename", "maskname"))
            sdf = np.load(root / row["maskdtname"])
            assert [str(a.dtype) for a in (image, mask, sdf)] == ["uint8", "uint8", "float32"]
            assert image.shape == mask.shape == sdf.shape == (row["height"], row["width"]) == (16, 24)
            assert set(np.unique(mask)) <= {0, 255}
            np.testing.assert_array_equal(sdf, signed_distance(mask > 0, 4))
            labels = np.asarray(Image.open(root / row["instancename"]))
            assert labels.dtype == np.uint16
            np.testing.assert_array_equal(labels > 0, mask > 0)
    description = json.loads((root / "dataset.json").read_text())
    assert len(description["inputs"]) == 22
    assert all(len(digest) == 64 for digest in description["inputs"].values())


def test_preparing_again_does_nothing_until_something_changes(tmp_path: Path) -> None:
    root = prepared(tmp_path)
    records = glas.records(tmp_path / "raw", True)

    def again(options: PrepareOptions = OPTIONS) -> bool:
        return prepare(records, root, options, workers=1, quiet=True).written

    (root / "notes.txt").write_text("mine")
    stamp = (root / "train.csv").stat().st_mtime_ns
    assert not again()
    assert (root / "train.csv").stat().st_mtime_ns == stamp
    changed = PrepareOptions(**{**OPTIONS.__dict__, "truncation": 5})
    assert again(changed)
    assert again()
    assert not again()
    Image.new("RGB", (30, 20), "white").save(tmp_path / "raw" / "train_1.bmp")
    assert again()
    next((root / "Test_patches").glob("*.npy")).unlink()
    assert again()
    assert not again()
    assert not (tmp_path / "p.partial").exists()
    assert not (tmp_path / "p.old").exists()
    assert (root / "notes.txt").read_text() == "mine"


def test_a_broken_image_leaves_the_old_folder(tmp_path: Path) -> None:
    root = prepared(tmp_path)
    before = sorted(path.name for path in root.rglob("*"))
    (tmp_path / "raw" / "train_2.bmp").write_bytes(b"BM nonsense")
    with pytest.raises(DataError, match=r"train_2\.bmp"):
        prepare(glas.records(tmp_path / "raw", True), root, OPTIONS, workers=2, quiet=True)
    assert sorted(path.name for path in root.rglob("*")) == before
    assert not (tmp_path / "p.partial").exists()


def test_never_replaces_a_folder_it_did_not_make(tmp_path: Path) -> None:
    raw = fake_glas(tmp_path / "raw", counts={"train": 8, "testA": 3, "testB": 0})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.png").touch()
    with pytest.raises(DataError, match="not prepared here"):
        prepare(glas.records(raw, True), tmp_path / "photos", OPTIONS, workers=1, quiet=True)
    assert (tmp_path / "photos" / "holiday.png").exists()


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
    for content in ("{", "[]", '{"options": null}', '{"name": "of another program"}'):  # then nobody can tell
        (workspace.path / "prepared" / "dataset.json").write_text(content)
        assert workspace("main", "--set", change, "--set", "training.steps=1").code == 0


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
