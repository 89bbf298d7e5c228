"""Loading prepared folders: what can be wrong with them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.dataset import Split, hold_out, load_split, rater_counts, sdf_array
from data.images import read_rows
from data.rows import Patch
from data.scenes import scenes_of
from data.sdf import signed_distance
from tests.commands import Workspace, section
from utils.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two patches as somebody else might have prepared them."""
    for i in range(2):
        mask = np.zeros((8, 8), bool)
        mask[2:5, 2 + i : 6] = True
        Image.fromarray(np.full((8, 8), 100 + i, np.uint8)).save(tmp_path / f"i{i}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"m{i}.png")
        np.save(tmp_path / f"s{i}.npy", signed_distance(mask, 3))
    (tmp_path / "train.csv").write_text("filename,maskname,maskdtname\ni0.png,m0.png,s0.npy\ni1.png,m1.png,s1.npy\n")
    return tmp_path


def load(folder: Path) -> list[np.ndarray]:
    return [patch.sdf for patch in load_split(section(root=folder, truncation=3), "train")]


def test_published_layout_and_bare_masks_load(folder: Path) -> None:
    expected = load(folder)
    (folder / "train.csv").write_text("filename,maskname\n/i0.png,/m0.png\ni1.png,m1.png\n")
    np.testing.assert_array_equal(load(folder), expected)
    patches = load_split(section(root=folder, truncation=3, color="rgb"), "train")
    assert [patch.key for patch in patches] == ["i0", "i1"]
    assert patches[0].image.shape == (8, 8, 3)


def test_several_patches_of_one_image_get_their_own_keys(folder: Path) -> None:
    (folder / "train.csv").write_text(
        "filename,maskname,image_id,top,left\ni0.png,m0.png,a b/c,0,0\ni1.png,m1.png,a b/c,0,8\n"
    )
    patches = load_split(section(root=folder, truncation=3), "train")
    assert [patch.key for patch in patches] == ["a_b_c_0_0", "a_b_c_0_8"]
    assert {patch.image_id for patch in patches} == {"a b/c"}


@pytest.mark.parametrize("ids", [["é", "ü"], ["x y", "x_y"], ["..", "."], ["図", "像"], ["a", "A"]])
def test_images_whose_ids_look_alike_are_two(folder: Path, ids: list[str]) -> None:
    rows = [f"i{i}.png,m{i}.png,{name},0,0" for i, name in enumerate(ids)]
    (folder / "train.csv").write_text("\n".join(["filename,maskname,image_id,top,left", *rows]))
    scenes = scenes_of(load_split(section(root=folder, truncation=3), "train"))
    assert len({scene.key.casefold() for scene in scenes}) == 2
    assert [int(scene.image[0, 0]) for scene in scenes] == [100, 101]


def test_keys_do_not_meet_by_their_endings(folder: Path) -> None:
    rows = "i0.png,m0.png,a\ni1.png,m1.png,a\ni0.png,m0.png,a_row2\n"
    (folder / "train.csv").write_text("filename,maskname,image_id\n" + rows)
    keys = [patch.key for patch in load_split(section(root=folder, truncation=3), "train")]
    assert len(set(keys)) == 3
    assert keys[1] == "a_row3"


def test_positions_far_apart_are_no_whole_image(folder: Path) -> None:
    rows = "i0.png,m0.png,a,0,0\ni1.png,m1.png,a,9999999,9999999\n"
    (folder / "train.csv").write_text("filename,maskname,image_id,top,left\n" + rows)
    assert len(scenes_of(load_split(section(root=folder, truncation=3), "train"))) == 2


def test_a_folder_replaced_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def replaced(path: Path) -> Iterator[dict[str, str]]:
        """The table of the old folder, then the files of a new one."""
        rows = list(read_rows(path))
        if not folder.with_name("old").exists():
            folder.rename(folder.with_name("old"))
            shutil.copytree(folder.with_name("old"), folder)
        return iter(rows)

    monkeypatch.setattr("data.dataset.read_rows", replaced)
    with pytest.raises(DataError, match="prepared anew while it was read"):
        load(folder)


def _link_out(folder: Path) -> Path:
    link = folder / "link"
    link.symlink_to("/etc/hostname")
    return link


def spoil(folder: Path, kind: str) -> None:
    table = folder / "train.csv"
    good = np.load(folder / "s1.npy")
    image = folder / "i1.png"
    actions: dict[str, Callable[[], object]] = {
        "missing": lambda: (folder / "m1.png").unlink(),
        "sixteen_bit": lambda: Image.fromarray(np.full((8, 8), 900, np.uint16)).save(image),
        "grey_mask": lambda: Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "m1.png"),
        "unreadable": lambda: (folder / "i1.png").write_text("no picture"),
        "truncated_image": lambda: (folder / "i1.png").write_bytes((folder / "i1.png").read_bytes()[:40]),
        "truncated_array": lambda: (folder / "s1.npy").write_bytes((folder / "s1.npy").read_bytes()[:150]),
        "wrong_size": lambda: Image.new("L", (9, 8)).save(folder / "m1.png"),
        "array_of_wrong_size": lambda: np.save(folder / "s1.npy", good[:4]),
        "not_finite": lambda: np.save(folder / "s1.npy", np.where(good < 0, np.nan, good)),
        "out_of_range": lambda: np.save(folder / "s1.npy", good * 3),
        "pickled": lambda: np.save(folder / "s1.npy", np.array([{}], dtype=object), allow_pickle=True),
        "integers": lambda: np.save(folder / "s1.npy", good.astype(np.int32)),
        "parent": lambda: table.write_text(table.read_text().replace("i1.png", "../i1.png")),
        "absolute": lambda: table.write_text(table.read_text().replace("i1.png", "/etc/hostname")),
        "link": lambda: os.replace(_link_out(folder), image),
        "blank": lambda: table.write_text(table.read_text().replace("m1.png", "")),
        "nul": lambda: table.write_text(table.read_text().replace("i1.png", "i\0.png")),
        "long": lambda: table.write_text(table.read_text().replace("i1.png", "i" * 5000)),
        "superscript": lambda: positions(table, "²"),
        "digits": lambda: positions(table, "1" * 5000),
        "negative": lambda: positions(table, "-1"),
    }
    actions[kind]()


