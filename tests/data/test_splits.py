"""Splits: by group, even over strata, the same from the same seed."""

from __future__ import annotations

from pathlib import Path

from data.splits import cut_split
from tests.commands import listed
from tests.pictures import fake_glas


def test_validation_is_cut_by_patient(tmp_path: Path) -> None:
    records = cut_split(listed("glas", fake_glas(tmp_path / "raw")).records, "val", 0.2, seed=0)
    patients = {split: {r.group for r in records if r.split == split} for split in ("train", "val", "test")}
    assert not patients["train"] & patients["val"]
    assert 8 <= sum(r.split == "val" for r in records) <= 17
    assert sum(r.split == "test" for r in records) == 80
    fresh = listed("glas", tmp_path / "raw").records
    splits = [[r.split for r in cut_split(fresh, "val", 0.2, seed)] for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1] == [r.split for r in records]
    assert any(split != splits[0] for split in splits[2:])
