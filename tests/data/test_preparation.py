"""Archives and their preparation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.dataset import Reading, load_split
from data.preparation import prepare
from data.processing import FOLDERS, PrepareOptions, write_image
from data.sdf import signed_distance
from data.sources import glas
from data.sources.record import Record, Sample
from data.splits import cut_split
from tests.conftest import ROOT, Workspace
from utils.errors import DataError

REAL_GLAS = ROOT.parent / "shared" / "data" / "glas"


def fake_glas(folder: Path, suffix: str = "bmp", counts: dict[str, int] | None = None) -> Path:
    """The official archive's layout with small pictures: four patients, one of them in the test set only."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for part, count in (counts or glas.EXPECTED).items():
        for i in range(1, count + 1):
            labels = np.zeros((20, 30), np.uint8)
            labels[3:12, 4:15], labels[5:18, 20:28] = 1, 2
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / f"{part}_{i}.{suffix}")
            Image.fromarray(labels).save(folder / f"{part}_{i}_anno.{suffix}")
            rows.append(f"{part}_{i}, {i % 7 if part == 'train' else 99}, {'benign' if i % 2 else 'malignant'}, x")
    (folder / "Grade.csv").write_text("\n".join(rows) + "\n")
    return folder


OPTIONS = PrepareOptions(source="test", size=(16, 24), color="grey", truncation=4, validation_fraction=0.2)


@pytest.mark.parametrize("suffix", ["bmp", "png"])
def test_glas_archive(tmp_path: Path, suffix: str) -> None:
    records = glas.records(fake_glas(tmp_path / "raw", suffix)).records
    assert [sum(r.split == s for r in records) for s in ("train", "test")] == [85, 80]
    first = next(r for r in records if r.image_id == "train_2")
    assert (first.group, first.attributes["grade"], first.attributes["part"]) == ("2", "malignant", "train")
    sample = first.read()
    assert sample is not None
    assert sample.instances is not None
    assert set(np.unique(sample.instances)) == {0, 1, 2}
    np.testing.assert_array_equal(sample.mask, sample.instances > 0)


def test_validation_is_cut_by_patient(tmp_path: Path) -> None:
    records = cut_split(glas.records(fake_glas(tmp_path / "raw")).records, "val", 0.2, seed=0)
    patients = {split: {r.group for r in records if r.split == split} for split in ("train", "val", "test")}
    assert not patients["train"] & patients["val"]
    assert 8 <= sum(r.split == "val" for r in records) <= 17
    assert sum(r.split == "test" for r in records) == 80
    fresh = glas.records(tmp_path / "raw").records
    splits = [[r.split for r in cut_split(fresh, "val", 0.2, seed)] for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1] == [r.split for r in records]
    assert any(split != splits[0] for split in splits[2:])


def test_partial_glas_names_expected_and_found(tmp_path: Path) -> None:
    raw = fake_glas(tmp_path / "raw", counts={"train": 5, "testA": 2, "testB": 0})
    (problem,) = glas.records(raw).problems
    assert "expected 85 train, 60 testA, 20 testB; found 5 train, 2 testA, 0 testB" in problem
    assert "allow_partial" in problem
    assert len(glas.records(raw, allow_partial=True).records) == 7


def test_broken_glas_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        glas.records(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found 0 train"):
        glas.records(tmp_path / "empty", allow_partial=True)
    raw = fake_glas(tmp_path / "raw", counts={"train": 4, "testA": 1, "testB": 0})
    (raw / "train_1_anno.bmp").unlink()
    (raw / "train_3.bmp").unlink()
    shutil.copy(raw / "train_2.bmp", raw / "train_2.png")
    (raw / "Grade.csv").write_text("a,b\n1,2\n")
    archive = glas.records(raw, allow_partial=True)
    twice, unpaired, ungraded = archive.problems
    assert "train_2.bmp and train_2.png are the same image twice" in twice
    assert "train_1 (no annotation), train_3 (no image)" in unpaired
    assert "needs the columns name, patient" in ungraded
    (raw / "Grade.csv").unlink()
    assert {r.group for r in glas.records(raw, allow_partial=True).records} == {"train_2", "train_4", "testA_1"}
    assert "Grade.csv is missing" in glas.records(raw).problems[-1]


@pytest.mark.skipif(not REAL_GLAS.is_dir(), reason="the GlaS archive is not on this machine")
def test_real_glas(tmp_path: Path) -> None:
    archive = glas.records(REAL_GLAS, allow_partial=True)
    assert len(archive.records) == 145
    assert archive.problems == []
    counts = prepare(archive, tmp_path / "p", PrepareOptions("glas", (128, 128), "grey", 15, 0.15), quiet=True).images
    assert counts["test"] == 60
    assert counts["train"] + counts["val"] == 85
    patches = load_split(tmp_path / "p", "test", Reading(rgb=False, truncation=15))
    assert all(patch.image.shape == (128, 128) for patch in patches)
    assert 0.3 < np.mean([patch.mask.mean() for patch in patches]) < 0.7


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


def test_raters_and_colour_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = tuple(rng.random((9, 7)) < 0.5 for _ in range(3))
    sample = Sample(rng.integers(0, 255, (9, 7, 3), dtype=np.uint8), masks[0], None, masks)
    record = Record("x", "test", "x", lambda: sample)
    for folder in FOLDERS.values():
        (tmp_path / folder).mkdir()
    (row,) = write_image(record, tmp_path, PrepareOptions("s", None, "rgb", 3, 0)).rows
    names = str(row["raternames"]).split(";")
    assert len(names) == 3
    for name, mask in zip(names, masks, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)) > 0, mask)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / str(row["filename"]))), sample.image)


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
