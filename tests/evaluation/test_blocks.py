"""Objects of large images, block by block."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.blocks import Block, block_objects, split_large
from evaluation.instances import ObjectRecord, plain_objects, split_objects


def in_blocks(sdf: np.ndarray, margin: int, most: int) -> tuple[np.ndarray, list[ObjectRecord]]:
    """Labels of the whole, and what is known of each object."""
    records: list[ObjectRecord] = []
    sizes = []

    def read(top: int, left: int, height: int, width: int) -> np.ndarray:
        sizes.append(height * width)
        return sdf[top : top + height, left : left + width]

    def found(block: Block) -> None:
        height, width = block.labels.shape
        records.extend(block_objects(block, read(block.top, block.left, height, width), (1.0, 1.0)))

    labels = np.concatenate(list(split_large(read, (len(sdf), sdf.shape[1]), 0.0, 0.1, 0, found, margin, most)))
    assert max(sizes) <= max(most, (3 * margin) ** 2)
    return labels, records


@pytest.mark.parametrize(("shape", "margin", "most"), [((400, 60), 30, 6000), ((230, 310), 30, 9000), ((9, 7), 30, 9)])
def test_blocks_have_the_objects_of_the_whole(shape: tuple[int, int], margin: int, most: int) -> None:
    """As far as they are no larger than the margins: the same pixels, each once, whatever the number."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    sdf = np.minimum(1.0, np.hypot(y % 25 - 12.0, x % 20 - 10.0) / 6.0 - 1.0)
    sdf[: shape[0] // 2, : shape[1] // 2] += np.where(y % 50 > 24, 2, 0)[: shape[0] // 2, : shape[1] // 2]
    whole = split_objects(sdf, 0.0, 0.1)
    labels, records = in_blocks(sdf, margin, most)
    count = int(whole.max(initial=0))
    assert labels.shape == whole.shape
    assert labels.max(initial=0) == count
    np.testing.assert_array_equal(labels > 0, whole > 0)
    assert len(np.unique(np.stack([labels, whole])[:, whole > 0], axis=1).T) == count
    expected = plain_objects(labels, sdf)
    assert [r.label for r in sorted(records, key=lambda r: r.label)] == [r.label for r in expected]
    for record, same in zip(sorted(records, key=lambda r: r.label), expected, strict=True):
        assert (record.area, record.bbox) == (same.area, same.bbox)
        assert record.centroid == pytest.approx(same.centroid)
        assert record.mean_std == pytest.approx(same.mean_std)
        np.testing.assert_allclose(record.contour[0][0], same.contour[0][0])


def test_an_object_larger_than_the_margins_is_cut_but_counted_once() -> None:
    sdf = np.where(np.abs(np.arange(300) - 150) < 140, -1.0, 1.0)[None] + np.where(np.arange(40) < 30, 0, 2)[:, None]
    labels, records = in_blocks(sdf, 10, 1600)
    assert sum(r.area for r in records) == (labels > 0).sum()
    assert len(records) == len(np.unique(labels)) - 1
