"""MoNuSeg, LIDC, DSB 2018 and anybody's folder: what is read, and every problem of an archive at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.preparation import prepare
from data.processing import PrepareOptions
from data.sources import dsb2018, folder, lidc, monuseg
from data.sources.folder import FolderOptions
from data.sources.record import Archive, Record, Sample
from tests.conftest import ROOT
from utils.errors import DataError

REAL = ROOT.parent / "shared" / "data"
RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def read(record: Record) -> Sample:
    sample = record.read()
    assert sample is not None
    return sample


def colours(height: int = 40, width: int = 50) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def region(points: list[tuple[float, float]], negative: str = "0", number: int = 1) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
    return f'<Region Id="{number}" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'


def box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def aperio(*regions: str) -> str:
    inner = "".join(regions)
    return (
        f'<Annotations MicronsPerPixel="0.25"><Annotation Id="1"><Regions>{inner}</Regions></Annotation></Annotations>'
    )


# MoNuSeg


def fake_monuseg(raw: Path) -> Path:
    """Two training tiles, one of them with a binary mask only, and a test tile with its XML beside it."""
    train = raw / "MoNuSeg 2018 Training Data"
    save(train / "Tissue Images" / "TCGA-A7-A13E-01Z-00-DX1.tif", colours())
    save(train / "Tissue Images" / "TCGA-B0-5698-01Z-00-DX1.tif", colours())
    (train / "Annotations").mkdir()
    xml = aperio(region(box(4.6, 3.6, 10.4, 9.4)), region(box(20, 20, 30, 30)))
    (train / "Annotations" / "TCGA-A7-A13E-01Z-00-DX1.xml").write_text(xml)
    mask = np.zeros((40, 50), np.uint8)
    mask[5:9, 5:9] = 255
    save(train / "Binary Masks" / "TCGA-B0-5698-01Z-00-DX1.png", mask)
    save(raw / "MoNuSegTestData" / "TCGA-2Z-A9J9-01A-01-TS1.tif", colours())
    (raw / "MoNuSegTestData" / "TCGA-2Z-A9J9-01A-01-TS1.xml").write_text(xml)
    return raw


def test_monuseg_archives(tmp_path: Path) -> None:
    archive = monuseg.records(fake_monuseg(tmp_path), allow_partial=True)
    assert archive.problems == []
    assert [(r.image_id[:12], r.split, r.group) for r in archive.records] == [
        ("TCGA-A7-A13E", "train", "TCGA-A7-A13E"),
        ("TCGA-B0-5698", "train", "TCGA-B0-5698"),
        ("TCGA-2Z-A9J9", "test", "TCGA-2Z-A9J9"),
    ]
    first, second, third = (read(record) for record in archive.records)
    assert first.instances is not None
    assert third.instances is not None
    # Pixel centres inside 4.6 .. 10.4 are columns 5 .. 10, inside 3.6 .. 9.4 rows 4 .. 9.
    expected = np.zeros((40, 50), np.uint16)
    expected[4:10, 5:11] = 1
    np.testing.assert_array_equal(np.where(first.instances == 1, 1, 0), expected)
    np.testing.assert_array_equal(first.instances, third.instances)
    assert second.instances is None
    assert second.mask.sum() == 16
    assert "no XML: Binary Masks/TCGA-B0-5698-01Z-00-DX1.png is used" in second.notes[0]
    (problem,) = monuseg.records(tmp_path).problems
    assert "expected 30 or 37 training and 14 test tiles; found 2 and 1" in problem


def test_overlapping_regions_are_resolved_and_counted() -> None:
    regions = [box(0, 0, 9, 9), box(5, 5, 14, 14), box(6, 6, 8, 8), box(20.2, 20.2, 20.8, 20.8)]
    listed = [monuseg.Region(str(i), np.array([(y, x) for x, y in r]), False) for i, r in enumerate(regions)]
    hole = monuseg.Region("h", np.array([(y, x) for x, y in box(1, 1, 2, 2)]), True)
    labels, notes = monuseg.fill_regions([*listed, hole], (30, 30), "a.xml")
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert (labels == 3).sum() == 9  # the smallest is whole
    assert labels[1, 1] == labels[2, 2] == 0
    assert labels[0, 0] == 1
    assert notes[0] == "3 regions overlap in 25 pixels; the smallest keeps them"
    assert "1 regions hold no pixel centre" in notes[1]


def test_a_polygon_that_hangs_over_the_border_is_cut() -> None:
    over = monuseg.Region("1", np.array([(-5.0, -5.0), (-5.0, 3.0), (3.0, 3.0), (3.0, -5.0)]), False)
    labels, _ = monuseg.fill_regions([over], (10, 10), "a.xml")
    assert (labels > 0).sum() == 16


BOMB = ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]>'
        "<Annotations>&c;</Annotations>")  # fmt: skip
EXTERNAL = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><Annotations>&x;</Annotations>'
BAD_XML = {
    "no regions": (aperio(), "no regions"),
    "cut off": (aperio(region(box(1, 1, 5, 5)))[:120], "not complete XML"),
    "empty": ("", "not complete XML"),
    "outside": (aperio(region(box(100, 100, 120, 120), number=7)), "region 7 outside the picture of 50 x 40"),
    "bomb": (BOMB, "refused"),
    "external entity": (EXTERNAL, "refused"),
    "no number": (aperio(region([("a", 1), (2, 2), (3, 1)])), "vertex without numbers"),  # type: ignore[list-item]
    "not finite": (aperio(region([(float("nan"), 1), (2, 2), (3, 1)])), "not finite"),
}


@pytest.mark.parametrize("kind", BAD_XML)
def test_bad_annotations(tmp_path: Path, kind: str) -> None:
    text, message = BAD_XML[kind]
    raw = fake_monuseg(tmp_path)
    path = raw / "MoNuSegTestData" / "TCGA-2Z-A9J9-01A-01-TS1.xml"
    path.write_text(text)
    record = monuseg.records(raw, allow_partial=True).records[-1]
    with pytest.raises(DataError, match=message) as caught:
        record.read()
    assert path.name in str(caught.value)


def test_monuseg_without_partners_and_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        monuseg.records(tmp_path / "nowhere")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file; unpack it"):
        monuseg.records(tmp_path / "a.zip")
    (tmp_path / "wrong").mkdir()
    with pytest.raises(DataError, match="neither a folder 'Tissue Images' nor"):
        monuseg.records(tmp_path / "wrong")
    raw = fake_monuseg(tmp_path / "raw")
    train = raw / "MoNuSeg 2018 Training Data"
    (train / "Binary Masks" / "TCGA-B0-5698-01Z-00-DX1.png").unlink()
    (train / "Annotations" / "lost.xml").write_text(aperio(region(box(1, 1, 5, 5))))
    shutil.copy(
        train / "Tissue Images" / "TCGA-A7-A13E-01Z-00-DX1.tif", train / "Tissue Images" / "TCGA-A7-A13E-01Z-00-DX1.png"
    )
    problems = "\n".join(monuseg.records(raw, allow_partial=True).problems)
    assert "lost.xml: no image of that name" in problems
    assert "TCGA-B0-5698-01Z-00-DX1.tif: no annotation" in problems
    assert "are the same image twice" in problems


@pytest.mark.skipif(not (REAL / "monuseg").is_dir(), reason="the MoNuSeg archive is not on this machine")
def test_real_monuseg_masks_are_those_made_from_the_xml() -> None:
    archive = monuseg.records(REAL / "monuseg", allow_partial=True)
    assert (len(archive.records), archive.problems) == (4, [])
    for record in archive.records:
        sample = read(record)
        masks = REAL / "monuseg" / "Training" / "Binary Masks" / f"{record.image_id}.png"
        expected = np.asarray(Image.open(masks)) > 0
        assert (sample.mask != expected).mean() < 0.003
        assert sample.instances is not None
        assert sample.instances.max() > 250


# LIDC


def fake_lidc(raw: Path) -> Path:
    """Two patients of two slices; the second slice of the second patient was left empty by all raters."""
    rows = []
    for number in (1, 2):
        bits = np.zeros((256, 128), np.uint8)
        bits[10:20, 10:20] = 0b1011
        bits[138:148, 30:40] = 0b0001 if number == 1 else 0
        save(raw / "images" / f"LIDC-IDRI-000{number}.png", RNG.integers(0, 256, (256, 128), dtype=np.uint8))
        save(raw / "masks" / f"LIDC-IDRI-000{number}.png", bits)
        rows += [f"LIDC-IDRI-000{number},nodule-0,slice-{row},{row}" for row in (0, 1)]
    (raw / "index.csv").write_text("\n".join(["patient,nodule,slice,row", *rows]) + "\n")
    return raw


def test_packed_lidc(tmp_path: Path) -> None:
    archive = lidc.records(fake_lidc(tmp_path))
    assert archive.problems == []
    assert [r.group for r in archive.records] == ["LIDC-IDRI-0001"] * 2 + ["LIDC-IDRI-0002"] * 2
    samples = [record.read() for record in archive.records]
    assert samples[3] is None
    assert samples[0] is not None
    assert samples[1] is not None
    assert [int(rater.sum()) for rater in samples[0].raters] == [100, 100, 0, 100]
    assert samples[0].mask.sum() == 100
    assert [int(rater.sum()) for rater in samples[1].raters] == [100, 0, 0, 0]
    assert not samples[1].mask.any()  # one of four is no majority


def as_plain(raw: Path, target: Path) -> Path:
    for record in lidc.records(raw).records:
        pixels = record.read.args[0], record.read.args[2]  # type: ignore[attr-defined]
        window = slice(128 * pixels[1], 128 * pixels[1] + 128)
        patient, nodule, name = record.image_id.split("_")
        place = target / patient / nodule
        save(place / "images" / f"{name}.png", np.asarray(Image.open(raw / "images" / f"{patient}.png"))[window])
        bits = np.asarray(Image.open(raw / "masks" / f"{patient}.png"))[window]
        for k in range(4):
            save(place / f"mask-{k}" / f"{name}.png", ((bits >> k & 1) * 255).astype(np.uint8))
    return target


def test_plain_lidc_is_the_same(tmp_path: Path) -> None:
    raw = fake_lidc(tmp_path / "packed")
    packed, plain = lidc.records(raw), lidc.records(as_plain(raw, tmp_path / "plain"))
    assert plain.problems == []
    assert sorted(r.group for r in plain.records) == sorted(r.group for r in packed.records)
    for one, two in zip(packed.records, plain.records, strict=True):
        a, b = one.read(), two.read()
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.raters, b.raters)


def test_lidc_problems(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither index\.csv nor folders"):
        lidc.records(tmp_path / "empty")
    raw = fake_lidc(tmp_path / "raw")
    plain = as_plain(raw, tmp_path / "plain")
    (raw / "masks" / "LIDC-IDRI-0002.png").unlink()
    table = (raw / "index.csv").read_text()
    (raw / "index.csv").write_text(table + "LIDC-IDRI-0001,nodule-0,slice-0,0\nLIDC-IDRI-0001,nodule-9,slice-0,x\n")
    problems = "\n".join(lidc.records(raw).problems)
    assert "row 6: LIDC-IDRI-0001_nodule-0_slice-0 stands twice" in problems
    assert "row 7: row 'x' is not a number" in problems
    assert "LIDC-IDRI-0002.png: no such file" in problems
    (raw / "index.csv").write_text("LIDC-IDRI-0001,nodule-0,slice-0,5\n".join(["patient,nodule,slice,row\n", ""]))
    with pytest.raises(DataError, match="slice 5 ends at 768"):
        lidc.records(raw).records[0].read()
    (raw / "index.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column nodule, patient, row, slice"):
        lidc.records(raw)
    (plain / "LIDC-IDRI-0001" / "nodule-0" / "mask-2" / "slice-0.png").unlink()
    shutil.rmtree(plain / "LIDC-IDRI-0002" / "nodule-0" / "mask-3")
    problems = "\n".join(lidc.records(plain).problems)
    assert "slice-0.png: no mask" in problems
    assert "no folder mask-3 beside images" in problems


# DSB 2018


def test_both_forms_of_dsb(tmp_path: Path) -> None:
    packed, official = tmp_path / "packed", tmp_path / "stage1_train"
    labels = np.zeros((20, 30), np.uint16)
    labels[2:8, 2:8], labels[10:18, 10:20] = 1, 2
    for name in ("aa", "bb"):
        image = (
            colours(20, 30) if name == "aa" else np.repeat(RNG.integers(0, 9, (20, 30, 1), dtype=np.uint8), 3, axis=2)
        )
        save(packed / "images" / f"{name}.png", image)
        save(packed / "labels" / f"{name}.png", labels)
        save(official / name / "images" / f"{name}.png", np.dstack([image, np.full((20, 30), 255, np.uint8)]))
        for k in (1, 2):
            mask = labels == k
            mask[7, 7] = True  # both claim this one; the smaller keeps it
            save(official / name / "masks" / f"{k}.png", mask.astype(np.uint8) * 255)
    (packed / "index.csv").write_text("id,modality\naa,stained_colour\nbb,fluorescence\n")
    one, two = dsb2018.records(packed), dsb2018.records(tmp_path)
    assert one.problems == two.problems == []
    assert [r.stratum for r in one.records] == [r.stratum for r in two.records] == ["stained_colour", "fluorescence"]
    for a, b in zip(one.records, two.records, strict=True):
        first, second = read(a), read(b)
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.instances, second.instances)
        assert second.notes == ("nuclei overlap in 1 pixels; the smaller keeps them",)
    (packed / "labels" / "bb.png").unlink()
    (official / "aa" / "images" / "aa.png").unlink()
    shutil.copy(official / "bb" / "masks" / "1.png", official / "bb" / "images" / "cc.png")
    assert "bb.png: no labels" in dsb2018.records(packed).problems[0]
    problems = "\n".join(dsb2018.records(tmp_path).problems)
    assert "aa: 0 images and 2 masks" in problems
    assert "bb: 2 images" in problems
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither images/ and labels/ nor folders"):
        dsb2018.records(tmp_path / "empty")


# Anybody's folder

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


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "lidc").is_dir(), reason="the LIDC slices are not on this machine")
def test_real_lidc(tmp_path: Path) -> None:
    options = PrepareOptions("lidc", None, "grey", 15, 0.15, test_fraction=0.2, crop=(64, 64))
    result = prepare(lidc.records(REAL / "lidc"), tmp_path / "p", options, quiet=True)
    assert sum(result.images.values()) == 993  # of 1004, 11 were left empty by all four
    tables = {s: pd.read_csv(tmp_path / "p" / f"{s}.csv") for s in ("train", "val", "test")}
    patients = [set(table["patient"]) for table in tables.values()]
    assert sum(len(p) for p in patients) == len(set.union(*patients)) == 70
    assert set(tables["test"]["height"]) == {64}
    assert set(tables["train"]["height"]) == {128}
    assert all(len(cell.split(";")) == 4 for cell in tables["train"]["raterdtnames"])


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "dsb2018").is_dir(), reason="the DSB 2018 images are not on this machine")
def test_real_dsb(tmp_path: Path) -> None:
    options = PrepareOptions(
        "dsb2018", None, "grey", 10, 0.15, test_fraction=0.2, patch=(128, 128), test_patch=(256, 256)
    )
    result = prepare(dsb2018.records(REAL / "dsb2018"), tmp_path / "p", options, quiet=True)
    assert sum(result.images.values()) == 240
    test = pd.read_csv(tmp_path / "p" / "test.csv").drop_duplicates("image_id")
    assert (test["modality"] == "stained_colour").mean() == pytest.approx(41 / 240, abs=0.04)
