"""Anybody's folder of images and masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.prepare import list_archive, prepare
from data.splits import cut_split
from tests.commands import REAL_DATA, ROOT, listed, section
from tests.pictures import colours, read, save
from utils.config import load_config
from utils.errors import DataError

MASK = np.zeros((20, 30), np.uint8)
MASK[2:8, 2:8], MASK[10:18, 10:20] = 1, 3


BINARY = (MASK > 0).astype(np.uint8) * 255


def fake_folder(raw: Path, masks: str = "masks", values: np.ndarray = BINARY, count: int = 4) -> Path:
    for i in range(count):
        save(raw / "images" / f"im {i}.png", colours(20, 30))
        save(raw / masks / f"im {i}.tif", values)
    return raw


def test_a_folder_of_images_and_masks(tmp_path: Path) -> None:
    archive = listed("folder", fake_folder(tmp_path))
    assert [(r.image_id, r.split) for r in archive.records] == [(f"im {i}", "train") for i in range(4)]
    sample = read(archive.records[0])
    np.testing.assert_array_equal(sample.mask, MASK > 0)
    assert sample.instances is None
    assert sample.classes is None


def test_what_mask_values_mean(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path / "masks", values=MASK)
    with pytest.raises(DataError, match=r"3 values, 0 to 3.*data\.instances: true, data\.foreground.*data\.classes"):
        read(listed("folder", raw).records[0])
    assert read(listed("folder", raw, foreground=(3,)).records[0]).mask.sum() == 80
    numbered = read(listed("folder", raw, instances=True).records[0])
    np.testing.assert_array_equal(numbered.instances, MASK)
    classes = read(listed("folder", raw, classes=(1, 3)).records[0])
    np.testing.assert_array_equal(classes.classes, MASK)
    labels = fake_folder(tmp_path / "labels", "labels", MASK)
    np.testing.assert_array_equal(read(listed("folder", labels).records[0]).instances, MASK)
    with pytest.raises(DataError, match="3 values"):
        read(listed("folder", labels, instances=False).records[0])


def test_rater_folders(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path, "masks_a")
    for i in range(4):
        save(raw / "masks_b" / f"im {i}.png", np.zeros((20, 30), np.uint8))
    archive = listed("folder", raw)
    sample = read(archive.records[0])
    assert [int(rater.sum()) for rater in sample.raters] == [116, 0]
    with pytest.raises(DataError, match=r"several raters and data\.classes"):
        listed("folder", raw, classes=(1, 3))
    (raw / "masks_b" / "im 2.png").unlink()
    assert listed("folder", raw).problems == [f"{raw / 'images' / 'im 2.png'}: no partner in masks_b/"]
    (raw / "masks").mkdir()
    with pytest.raises(DataError, match="which are the masks"):
        listed("folder", raw)


def test_splits_from_a_table_or_from_folders(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path / "table")
    (raw / "split.csv").write_text("image,split,group\nim 0.png,train,p\nim 1,val,q\nim 2,test,r\nim 3,test,r\n")
    assert [(r.split, r.group) for r in listed("folder", raw).records] == [
        ("train", "p"),
        ("val", "q"),
        ("test", "r"),
        ("test", "r"),
    ]
    (raw / "split.csv").write_text("image,Site\nim 0,a\nim 1,a\nim 2,b\nim 3,b\n")
    assert [(r.split, r.group) for r in listed("folder", raw, group_column="Site").records][1:3] == [
        ("train", "a"),
        ("train", "b"),
    ]
    (raw / "split.csv").write_text("image,split\nim 0,training\nim 1,val\nim 9,test\nim 1,test\n")
    problems = "\n".join(listed("folder", raw).problems)
    assert "row 2: split 'training'; one of train, val, test" in problems
    assert "row 5: im 1 is listed twice" in problems
    assert "lists im 9, which is not in images/" in problems
    assert "im 2.png: not listed" in problems
    (raw / "split.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="needs a column image"):
        listed("folder", raw)
    for split in ("train", "test"):
        fake_folder(tmp_path / "parts" / split, count=1)
    archive = listed("folder", tmp_path / "parts")
    assert [(r.image_id, r.split) for r in archive.records] == [("train_im 0", "train"), ("test_im 0", "test")]
    assert archive.problems == []


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        listed("folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder images/"):
        listed("folder", tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no folder masks/ or labels/"):
        listed("folder", tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        listed("folder", tmp_path)


Spoiled = dict[str, tuple[Callable[[Path], object], str]]
UNLISTED: Spoiled = {
    "missing mask": (lambda p: (p / "masks" / "im 0.tif").unlink(), "im 0.png: no partner in masks/"),
    "missing image": (lambda p: (p / "images" / "im 1.png").unlink(), "im 1.tif: no image of that name"),
    "same stem": (
        lambda p: save(p / "images" / "im 2.bmp", colours(20, 30)),
        "im 2.bmp and im 2.png have the same stem",
    ),
}
UNREADABLE: Spoiled = {
    "size": (lambda p: save(p / "masks" / "im 3.tif", np.zeros((9, 9), np.uint8)), "mask of 9 x 9, image of 30 x 20"),
    "unreadable": (lambda p: (p / "images" / "im 4.png").write_text("x"), "im 4.png: cannot be read"),
    "nan": (lambda p: np.save(p / "images" / "im 5.npy", np.full((20, 30), np.nan)), "im 5.npy: has NaN"),
}


@pytest.mark.slow
@pytest.mark.parametrize("spoiled", [UNLISTED, UNREADABLE], ids=["listing", "reading"])
def test_all_problems_of_an_archive_at_once(tmp_path: Path, spoiled: Spoiled) -> None:
    raw = fake_folder(tmp_path / "raw", count=7)
    (raw / "images" / "im 5.png").unlink()
    np.save(raw / "images" / "im 5.npy", colours(20, 30))
    for spoil, _ in spoiled.values():
        spoil(raw)
    with pytest.raises(DataError) as caught:
        prepare(section("folder", raw, tmp_path / "prepared", workers=2), quiet=True)
    lines = str(caught.value).splitlines()
    assert lines[0] == "data.raw: 3 problems"
    assert len(lines) == 4
    for _, message in spoiled.values():
        assert sum(message in line for line in lines) == 1, message
    assert not any("prepared" in path.name for path in tmp_path.iterdir())


def test_splits_are_disjoint_in_groups_and_even_over_strata(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path / "raw", count=20)
    rows = [f"im {i},{'abcdefghij'[i // 2]}" for i in range(20)]
    (raw / "split.csv").write_text("image,group\n" + "\n".join(rows))
    prepare(section("folder", raw, tmp_path / "p", validation_fraction=0.2, workers=1), quiet=True)
    tables = {s: pd.read_csv(tmp_path / "p" / f"{s}.csv") for s in ("train", "val", "test")}
    groups = {s: {rows[int(i[3:])][-1] for i in table["image_id"]} for s, table in tables.items()}
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]
    assert {s: len(table) for s, table in tables.items()} == {"train": 14, "val": 2, "test": 4}


def test_raters_and_their_groups_table(tmp_path: Path) -> None:
    """images/, mask-0/, mask-1/ and groups.csv: groups stay together, and are in the prepared tables."""
    raw = fake_folder(tmp_path / "raw", "mask-0", count=12)
    fake_folder(raw, "mask-1", np.zeros((20, 30), np.uint8), count=12)
    (raw / "groups.csv").write_text("image,group\n" + "".join(f"im {i},{i // 3}\n" for i in range(12)))
    prepare(section("folder", raw, tmp_path / "p", test_fraction=0.3, validation_fraction=0.4, workers=1), quiet=True)
    tables = {s: pd.read_csv(tmp_path / "p" / f"{s}.csv") for s in ("train", "val", "test")}
    groups = [set(table["group"]) for table in tables.values()]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 4
    assert all(group == int(i[3:]) // 3 for t in tables.values() for i, group in zip(t.image_id, t.group, strict=True))
    assert all(len(names.split(";")) == 2 for names in tables["train"]["raternames"])
    (raw / "groups.csv").write_text("image,group\n" + "".join(f"im {i},a\n" for i in range(11)))
    assert listed("folder", raw).problems == [f"{raw / 'images' / 'im 11.png'}: not listed in groups.csv"]
    (raw / "split.csv").write_text("image,split\nim 0,train\n")
    with pytest.raises(DataError, match=r"split\.csv and groups\.csv both"):
        listed("folder", raw)


@pytest.mark.skipif(not (REAL_DATA / "cfos").is_dir(), reason="the cFOS images are not on this machine")
def test_real_cfos() -> None:
    config = load_config(ROOT / "cfg" / "cfos.yaml", [f"data.raw={REAL_DATA / 'cfos'}"])
    archive = list_archive(config.data)
    assert archive.problems == []
    records = cut_split(archive.records, "test", config.data.test_share, config.data.split_seed)
    records = cut_split(records, "val", config.data.validation_fraction, config.data.split_seed)
    groups = {s: {r.group for r in records if r.split == s} for s in ("train", "val", "test")}
    assert len(records) == 25
    assert all(groups.values())
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 9
    sample = read(records[0])
    assert sample.image.shape == (1024, 1024)
    assert len(sample.raters) == 5
    assert all(rater.any() for rater in sample.raters)


def test_a_group_is_not_torn(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path)
    (raw / "split.csv").write_text("image,split,group\nim 0,,p\nim 1,test,p\nim 2,,q\nim 3,val,r\n")
    archive = listed("folder", raw)
    assert archive.problems == []
    assert [r.split for r in archive.records] == ["test", "test", "train", "val"]
    (raw / "split.csv").write_text("image,split,group\nim 0,train,p\nim 1,test,p\nim 2,,q\nim 3,val,r\n")
    assert "group p is in train and in test" in "\n".join(listed("folder", raw).problems)


def test_the_same_picture_in_two_splits_is_told(tmp_path: Path) -> None:
    raw = fake_folder(tmp_path / "raw")
    save(raw / "images" / "im 3.png", np.random.default_rng(3).integers(0, 255, (20, 30), dtype=np.uint8))
    (raw / "split.csv").write_text("image,split\nim 0,train\nim 1,val\nim 2,train\nim 3,test\n")
    for k in (0, 2):
        save(raw / "images" / f"im {k}.png", np.random.default_rng(k).integers(0, 255, (20, 30), dtype=np.uint8))
    shutil.copy(raw / "images" / "im 0.png", raw / "images" / "im 1.png")
    data = section(source="folder", raw=raw, root=tmp_path / "p", truncation=4, patch=(16, 16), workers=1)
    assert prepare(data, quiet=True).warnings == ["the same picture in two splits: train/im_0 = val/im_1"]


def test_no_folder_of_a_split_is_left_out(tmp_path: Path) -> None:
    for split in ("train", "validation", "unused"):
        fake_folder(tmp_path / split, count=1)
    (problem,) = listed("folder", tmp_path).problems
    assert problem.startswith(f"{tmp_path / 'validation'}: is none of train, val, test")


def test_a_rater_is_one_person(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        fake_folder(tmp_path / "many", f"mask-{number}", values=BINARY * (number == 2))
    sample = read(listed("folder", tmp_path / "many").records[0])
    assert [rater.any() for rater in sample.raters] == [False, True, False]
    for split, names in (("train", "ab"), ("test", "bc")):
        for name in names:
            fake_folder(tmp_path / "split" / split, f"masks_{name}", count=1)
    (problem,) = listed("folder", tmp_path / "split").problems
    assert "masks_a/masks_b and masks_b/masks_c" in problem


@pytest.mark.parametrize("keys", [{"foreground": (3,)}, {"classes": (1, 3)}])
def test_a_jpeg_has_no_values_to_ask_for(tmp_path: Path, keys: dict[str, tuple[int, ...]]) -> None:
    raw = fake_folder(tmp_path)
    for path in (raw / "masks").iterdir():
        path.unlink()
        save(path.with_suffix(".jpg"), BINARY)
    assert read(listed("folder", raw).records[0]).mask.any()
    with pytest.raises(DataError, match="a JPEG cannot keep the values"):
        read(listed("folder", raw, **keys).records[0])
