"""Anybody's folder of images and masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.preparation import prepare
from data.processing import PrepareOptions
from data.sources import folder
from data.sources.folder import FolderOptions
from data.sources.record import Archive
from tests.helpers import colours, read, save
from utils.errors import DataError

MASK = np.zeros((20, 30), np.uint8)
MASK[2:8, 2:8], MASK[10:18, 10:20] = 1, 3


BINARY = (MASK > 0).astype(np.uint8) * 255


def fake_folder(raw: Path, masks: str = "masks", values: np.ndarray = BINARY, count: int = 4) -> Path:
    for i in range(count):
        save(raw / "images" / f"im {i}.png", colours(20, 30))
        save(raw / masks / f"im {i}.tif", values)
    return raw


def listed(raw: Path, **options: object) -> Archive:
    return folder.records(raw, FolderOptions(**options))  # type: ignore[arg-type]


def test_a_folder_of_images_and_masks(tmp_path: Path) -> None:
    archive = listed(fake_folder(tmp_path))
    assert [(r.image_id, r.split) for r in archive.records] == [(f"im_{i}", "train") for i in range(4)]
    sample = read(archive.records[0])
    np.testing.assert_array_equal(sample.mask, MASK > 0)
    assert sample.instances is None
    assert sample.classes is None


def test_what_mask_values_mean(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path / "masks", values=MASK)
    with pytest.raises(DataError, match=r"3 values, 0 to 3.*data\.instances: true, data\.foreground.*data\.classes"):
        read(listed(raw).records[0])
    assert read(listed(raw, foreground=(3,)).records[0]).mask.sum() == 80
    numbered = read(listed(raw, instances=True).records[0])
    np.testing.assert_array_equal(numbered.instances, MASK)
    classes = read(listed(raw, classes=(1, 3)).records[0])
    np.testing.assert_array_equal(classes.classes, MASK)
    labels = fake_folder(tmp_path / "labels", "labels", MASK)
    np.testing.assert_array_equal(read(listed(labels).records[0]).instances, MASK)
    with pytest.raises(DataError, match="3 values"):
        read(listed(labels, instances=False).records[0])


def test_rater_folders(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path, "masks_a")
    for i in range(4):
        save(raw / "masks_b" / f"im {i}.png", np.zeros((20, 30), np.uint8))
    archive = listed(raw)
    sample = read(archive.records[0])
    assert [int(rater.sum()) for rater in sample.raters] == [116, 0]
    with pytest.raises(DataError, match=r"several raters and data\.classes"):
        listed(raw, classes=(1, 3))
    (raw / "masks_b" / "im 2.png").unlink()
    assert listed(raw).problems == [f"{raw / 'images' / 'im 2.png'}: no partner in masks_b/"]
    (raw / "masks").mkdir()
    with pytest.raises(DataError, match="which are the masks"):
        listed(raw)


def test_splits_from_a_table_or_from_folders(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path / "table")
    (raw / "split.csv").write_text("image,split,group\nim 0.png,train,p\nim 1,val,q\nim 2,test,r\nim 3,test,r\n")
    assert [(r.split, r.group) for r in listed(raw).records] == [
        ("train", "p"),
        ("val", "q"),
        ("test", "r"),
        ("test", "r"),
    ]
    (raw / "split.csv").write_text("image,Site\nim 0,a\nim 1,a\nim 2,b\nim 3,b\n")
    assert [(r.split, r.group) for r in listed(raw, group_column="Site").records][1:3] == [
        ("train", "a"),
        ("train", "b"),
    ]
    (raw / "split.csv").write_text("image,split\nim 0,training\nim 1,val\nim 9,test\nim 1,test\n")
    problems = "\n".join(listed(raw).problems)
    assert "row 2: split 'training'; one of train, val, test" in problems
    assert "row 5: im 1 stands twice" in problems
    assert "lists im 9, which is not in images/" in problems
    assert "im 2.png: not listed" in problems
    (raw / "split.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="needs a column image"):
        listed(raw)
    for split in ("train", "test"):
        fake_folder(tmp_path / "parts" / split, count=1)
    archive = listed(tmp_path / "parts")
    assert [(r.image_id, r.split) for r in archive.records] == [("train_im_0", "train"), ("test_im_0", "test")]
    assert archive.problems == []
    for path in ("images/im 0.png", "masks/im 0.tif"):
        shutil.copy(tmp_path / "parts" / "train" / path, tmp_path / "parts" / "train" / path.replace(" ", "?"))
    assert "the same name as" in listed(tmp_path / "parts").problems[0]


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        listed(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder images/"):
        listed(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no folder masks/ or labels/"):
        listed(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        listed(tmp_path)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing mask": (lambda p: (p / "masks" / "im 0.tif").unlink(), "im 0.png: no partner in masks/"),
    "missing image": (lambda p: (p / "images" / "im 1.png").unlink(), "im 1.tif: no image of that name"),
    "same stem": (
        lambda p: save(p / "images" / "im 2.bmp", colours(20, 30)),
        "im 2.bmp and im 2.png have the same stem",
    ),
    "size": (lambda p: save(p / "masks" / "im 3.tif", np.zeros((9, 9), np.uint8)), "mask of 9 x 9, image of 30 x 20"),
    "unreadable": (lambda p: (p / "images" / "im 4.png").write_text("x"), "im 4.png: cannot be read"),
    "nan": (lambda p: np.save(p / "images" / "im 5.npy", np.full((20, 30), np.nan)), "im 5.npy: has NaN"),
}


def test_all_problems_of_an_archive_at_once(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path / "raw", count=7)
    (raw / "images" / "im 5.png").unlink()
    for spoil, _ in SPOILED.values():
        spoil(raw)
    options = PrepareOptions("folder", None, "rgb", 5, 0.2, test_fraction=0.2)
    with pytest.raises(DataError) as caught:
        prepare(listed(raw), tmp_path / "prepared", options, workers=2, quiet=True)
    lines = str(caught.value).splitlines()
    assert lines[0] == "data.raw: 6 problems"
    assert len(lines) == 7
    for _, message in SPOILED.values():
        assert sum(message in line for line in lines) == 1, message
    assert not any(path.name.startswith("prepared") for path in tmp_path.iterdir())


def test_splits_are_disjoint_in_groups_and_even_over_strata(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path / "raw", count=20)
    rows = [f"im {i},{'abcdefghij'[i // 2]}" for i in range(20)]
    (raw / "split.csv").write_text("image,group\n" + "\n".join(rows))
    options = PrepareOptions("folder", None, "grey", 5, 0.2, test_fraction=0.2)
    prepare(listed(raw), tmp_path / "p", options, workers=1, quiet=True)
    tables = {s: pd.read_csv(tmp_path / "p" / f"{s}.csv") for s in ("train", "val", "test")}
    groups = {s: {rows[int(i[3:])][-1] for i in table["image_id"]} for s, table in tables.items()}
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]
    assert {s: len(table) for s, table in tables.items()} == {"train": 14, "val": 2, "test": 4}
