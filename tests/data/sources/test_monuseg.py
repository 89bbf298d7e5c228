"""MoNuSeg: what is read, and every problem of an archive at once."""

from __future__ import annotations

from utils.command import run_command

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import prepare as prepare_command
from data.prepare import prepare
from data.sources import monuseg
from data.sources.phantom import draw_sample
from tests.commands import REAL_DATA, listed, section
from tests.pictures import colours, read, save
from utils.data_schema import PhantomConfig
from utils.errors import DataError


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


TRAINING_TILES = """
18-5592-01Z-00-DX1 21-5784-01Z-00-DX1 21-5786-01Z-00-DX1 38-6178-01Z-00-DX1 49-4488-01Z-00-DX1 50-5931-01Z-00-DX1
A7-A13E-01Z-00-DX1 A7-A13F-01Z-00-DX1 AR-A1AK-01Z-00-DX1 AR-A1AS-01Z-00-DX1 AY-A8YK-01A-01-TS1 B0-5698-01Z-00-DX1
B0-5710-01Z-00-DX1 B0-5711-01Z-00-DX1 CH-5767-01Z-00-DX1 DK-A2I6-01A-01-TS1 E2-A14V-01Z-00-DX1 E2-A1B5-01Z-00-DX1
G2-A2EK-01A-02-TSB G9-6336-01Z-00-DX1 G9-6348-01Z-00-DX1 G9-6356-01Z-00-DX1 G9-6362-01Z-00-DX1 G9-6363-01Z-00-DX1
HE-7128-01Z-00-DX1 HE-7129-01Z-00-DX1 HE-7130-01Z-00-DX1 KB-A93J-01A-01-TS1 NH-A8F7-01A-01-TS1 RD-A8N9-01A-01-TS1
"""
TEST_TILES = """
2Z-A9J9-01A-01-TS1 44-2665-01B-06-BS6 69-7764-01A-01-TS1 A6-6782-01A-01-BS1 AC-A2FO-01A-01-TS1 AO-A0J2-01A-01-BSA
CU-A0YN-01A-02-BSB EJ-A46H-01A-03-TSC FG-A4MU-01B-01-TS1 GL-6846-01A-01-BS1 HC-7209-01A-01-TS1 HT-8564-01Z-00-DX1
IZ-8196-01A-01-BS1 ZF-A9R5-01A-01-TS1
"""
TRAINING, TEST = ([f"TCGA-{name}" for name in tiles.split()] for tiles in (TRAINING_TILES, TEST_TILES))
# Where the pictures and the XML of the training and of the test tiles lie.
LAYOUTS = {
    "as unpacked": ("train/MoNuSeg 2018 Training Data/Tissue Images", "train/MoNuSeg 2018 Training Data/Annotations",
                    "MoNuSegTestData", "MoNuSegTestData"),
    "test in folders too": ("MoNuSeg/Training/Tissue Images", "MoNuSeg/Training/Annotations",
                            "MoNuSeg/Test/Tissue Images", "MoNuSeg/Test/Annotations"),
    "together": ("Tissue Images", "Annotations", "Tissue Images", "Annotations"),
    "flat": ("", "", "", ""),
    "xml below": ("images", "images/xml", "latest", "latest/xml"),
}  # fmt: skip


