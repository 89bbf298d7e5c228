"""The GlaS archive."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data.dataset import load_split
from data.prepare import prepare
from tests.commands import ROOT, listed, section
from tests.pictures import fake_glas
from utils.errors import DataError

REAL_GLAS = ROOT.parent / "shared" / "data" / "glas"


@pytest.mark.parametrize("suffix", ["bmp", "png"])
def test_glas_archive(tmp_path: Path, suffix: str) -> None:
    records = listed("glas", fake_glas(tmp_path / "raw", suffix)).records
    assert [sum(r.split == s for r in records) for s in ("train", "test")] == [85, 80]
    first = next(r for r in records if r.image_id == "train_2")
    assert (first.group, first.attributes["grade"], first.attributes["part"]) == ("2", "malignant", "train")
    sample = first.read()
    assert sample is not None
    assert sample.instances is not None
    assert set(np.unique(sample.instances)) == {0, 1, 2}
    np.testing.assert_array_equal(sample.mask, sample.instances > 0)


def test_partial_glas_names_expected_and_found(tmp_path: Path) -> None:
    raw = fake_glas(tmp_path / "raw", counts={"train": 5, "testA": 2, "testB": 0})
    (problem,) = listed("glas", raw).problems
    assert "expected 85 train, 60 testA, 20 testB; found 5 train, 2 testA, 0 testB" in problem
    assert "allow_partial" in problem
    assert len(listed("glas", raw, allow_partial=True).records) == 7


def test_every_image_has_a_patient(tmp_path: Path) -> None:
    raw = fake_glas(tmp_path / "raw", counts={"train": 3, "testA": 1, "testB": 0})
    table = (raw / "Grade.csv").read_text().splitlines()
    spelt = [line.replace("train_2,", "train_2.bmp,") for line in table if not line.startswith("train_1,")]
    assert len(spelt) == len(table) - 1
    (raw / "Grade.csv").write_text("\n".join(spelt) + "\n")
    archive = listed("glas", raw, allow_partial=True)
    assert archive.problems == [f"{raw / 'Grade.csv'}: has no row of train_1"]
    assert next(r for r in archive.records if r.image_id == "train_2").group == "2"


def test_broken_glas_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        listed("glas", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found 0 train"):
        listed("glas", tmp_path / "empty", allow_partial=True)
    raw = fake_glas(tmp_path / "raw", counts={"train": 4, "testA": 1, "testB": 0})
    (raw / "train_1_anno.bmp").unlink()
    (raw / "train_3.bmp").unlink()
    shutil.copy(raw / "train_2.bmp", raw / "train_2.png")
    (raw / "Grade.csv").write_text("a,b\n1,2\n")
    archive = listed("glas", raw, allow_partial=True)
    twice, lonely, unannotated, ungraded = archive.problems
    assert "train_2.bmp and train_2.png have the same stem" in twice
    assert "train_3_anno.bmp: no image of that name" in lonely
    assert "train_1.bmp: no annotation" in unannotated
    assert "needs the columns name, patient" in ungraded
    (raw / "Grade.csv").unlink()
    assert {r.group for r in listed("glas", raw, allow_partial=True).records} == {"train_2", "train_4", "testA_1"}
    assert "Grade.csv is missing" in listed("glas", raw).problems[-1]


@pytest.mark.slow
@pytest.mark.skipif(not REAL_GLAS.is_dir(), reason="the GlaS archive is not on this machine")
def test_real_glas(tmp_path: Path) -> None:
    archive = listed("glas", REAL_GLAS, allow_partial=True)
    assert len(archive.records) == 145
    assert archive.problems == []
    data = section("glas", REAL_GLAS, tmp_path / "p", size=(128, 128), allow_partial=True)
    counts = prepare(data, quiet=True).images
    assert counts["test"] == 60
    assert counts["train"] + counts["val"] == 85
    patches = load_split(section(root=tmp_path / "p", truncation=15), "test")
    assert all(patch.image.shape == (128, 128) for patch in patches)
    assert 0.3 < np.mean([patch.mask.mean() for patch in patches]) < 0.7