def positions(table: Path, top: str) -> None:
    first, second = table.read_text().splitlines()[1:]
    table.write_text(f"filename,maskname,maskdtname,top,left\n{first},0,0\n{second},{top},0\n")


KINDS = [
    "missing",
    "sixteen_bit",
    "grey_mask",
    "unreadable",
    "truncated_image",
    "truncated_array",
    "wrong_size",
    "array_of_wrong_size",
    "not_finite",
    "out_of_range",
    "pickled",
    "integers",
    "parent",
    "absolute",
    "link",
    "blank",
    "nul",
    "long",
    "superscript",
    "digits",
    "negative",
]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_name_file_and_row(folder: Path, kind: str) -> None:
    spoil(folder, kind)
    with pytest.raises(DataError, match=r"train\.csv row 3") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_bad_tables(folder: Path) -> None:
    (folder / "train.csv").write_text("filename,mask\ni0.png,m0.png\n")
    with pytest.raises(DataError, match="no column maskname"):
        load(folder)
    (folder / "train.csv").write_text("filename,maskname\n")
    with pytest.raises(DataError, match="lists no images"):
        load(folder)
    (folder / "train.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.csv"):
        load(folder)
    (folder / "train.csv").unlink()
    with pytest.raises(DataError, match=r"data\.prepare"):
        load(folder)
    with pytest.raises(DataError, match=r"data\.root"):
        load(folder / "nowhere")


def test_hold_out_is_by_image(folder: Path) -> None:
    rows = "".join(f"i0.png,m0.png,image{i // 2}\n" for i in range(20))
    (folder / "train.csv").write_text("filename,maskname,image_id\n" + rows)
    train, val = hold_out(load_split(section(root=folder, truncation=3), "train"), 0.3, seed=0)
    assert (len(train), len(val)) == (14, 6)
    assert not {p.image_id for p in train} & {p.image_id for p in val}