def fake_official(raw: Path, layout: str, suffix: str = "tif") -> Path:
    """All tiles of the archive of 2018, as phantom tissue of 64x64, with two nuclei each."""
    images, annotations, test_images, test_annotations = (raw / folder for folder in LAYOUTS[layout])
    tile = draw_sample(PhantomConfig(size=64), 0).image
    xml = aperio(region(box(2.6, 2.6, 9.4, 9.4)), region(box(12, 12, 20, 18)))
    for names, pictures, outlines in ((TRAINING, images, annotations), (TEST, test_images, test_annotations)):
        for name in names:
            save(pictures / f"{name}.{suffix}", tile)
            outlines.mkdir(parents=True, exist_ok=True)
            (outlines / f"{name}.xml").write_text(xml)
    junk = raw / "__MACOSX" / f"._{TEST[0]}.tif"
    junk.parent.mkdir()
    junk.write_bytes(b"\0")
    return raw


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_official_archive_in_its_layouts(tmp_path: Path, layout: str) -> None:
    archive = listed("monuseg", fake_official(tmp_path, layout, "png" if layout == "together" else "tif"))
    assert archive.problems == []
    assert sorted(r.image_id for r in archive.records if r.split == "test") == TEST
    assert sorted(r.image_id for r in archive.records if r.split == "train") == TRAINING
    instances = read(archive.records[0]).instances
    assert instances is not None
    assert instances.max() == 2


def test_tiles_of_other_names_are_of_the_test_set_by_their_folder(tmp_path: Path) -> None:
    for folder in ("latest/Tissue Images", "my_test/Tissue Images", "TestSet"):
        name = f"TCGA-{folder[0].upper()}X-0001-01A-01-TS1"
        save(tmp_path / folder / f"{name}.tif", colours())
        (tmp_path / folder / f"{name}.xml").write_text(aperio(region(box(1, 1, 5, 5))))
    found = {r.image_id[5]: r.split for r in listed("monuseg", tmp_path, allow_partial=True).records}
    assert found == {"L": "train", "M": "test", "T": "test"}


@pytest.mark.slow
def test_the_paper_s_config_runs_unchanged_on_the_official_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_official(tmp_path / "raw" / "monuseg", "as unpacked")
    monkeypatch.chdir(tmp_path)
    assert run_command(lambda: prepare_command.main(["--config", "cfg/monuseg.yaml", "--quiet"])) == 0
    assert "prepared/monuseg500 (26 train, 4 val, 14 test images; 1274, 16, 56 patches)" in capsys.readouterr().out


def test_everything_wrong_with_an_archive_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = fake_official(tmp_path / "raw", "as unpacked")
    train, test = raw / LAYOUTS["as unpacked"][1], raw / "MoNuSegTestData"
    (train / f"{TRAINING[3]}.xml").write_text(aperio(region(box(1, 1, 5, 5)))[:60])
    (train / f"{TRAINING[4]}.xml").write_text(aperio(region(box(500, 500, 520, 520), number=9)))
    (train / f"{TRAINING[5]}.xml").unlink()
    save(train.with_name("Binary Masks") / f"{TRAINING[5]}.png", np.zeros((12, 24), np.uint8))
    for stop in (None, "stain"):  # what can be told without opening files, and without
        monkeypatch.setattr("data.prepare.stain_target", lambda *_: pytest.fail("stains were looked for"))
        if stop is None:
            (test / f"{TEST[1]}.tif").unlink()
        else:
            save(test / f"{TEST[1]}.tif", colours(64, 64))
        with pytest.raises(DataError) as caught:
            prepare(section("monuseg", raw, tmp_path / "p", stain="vahadane", workers=1), quiet=True)
        said = str(caught.value)
        assert ("expected 30 or 37 training and 14 test tiles; found 30 and 13 (no TCGA-44" in said) == (stop is None)
        assert ("TCGA-44-2665-01B-06-BS6.xml: no image of that name" in said) == (stop is None)
        assert f"{TRAINING[3]}.xml: not complete XML" in said
        assert f"{TRAINING[4]}.xml: region 9 outside the picture of 64 x 64" in said
        assert f"{TRAINING[5]}.png: mask of 24 x 12, image of 64 x 64 pixels" in said
        assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["raw"]


