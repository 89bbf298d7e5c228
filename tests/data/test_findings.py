"""What is suspicious about prepared data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from data import findings
from data.rows import Patch
from data.sdf import signed_distance


def patch(key: str, mask: np.ndarray, image: np.ndarray | None = None) -> tuple[str, Patch]:
    split, name = key.split("/")
    pixels = np.random.default_rng(list(key.encode())).integers(0, 256, mask.shape, dtype=np.uint8)
    sdf = signed_distance(mask, 5)[None, None]
    return split, Patch(name, name, name, pixels if image is None else image, sdf, mask.astype(np.uint8))


def square(size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[4:9, 5:12] = True
    return mask


GOOD = [patch(f"{split}/{i}{split}", square()) for split in ("train", "val", "test") for i in range(3)]


def found(*more: tuple[str, Patch], classes: tuple[int, ...] = ()) -> dict[str, list[str]]:
    facts = findings.collect([*GOOD, *more])
    return {s.what: s.where for s in findings.suspicions(facts.table, classes)}


def test_good_data_are_not_suspicious() -> None:
    assert found() == {}


def test_everything_suspicious_is_found() -> None:
    full, empty, inverted = np.ones((20, 20), bool), np.zeros((20, 20), bool), ~square()
    twin = np.random.default_rng(5).integers(0, 256, (20, 20), dtype=np.uint8)
    result = found(
        patch("train/full", full),
        patch("val/empty", empty),
        patch("test/inverted", inverted),
        patch("train/flat", square(), np.full((20, 20), 7, np.uint8)),
        patch("train/huge", square(50)),
        patch("train/a", square(), twin),
        patch("test/b", square(), twin),
        patch("test/c", square(), twin),
        patch("val/0train", square()),
    )
    assert result == {
        "the same picture in two splits": ["train/a = test/b = test/c"],
        "parts of one image in two splits": ["0train"],
        "constant images": ["train/flat"],
        "empty masks": ["val/empty"],
        "masks that fill the picture": ["train/full"],
        "one object touches every border, as in an inverted mask": ["test/inverted"],
        "sizes far from the others'": ["train/huge"],
    }
    assert "the same picture twice in a split" in found(
        patch("train/a", square(), twin), patch("train/b", square(), twin)
    )
    assert found(classes=(4, 9))["classes that no training image has"] == ["class 9"]
    assert {s.what for s in findings.suspicions(pd.DataFrame())} == {"no images at all"}


@pytest.mark.parametrize(("truncation", "depth"), [(1.0, 1.0), (3.0, 2 / 3), (5.0, 0.4), (10.0, 0.2)])
def test_a_truncation_too_large_for_the_objects(truncation: float, depth: float) -> None:
    mask = square()  # five pixels high, the middle two pixels from its border pixels
    mask[11:16, 1:6] = True
    one = patch("train/a", mask)[1]
    scaled = Patch("a", "a", "a", one.image, signed_distance(mask, truncation)[None, None], one.labels)
    assert findings.object_depth(scaled) == pytest.approx(depth)
    facts = findings.collect([("train", scaled)])
    suspicions = findings.shallow_objects(facts.table, truncation)
    assert bool(suspicions) == (depth < 0.5)
    if suspicions:
        assert suspicions[0].where == ["2.0 pixels deep in the middle; try data.truncation: 2"]
    assert findings.shallow_objects(pd.DataFrame(), truncation) == []


def test_no_object_has_no_depth() -> None:
    assert np.isnan(findings.object_depth(patch("train/none", np.zeros((8, 8), bool))[1]))


def test_histograms_are_shares() -> None:
    facts = findings.collect(GOOD)
    assert facts.sdf.sum() == pytest.approx(1)
    assert all(histogram.sum() == pytest.approx(1) for histogram in facts.greys.values())
    assert findings.grey_histogram(np.full((3, 4, 3), 255, np.uint8))[-1] == 1


def test_patients_in_two_splits() -> None:
    tables = {"train": pd.DataFrame({"patient": ["p", "q"]}), "test": pd.DataFrame({"patient": ["q", ""]})}
    assert findings.leaking_groups(tables, "patient") == ["q (test, train)"]
