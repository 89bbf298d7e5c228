"""F1 and IoU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation.metrics import Counts, count


def test_f1_and_iou_by_hand() -> None:
    truth = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
    prediction = np.array([[0, 1, 1, 1], [1, 0, 0, 0]], bool)
    counts = count(prediction, truth)
    assert counts == Counts(true_positive=2, false_positive=2, false_negative=1)
    assert counts.f1 == pytest.approx(4 / 7)
    assert counts.iou == pytest.approx(2 / 5)
    pooled = counts + Counts(8, 0, 1)
    assert [pooled.f1, pooled.iou] == pytest.approx([20 / 24, 10 / 14])


def test_empty_masks() -> None:
    empty, some = np.zeros((2, 2), bool), np.eye(2, dtype=bool)
    assert (count(empty, empty).f1, count(empty, empty).iou) == (1.0, 1.0)
    assert (count(some, empty).f1, count(empty, some).iou) == (0.0, 0.0)


def test_counts_refuse_other_shapes_and_types() -> None:
    with pytest.raises(ValueError, match="truth"):
        count(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="bool"):
        count(np.zeros((2, 2)), np.zeros((2, 2), bool))


PAIRS = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


@given(PAIRS)
def test_f1_is_two_iou_over_one_plus_iou(pair: tuple[np.ndarray, np.ndarray]) -> None:
    counts = count(*pair)
    assert 0 <= counts.iou <= counts.f1 <= 1
    assert counts.f1 == pytest.approx(2 * counts.iou / (1 + counts.iou))
    assert counts.f1 == count(*pair[::-1]).f1
