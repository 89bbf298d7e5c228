"""data.prepare: folders whole or as they were, up to date, by one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.dataset import load_split
from data.prepare import prepare
from data.recipe import FOLDERS, Written, write_image
from data.sdf import signed_distance
from data.sources.record import Record
from tests.commands import ROOT, Workspace, section
from tests.pictures import colours, fake_glas, save
from utils.data_schema import DataConfig
from utils.errors import DataError
from utils.locks import held


def small(tmp_path: Path, **options: Any) -> DataConfig:
    """Of a part of the archive in tmp_path / "raw"."""
    usual = {"size": (16, 24), "truncation": 4, "validation_fraction": 0.2, "allow_partial": True, "workers": 1}
    return section("glas", tmp_path / "raw", **{"root": tmp_path / "p", **usual, **options})


def prepared(tmp_path: Path) -> Path:
    fake_glas(tmp_path / "raw", counts={"train": 8, "testA": 3, "testB": 0})
    prepare(small(tmp_path), quiet=True)
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
    assert "stain_version" not in description  # other ways of finding stains do not matter here
    assert all(len(digest) == 64 for digest in description["inputs"].values())


def test_preparing_again_does_nothing_until_something_changes(tmp_path: Path) -> None:
    root = prepared(tmp_path)

    def again(**options: Any) -> bool:
        return prepare(small(tmp_path, **options), quiet=True).written

    (root / "notes.txt").write_text("mine")
    stamp = (root / "train.csv").stat().st_mtime_ns
    assert not again()
    assert (root / "train.csv").stat().st_mtime_ns == stamp
    assert again(truncation=5)
    assert again()
    assert not again()
    Image.new("RGB", (30, 20), "white").save(tmp_path / "raw" / "train_1.bmp")
    assert again()
    next((root / "Test_patches").glob("*.npy")).unlink()
    assert again()
    assert not again()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "raw"]
    assert (root / "notes.txt").read_text() == "mine"


def test_a_broken_image_leaves_the_old_folder(tmp_path: Path) -> None:
    root = prepared(tmp_path)
    before = sorted(path.name for path in root.rglob("*"))
    (tmp_path / "raw" / "train_2.bmp").write_bytes(b"BM nonsense")
    with pytest.raises(DataError, match=r"train_2\.bmp"):
        prepare(small(tmp_path), quiet=True)
    assert sorted(path.name for path in root.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "raw"]


def test_never_replaces_a_folder_it_did_not_make(tmp_path: Path) -> None:
    fake_glas(tmp_path / "raw", counts={"train": 8, "testA": 3, "testB": 0})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.png").touch()
    with pytest.raises(DataError, match="not prepared here"):
        prepare(small(tmp_path, root=tmp_path / "photos"), quiet=True)
    with pytest.raises(DataError, match="choose another"):
        prepare(small(tmp_path, root=Path("/")), quiet=True)
    assert (tmp_path / "photos" / "holiday.png").exists()


def test_two_preparations_of_one_root(workspace: Workspace) -> None:
    with held(workspace.path / ".prepared.lock", "another"):
        assert f"data.root: prepared is in use by process {os.getpid()}" in workspace.fails("prepare")
    assert workspace("prepare").code == 0


class Killed(BaseException):
    pass


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_preparation_killed_while_it_replaces_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Nothing is cleaned up after a kill: the next preparation has to."""
    root = prepared(tmp_path)
    (root / "notes").mkdir()
    for mine in ("my_notes.txt", "notes/more.txt", "Training_patches/mine.txt"):
        (root / mine).write_text(mine)
    left, real = [renames], os.rename

    def rename(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", rename)
        patch.setattr("utils.files.restore_folder", lambda path: None)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed) if renames < 2 else nullcontext():
            prepare(small(tmp_path, truncation=5), quiet=True)
    assert root.is_dir() == (renames != 1)
    prepare(small(tmp_path, truncation=6), quiet=True)
    for mine in ("my_notes.txt", "notes/more.txt", "Training_patches/mine.txt"):
        assert (root / mine).read_text() == mine
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "raw"]
    assert not prepare(small(tmp_path, truncation=6), quiet=True).written


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def stopped_after(images: int, data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """Prepare and stop within the image after so many; returns how many were begun."""
    begun = []

    def write(record: Record, root: Path, *rest: Any) -> Written:
        begun.append(record.image_id)
        if len(begun) > images:
            (root / FOLDERS[record.split] / f"{record.image_id}.png").write_text("half")
            raise Killed
        return write_image(record, root, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("data.prepare.write_image", write)
        with suppress(Killed):
            prepare(data, quiet=True)
    return len(begun)


def test_an_interrupted_preparation_goes_on_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the images that are done and whole, and no others; only of the same inputs and options."""
    expected = tree(prepared(tmp_path))
    shutil.rmtree(tmp_path / "p")
    part = tmp_path / ".part.p"
    stopped_after(4, small(tmp_path), monkeypatch)
    assert not (tmp_path / "p").exists()
    stopped_after(3, small(tmp_path), monkeypatch)
    sdf = next(part.glob("Training_patches/*_sdf.npy"))
    sdf.write_bytes(sdf.read_bytes()[:-4])
    with (part / ".done.jsonl").open("a") as journal:
        journal.write('["torn", [')
    assert stopped_after(99, small(tmp_path), monkeypatch) == 11 - 7 + 1  # the damaged one, too
    assert tree(tmp_path / "p") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "raw"]
    for options, image in (({"truncation": 5}, None), ({}, "train_1.bmp")):
        stopped_after(4, small(tmp_path, truncation=6), monkeypatch)
        assert tree(tmp_path / "p") == expected
        if image:
            Image.new("RGB", (30, 20), "white").save(tmp_path / "raw" / image)
        assert stopped_after(99, small(tmp_path, **options), monkeypatch) == 11
        expected = tree(tmp_path / "p")
        assert not part.exists()


def test_images_of_odd_names_have_files_of_their_own(tmp_path: Path) -> None:
    names = ["図", "像", "a b", "a_b", "a_b_mask", "x(1)", "x[1]"]
    for i, name in enumerate(names):
        save(tmp_path / "raw" / "images" / f"{name}.png", np.full((16, 16), i, np.uint8))
        save(tmp_path / "raw" / "masks" / f"{name}.png", np.full((16, 16), 255, np.uint8))
    data = section("folder", tmp_path / "raw", tmp_path / "p", validation_fraction=0, test_fraction=0, workers=1)
    prepare(data, quiet=True)
    patches = load_split(data, "train")
    assert sorted(int(patch.image[0, 0]) for patch in patches) == list(range(len(names)))
    assert all(patch.mask.all() for patch in patches)
    assert {"図", "像", "a_b"} < {patch.image_id for patch in patches}
    assert (tmp_path / "p" / "Training_patches" / "図.png").is_file()


@pytest.mark.parametrize(
    ("source", "make"),
    [
        ("glas", lambda raw: fake_glas(raw, counts={"train": 3, "testA": 1, "testB": 0})),
        ("monuseg", lambda raw: save(raw / "Tissue Images" / "TCGA-1.tif", colours()).with_suffix(".xml").touch()),
        ("lidc", lambda raw: save(raw / "LIDC-IDRI-0001" / "images" / "s.png", colours())),
        ("dsb2018", lambda raw: [save(raw / n / "images" / "a.png", colours()) for n in "ab"]
         + [save(raw / "a" / "masks" / "1.png", np.zeros((40, 50), np.uint8))]),
        ("folder", lambda raw: [save(raw / "images" / "a.png", colours()), save(raw / "masks" / "b.png", colours())]),
    ],
)  # fmt: skip
def test_an_archive_is_checked_before_an_image_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "raw")
    monkeypatch.setattr("data.images._load", lambda *_: pytest.fail("an image was decoded"))
    with pytest.raises(DataError, match=str(tmp_path / "raw")):
        prepare(section(source, tmp_path / "raw", tmp_path / "p", workers=1), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_command_says_when_there_is_nothing_to_do(workspace: Workspace) -> None:
    assert "prepared: prepared (8 train, 2 val, 3 test)" in workspace("prepare").out
    assert "up to date, nothing to do" in workspace("prepare").out
    assert "prepared: prepared" in workspace("prepare", "--set", "data.truncation=5").out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_preparation_leaves_what_the_next_one_goes_on_with(
    workspace: Workspace, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "data.prepare", "--config", str(workspace.path / "config.yaml"), "--quiet"]
    options = ["--set", f"data.root={workspace.path / 'prepared'}", "--set", "data.phantom.train=5000"]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not any(workspace.path.glob(".*.prepared/Training_patches/*")):
        time.sleep(0.05)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert sorted(path.name for path in workspace.path.iterdir()) == [".part.prepared", "config.yaml"]
