"""DSB 2018, packed and official."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.prepare import prepare
from tests.commands import REAL_DATA, listed, section
from tests.pictures import colours, read, save
from utils.errors import DataError

RNG = np.random.default_rng(0)


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
    one, two = listed("dsb2018", packed), listed("dsb2018", tmp_path)
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
    assert "bb.png: no partner in labels/" in listed("dsb2018", packed).problems[0]
    problems = "\n".join(listed("dsb2018", tmp_path).problems)
    assert "aa: 0 images and 2 masks" in problems
    assert "bb: 2 images" in problems
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither images/ and labels/ nor folders"):
        listed("dsb2018", tmp_path / "empty")


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "dsb2018").is_dir(), reason="the DSB 2018 images are not on this machine")
def test_real_dsb(tmp_path: Path) -> None:
    data = section("dsb2018", REAL_DATA / "dsb2018", tmp_path / "p", patch=(128, 128), test_patch=(256, 256))
    result = prepare(data, quiet=True)
    assert sum(result.images.values()) == 240
    test = pd.read_csv(tmp_path / "p" / "test.csv").drop_duplicates("image_id")
    assert (test["modality"] == "stained_colour").mean() == pytest.approx(41 / 240, abs=0.04)