def test_without_test_tiles_some_can_be_held_out_by_patient(tmp_path: Path) -> None:
    raw = fake_official(tmp_path / "raw", "as unpacked")
    shutil.rmtree(raw / "MoNuSegTestData")
    (problem,) = listed("monuseg", raw).problems
    assert problem.endswith("found 30 and 0; data.allow_partial: true goes on with what there is, and "
                            "data.test_fraction: 0.2 holds out test tiles by patient")  # fmt: skip
    options = {"size": (24, 24), "workers": 1, "allow_partial": True}
    one, two = (
        prepare(section("monuseg", raw, tmp_path / name, **options, **more), quiet=True).images
        for name, more in (("p", {"test_fraction": 0.2}), ("q", {}))
    )
    assert one == {"train": 20, "val": 4, "test": 6}
    assert two == {"train": 26, "val": 4, "test": 0}


def test_monuseg_archives(tmp_path: Path) -> None:
    archive = listed("monuseg", fake_monuseg(tmp_path), allow_partial=True)
    assert archive.problems == []
    assert [(r.image_id[:12], r.split, r.group) for r in archive.records] == [
        ("TCGA-2Z-A9J9", "test", "TCGA-2Z-A9J9"),
        ("TCGA-A7-A13E", "train", "TCGA-A7-A13E"),
        ("TCGA-B0-5698", "train", "TCGA-B0-5698"),
    ]
    third, first, second = (read(record) for record in archive.records)
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
    (problem,) = listed("monuseg", tmp_path).problems
    assert "expected 30 or 37 training and 14 test tiles; found 2 and 1 (no TCGA-44-2665" in problem


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
    "no regions": (aperio(), "0 regions"),
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
    record = listed("monuseg", raw, allow_partial=True).records[0]
    assert record.check is not None
    for look in (record.read, record.check):
        with pytest.raises(DataError, match=message) as caught:
            look()
        assert path.name in str(caught.value)


def test_monuseg_without_partners_and_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        listed("monuseg", tmp_path / "nowhere")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file; unpack it"):
        listed("monuseg", tmp_path / "a.zip")
    (tmp_path / "wrong").mkdir()
    with pytest.raises(DataError, match=r"no tiles TCGA-\*.tif with their TCGA-\*.xml in it or below$"):
        listed("monuseg", tmp_path / "wrong")
    with pytest.raises(DataError, match=r"; unpack a\.zip$"):
        listed("monuseg", tmp_path)
    raw = fake_monuseg(tmp_path / "raw")
    train = raw / "MoNuSeg 2018 Training Data"
    (train / "Binary Masks" / "TCGA-B0-5698-01Z-00-DX1.png").unlink()
    (train / "Annotations" / "TCGA-lost.xml").write_text(aperio(region(box(1, 1, 5, 5))))
    shutil.copy(
        train / "Tissue Images" / "TCGA-A7-A13E-01Z-00-DX1.tif", train / "Tissue Images" / "TCGA-A7-A13E-01Z-00-DX1.png"
    )
    shutil.copytree(raw / "MoNuSegTestData", raw / "again")
    problems = "\n".join(listed("monuseg", raw, allow_partial=True).problems)
    assert "lost.xml: no image of that name" in problems
    assert "TCGA-B0-5698-01Z-00-DX1.tif: no annotation" in problems
    assert "have the same stem" in problems
    assert "TCGA-2Z-A9J9-01A-01-TS1.tif: the same tile as" in problems


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "monuseg").is_dir(), reason="the MoNuSeg archive is not on this machine")
def test_real_monuseg_masks_are_those_made_from_the_xml() -> None:
    archive = listed("monuseg", REAL_DATA / "monuseg", allow_partial=True)
    assert archive.problems == []
    for record in [record for record in archive.records if record.files[1].suffix == ".xml"][:4]:
        assert record.check is not None
        record.check()
        sample = read(record)
        masks = REAL_DATA / "monuseg" / "Training" / "Binary Masks" / f"{record.image_id}.png"
        expected = np.asarray(Image.open(masks)) > 0
        assert (sample.mask != expected).mean() < 0.003
        assert sample.instances is not None
        assert sample.instances.max() > 250
