"""LIDC, packed and plain."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.prepare import prepare
from tests.commands import REAL_DATA, listed, section
from tests.pictures import save
from utils.errors import DataError

RNG = np.random.default_rng(0)


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
    archive = listed("lidc", fake_lidc(tmp_path))
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
    for record in listed("lidc", raw).records:
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
    packed, plain = listed("lidc", raw), listed("lidc", as_plain(raw, tmp_path / "plain"))
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
        listed("lidc", tmp_path / "empty")
    raw = fake_lidc(tmp_path / "raw")
    plain = as_plain(raw, tmp_path / "plain")
    (raw / "masks" / "LIDC-IDRI-0002.png").unlink()
    table = (raw / "index.csv").read_text()
    (raw / "index.csv").write_text(table + "LIDC-IDRI-0001,nodule-0,slice-0,0\nLIDC-IDRI-0001,nodule-9,slice-0,x\n")
    problems = "\n".join(listed("lidc", raw).problems)
    assert "row 6: LIDC-IDRI-0001_nodule-0_slice-0 is listed twice" in problems
    assert "row 7: row 'x' is not a number" in problems
    assert "LIDC-IDRI-0002.png: no such file" in problems
    (raw / "index.csv").write_text("LIDC-IDRI-0001,nodule-0,slice-0,5\n".join(["patient,nodule,slice,row\n", ""]))
    with pytest.raises(DataError, match="slice 5 ends at 768"):
        listed("lidc", raw).records[0].read()
    (raw / "index.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column nodule, patient, row, slice"):
        listed("lidc", raw)
    (plain / "LIDC-IDRI-0001" / "nodule-0" / "mask-2" / "slice-0.png").unlink()
    shutil.rmtree(plain / "LIDC-IDRI-0002" / "nodule-0" / "mask-3")
    problems = "\n".join(listed("lidc", plain).problems)
    assert "slice-0.png: no partner in mask-2/" in problems
    assert "no folder mask-3 beside images" in problems


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "lidc").is_dir(), reason="the LIDC slices are not on this machine")
def test_real_lidc(tmp_path: Path) -> None:
    """A part of the archive: forty patients of it."""
    index = pd.read_csv(REAL_DATA / "lidc" / "index.csv")
    some = index[index["patient"].isin(index["patient"].unique()[::10][:40])]
    (tmp_path / "raw").mkdir()
    some.to_csv(tmp_path / "raw" / "index.csv", index=False)
    for folder in ("images", "masks"):
        (tmp_path / "raw" / folder).symlink_to(REAL_DATA / "lidc" / folder)
    result = prepare(section("lidc", tmp_path / "raw", tmp_path / "p", crop=(64, 64)), quiet=True)
    assert sum(result.images.values()) == (some["n_nonempty"] > 0).sum() > 300
    tables = {s: pd.read_csv(tmp_path / "p" / f"{s}.csv") for s in ("train", "val", "test")}
    patients = [set(table["patient"]) for table in tables.values()]
    assert sum(len(p) for p in patients) == len(set.union(*patients)) == 40
    assert set(tables["test"]["height"]) == {64}
    assert set(tables["train"]["height"]) == {128}
    assert all(len(cell.split(";")) == 4 for cell in tables["train"]["raterdtnames"])
