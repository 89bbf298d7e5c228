"""How raters differ, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from data.agreement import Agreement
from data.rows import Patch


def patch(key: str, *masks: np.ndarray, image_id: str = "", corner: tuple[int, int] | None = None) -> tuple[str, Patch]:
    image, sdf = np.zeros(masks[0].shape, np.uint8), np.ones((len(masks), 1, *masks[0].shape), np.float32)
    raters = masks if len(masks) > 1 else ()
    return "train", Patch(key, image_id or key, key, image, sdf, image, raters, corner)


def rows(*marked: int) -> np.ndarray:
    mask = np.zeros((6, 10), bool)
    mask[list(marked)] = True
    return mask


def test_areas_empty_masks_and_pairs() -> None:
    """The third image has two raters only, the fourth one, who does not count."""
    agreement = Agreement()
    items = [
        patch("a", rows(0, 1), rows(1), rows()),
        patch("b", rows(2), rows(2), rows(2, 3, 4, 5)),
        patch("c", rows(), rows()),
        patch("d", rows(1)),
    ]
    assert [item[1].key for item in agreement.watching(items)] == ["a", "b", "c", "d"]
    assert [areas.tolist() for areas in agreement.areas] == [[20, 10, 0], [10, 10, 40], [0, 0]]
    np.testing.assert_allclose(agreement.pairs(), [[1, 2.5 / 3, 0.125], [2.5 / 3, 1, 0.125], [0.125, 0.125, 1]])
    first, *each = agreement.lines()
    iou, both = (0.5 + 0 + 0 + 1 + 0.25 + 0.25 + 1) / 7, (0.5 + 1 + 0.25 + 0.25) / 4
    assert f"mean IoU of two {iou:.3f}, {both:.3f} where both marked something; of 3 images 33.3 %" in first
    assert "33.3 % for all" in first
    assert each[0] == "rater 0: area 15 pixels (median; quartiles 12.5, 17.5), empty in 33.3 % of 3 images"
    assert each[2].endswith("empty in 50.0 % of 2 images")
    assert Agreement().lines() == []


def test_patches_are_put_together() -> None:
    """Two patches that share two of six columns: areas are those of the image."""
    one, two = rows(0, 1), rows(1, 2)
    agreement = Agreement()
    parts = [(slice(0, 6), 0), (slice(4, 10), 4)]
    items = [patch(f"p{left}", one[:, at], two[:, at], image_id="p", corner=(0, left)) for at, left in parts]
    assert len(list(agreement.watching(items))) == 2
    assert [areas.tolist() for areas in agreement.areas] == [[20, 20]]
    assert agreement.pairs()[0, 1] == pytest.approx(1 / 3)
