"""MoNuSeg: what is read, and every problem of an archive at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.sources import monuseg
from tests.helpers import REAL_DATA, colours, listed, read, save
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


def test_monuseg_archives(tmp_path: Path) -> None:
    archive = listed("monuseg", fake_monuseg(tmp_path), allow_partial=True)
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
    (problem,) = listed("monuseg", tmp_path).problems
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
    record = listed("monuseg", raw, allow_partial=True).records[-1]
    with pytest.raises(DataError, match=message) as caught:
        record.read()
    assert path.name in str(caught.value)


def test_monuseg_without_partners_and_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        listed("monuseg", tmp_path / "nowhere")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file; unpack it"):
        listed("monuseg", tmp_path / "a.zip")
    (tmp_path / "wrong").mkdir()
    with pytest.raises(DataError, match="neither a folder 'Tissue Images' nor"):
        listed("monuseg", tmp_path / "wrong")
    raw = fake_monuseg(tmp_path / "raw")
    train = raw / "MoNuSeg 2018 Training Data"
    (train / "Binary Masks" / "TCGA-B0-5698-01Z-00-DX1.png").unlink()
    (train / "Annotations" / "lost.xml").write_text(aperio(region(box(1, 1, 5, 5))))
    shutil.copy(
        train / "Tissue Images" / "TCGA-A7-A13E-01Z-00-DX1.tif", train / "Tissue Images" / "TCGA-A7-A13E-01Z-00-DX1.png"
    )
    problems = "\n".join(listed("monuseg", raw, allow_partial=True).problems)
    assert "lost.xml: no image of that name" in problems
    assert "TCGA-B0-5698-01Z-00-DX1.tif: no annotation" in problems
    assert "have the same stem" in problems


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "monuseg").is_dir(), reason="the MoNuSeg archive is not on this machine")
def test_real_monuseg_masks_are_those_made_from_the_xml() -> None:
    archive = listed("monuseg", REAL_DATA / "monuseg", allow_partial=True)
    assert archive.problems == []
    for record in [record for record in archive.records if record.files[1].suffix == ".xml"][:4]:
        sample = read(record)
        masks = REAL_DATA / "monuseg" / "Training" / "Binary Masks" / f"{record.image_id}.png"
        expected = np.asarray(Image.open(masks)) > 0
        assert (sample.mask != expected).mean() < 0.003
        assert sample.instances is not None
        assert sample.instances.max() > 250
