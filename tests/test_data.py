"""Sources, preparation and loading."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data import preparation
from data.augment import random_symmetry
from data.batches import Batches
from data.dataset import hold_out, load_split
from data.errors import DataError
from data.preparation import PrepareOptions, cut_validation, prepare
from data.sdf import signed_distance
from data.sources import glas
from data.sources.record import Record, Sample
from tests.conftest import ROOT, Workspace

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
    records = glas.records(fake_glas(tmp_path / "raw", suffix))
    assert [sum(r.split == s for r in records) for s in ("train", "test")] == [85, 80]
    first = next(r for r in records if r.image_id == "train_2")
    assert (first.group, first.attributes["grade"], first.attributes["part"]) == ("2", "malignant", "train")
    sample = first.read()
    assert sample.instances is not None
    assert set(np.unique(sample.instances)) == {0, 1, 2}
    np.testing.assert_array_equal(sample.mask, sample.instances > 0)


def test_validation_is_cut_by_patient(tmp_path: Path) -> None:
    records = cut_validation(glas.records(fake_glas(tmp_path / "raw")), 0.2, seed=0)
    patients = {split: {r.group for r in records if r.split == split} for split in ("train", "val", "test")}
    assert not patients["train"] & patients["val"]
    assert 8 <= sum(r.split == "val" for r in records) <= 17
    assert sum(r.split == "test" for r in records) == 80
    fresh = glas.records(tmp_path / "raw")
    splits = [[r.split for r in cut_validation(fresh, 0.2, seed)] for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1] == [r.split for r in records]
    assert any(split != splits[0] for split in splits[2:])


def test_partial_glas_names_expected_and_found(tmp_path: Path) -> None:
    raw = fake_glas(tmp_path / "raw", counts={"train": 5, "testA": 2, "testB": 0})
    with pytest.raises(
        DataError, match=r"expected 85 train, 60 testA, 20 testB; found 5 train, 2 testA, 0 testB.*allow_partial"
    ):
        glas.records(raw)
    assert len(glas.records(raw, allow_partial=True)) == 7


def test_broken_glas_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        glas.records(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found 0 train"):
        glas.records(tmp_path / "empty", allow_partial=True)
    raw = fake_glas(tmp_path / "raw", counts={"train": 3, "testA": 1, "testB": 0})
    (raw / "train_1_anno.bmp").unlink()
    (raw / "train_3.bmp").unlink()
    with pytest.raises(DataError, match=r"train_1 \(no annotation\), train_3 \(no image\)"):
        glas.records(raw, allow_partial=True)
    raw = fake_glas(tmp_path / "twice", counts={"train": 3, "testA": 1, "testB": 0})
    shutil.copy(raw / "train_1.bmp", raw / "train_1.png")
    with pytest.raises(DataError, match="twice"):
        glas.records(raw, allow_partial=True)
    raw = fake_glas(tmp_path / "ungraded", counts={"train": 3, "testA": 1, "testB": 0})
    (raw / "Grade.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="needs the columns name, patient"):
        glas.records(raw, allow_partial=True)
    (raw / "Grade.csv").unlink()
    assert {r.group for r in glas.records(raw, allow_partial=True)} == {"train_1", "train_2", "train_3", "testA_1"}


@pytest.mark.skipif(not REAL_GLAS.is_dir(), reason="the GlaS archive is not on this machine")
def test_real_glas(tmp_path: Path) -> None:
    records = glas.records(REAL_GLAS, allow_partial=True)
    assert len(records) == 145
    counts, _ = prepare(records, tmp_path / "p", PrepareOptions("glas", (128, 128), "grey", 15, 0.15), quiet=True)
    assert counts["test"] == 60
    assert counts["train"] + counts["val"] == 85
    patches = load_split(tmp_path / "p", "test", rgb=False, truncation=15)
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
        return prepare(records, root, options, workers=1, quiet=True)[1]

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
    for folder in preparation.FOLDERS.values():
        (tmp_path / folder).mkdir()
    row = preparation.write_patch(record, tmp_path, PrepareOptions("s", None, "rgb", 3, 0))
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


# Loading: what can be wrong in a folder of patches.


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
    return [patch.sdf for patch in load_split(folder, "train", rgb=False, truncation=3)]


def test_published_layout_and_bare_masks_load(folder: Path) -> None:
    expected = load(folder)
    (folder / "train.csv").write_text("filename,maskname\n/i0.png,/m0.png\ni1.png,m1.png\n")
    np.testing.assert_array_equal(load(folder), expected)
    patches = load_split(folder, "train", rgb=True, truncation=3)
    assert [patch.key for patch in patches] == ["i0", "i1"]
    assert patches[0].image.shape == (8, 8, 3)


def test_several_patches_of_one_image_get_their_own_keys(folder: Path) -> None:
    (folder / "train.csv").write_text(
        "filename,maskname,image_id,top,left\ni0.png,m0.png,a b/c,0,0\ni1.png,m1.png,a b/c,0,8\n"
    )
    patches = load_split(folder, "train", rgb=False, truncation=3)
    assert [patch.key for patch in patches] == ["a_b_c_0_0", "a_b_c_0_8"]
    assert {patch.image_id for patch in patches} == {"a b/c"}


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
    }
    actions[kind]()


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
]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_name_file_and_row(folder: Path, kind: str) -> None:
    spoil(folder, kind)
    with pytest.raises(DataError, match=r"train\.csv row 3") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


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
    train, val = hold_out(load_split(folder, "train", rgb=False, truncation=3), 0.3, seed=0)
    assert (len(train), len(val)) == (14, 6)
    assert not {p.image_id for p in train} & {p.image_id for p in val}


# Batches and augmentation.


def test_symmetries_keep_an_sdf_an_sdf() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = np.zeros((12, 12), bool)
    mask[1:5, 2:11] = True
    mask[8, 3] = True
    sdf = torch.from_numpy(signed_distance(mask, 5))[None, None].repeat(64, 1, 1, 1)
    image = torch.from_numpy(mask)[None, None].repeat(64, 1, 1, 1)
    image, sdf = random_symmetry(image, sdf, generator, flips=True, rotations=True)
    for i in range(64):
        np.testing.assert_allclose(sdf[i, 0].numpy(), signed_distance(image[i, 0].numpy(), 5), atol=1e-6)
    assert len({image[i].numpy().tobytes() for i in range(64)}) == 8
    same, _ = random_symmetry(image, sdf, generator, flips=False, rotations=False)
    assert torch.equal(same, image)


def test_every_image_once_per_epoch_and_resumable() -> None:
    def make() -> Batches:
        images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).repeat(1, 1, 4, 4)
        return Batches(images, torch.zeros(7, 1, 4, 4), 3, 5, torch.device("cpu"), flips=True, rotations=True)

    batches = make()
    seen = [i for _ in range(14) for i in batches.next()[2]]
    assert all(sorted(seen[e : e + 7]) == list(range(7)) for e in range(0, 42, 7))
    assert seen[:7] != seen[7:14]
    first, second = make(), make()
    for _ in range(4):
        first.next()
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        assert first.next()[2] == second.next()[2]