@pytest.mark.parametrize("column", ["patient", "group"])
def test_hold_out_keeps_patients_and_groups_together(folder: Path, column: str) -> None:
    rows = "".join(f"i0.png,m0.png,image{i},{'abcde'[i // 4]}\n" for i in range(20))
    (folder / "train.csv").write_text(f"filename,maskname,image_id,{column}\n{rows}")
    train, val = hold_out(load_split(section(root=folder, truncation=3), "train"), 0.4, seed=0)
    assert (len(train), len(val)) == (12, 8)
    assert not {p.owner for p in train} & {p.owner for p in val}


def test_an_unequal_number_of_raters(folder: Path) -> None:
    (folder / "train.csv").write_text("filename,maskname,raternames\ni0.png,m0.png,m0.png;m1.png\ni1.png,m1.png,\n")
    patches = load_split(section(root=folder, truncation=3), "train")
    assert rater_counts(patches).tolist() == [2, 1]
    sdfs = sdf_array(patches)
    assert sdfs.shape == (2, 2, 1, 8, 8)
    np.testing.assert_array_equal(sdfs[1, 0], patches[1].sdf[0])
    assert (sdfs[1, 1] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("divisor", [1, 5])
def test_the_published_layout_trains_as_it_is(workspace: Workspace, divisor: int) -> None:
    """filename, maskname, maskdtname with leading slashes, SDFs divided by 5 or not, no val.csv, no dataset.json."""
    assert workspace("prepare").code == 0
    root = workspace.path / "prepared"
    for split in ("train", "test"):
        table = pd.read_csv(root / f"{split}.csv")[["filename", "maskname", "maskdtname"]]
        for name in table["maskdtname"]:
            np.save(root / name, np.load(root / name) / np.float32(divisor))
        ("/" + table).to_csv(root / f"{split}.csv")
    (root / "val.csv").unlink()
    (root / "dataset.json").unlink()
    options = ["--set", "data.source=prepared", "--set", "data.validation_fraction=0.25"]
    for command in ("main", "sample"):
        assert workspace(command, *options).code == 0
    sdf = np.concatenate([p.sdf for p in load_split(section(root=root, truncation=6), "train")])
    assert (sdf.min(), sdf.max()) == (-1, 1)


def test_an_sdf_with_the_wrong_sign_is_refused(workspace: Workspace) -> None:
    assert workspace("prepare").code == 0
    path = next((workspace.path / "prepared" / "Training_patches").glob("*_sdf.npy"))
    np.save(path, -np.load(path))
    assert "an SDF is negative inside" in workspace.fails("main")


def same_patch(one: Patch, other: Patch) -> None:
    names = ("key", "image_id", "filename", "corner", "group")
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]
    for name in ("image", "sdf", "labels", "instances"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.raters, other.raters)


@pytest.mark.parametrize("divisor", [1, 5])
def test_a_split_that_is_read_when_asked_is_the_split_in_memory(folder: Path, divisor: int) -> None:
    """Also where its SDFs are brought to [-1, 1]; what it keeps has shapes only."""
    for name in ("s0.npy", "s1.npy"):
        np.save(folder / name, np.load(folder / name) / np.float32(divisor))
    (folder / "train.csv").write_text(
        "filename,maskname,maskdtname,image_id,top,left,instancename\n"
        "i0.png,m0.png,s0.npy,a,0,0,m0.png\ni1.png,m1.png,s1.npy,a,0,8,m0.png\n"
    )
    data = section(root=folder, truncation=3)
    split = Split(data, "train", instances=True)
    for lazy, held in zip(split, load_split(data, "train", instances=True), strict=True):
        same_patch(lazy, held)
    assert all(set(x.strides) == {0} for patch in split.outlines for x in (patch.image, patch.sdf, patch.labels))
    (scene,) = scenes_of(split)
    np.testing.assert_array_equal(scene.image, np.repeat([[100] * 8 + [101] * 8], 8, axis=0))


def test_a_split_of_a_folder_that_is_replaced_or_damaged_later(folder: Path) -> None:
    split = Split(section(root=folder, truncation=3), "train")
    (folder / "i1.png").write_text("no picture")
    with pytest.raises(DataError, match=r"train\.csv row 3"):
        split[1]
    folder.rename(folder.with_name(f"{folder.name}_old"))
    shutil.copytree(folder.with_name(f"{folder.name}_old"), folder)
    for i in range(2):
        with pytest.raises(DataError, match="prepared anew while it was read"):
            split[i]
