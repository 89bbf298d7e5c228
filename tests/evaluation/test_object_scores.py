from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt

from evaluation.object_scores import contingency, object_scores

LABELS = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: st.tuples(*[arrays(np.int32, shape, elements=st.integers(0, 4)) for _ in range(2)])
)


def cells(rng: np.random.Generator, count: int = 12, size: int = 48) -> np.ndarray:
    """Discs that may touch, each pixel of the nearest centre."""
    seeds = np.ones((size, size), bool)
    centres = rng.choice(size * size, count, replace=False)
    seeds.flat[centres] = False
    distance, nearest = distance_transform_edt(seeds, return_indices=True)
    numbers = np.zeros((size, size), np.int32)
    numbers.flat[centres] = rng.permutation(count) + 1
    return np.where(distance < 6, numbers[tuple(nearest)], 0)


def pairs(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truth and a prediction that moved by a pixel, lost objects and won others."""
    result = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        truth, other = cells(rng), cells(rng)
        kept = np.append(0, rng.random(truth.max()) < 0.7) * np.arange(truth.max() + 1)
        moved = kept[np.roll(truth, rng.integers(-2, 3, 2), (0, 1))]
        result.append((truth, np.where(moved > 0, moved, np.where(other > 9, other + 20, 0))))
    return result


def test_scores_by_hand() -> None:
    """True objects of 4, 4 and 2 pixels; predictions: 3 of the first and 1 more, 1 of the second, and 2 elsewhere."""
    truth = np.array([[1, 1, 1, 1, 0, 0, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [3, 3, 0, 0, 0, 0, 0, 0, 0, 0]])
    prediction = np.array(
        [[0, 5, 5, 5, 5, 0, 0, 0, 0, 9], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 7, 7]]
    )
    table, scores = contingency(truth, prediction), object_scores(truth, prediction)
    np.testing.assert_array_equal(table.truth_areas, [4, 4, 2])
    np.testing.assert_array_equal(table.prediction_areas, [4, 2, 1])
    np.testing.assert_allclose(table.iou, [3 / 5, 1 / 4])
    assert scores["aji"] == pytest.approx((3 + 1) / (5 + 4 + 2 + 2))
    assert (scores["pq"], scores["dq"], scores["sq"]) == pytest.approx((1 / 3 * 0.6, 1 / 3, 0.6))
    assert scores["f1"] == pytest.approx(2 * 1 / 6)
    of_truth = (4 * 6 / 8 + 4 * 2 / 5) / 10
    of_prediction = (4 * 6 / 8 + 1 * 2 / 5) / 7
    assert scores["dice"] == pytest.approx((of_truth + of_prediction) / 2)
    # 1 to 5: 1 pixel. 2 to 9: 3. Unmatched 3 is nearest to 5; 7 to 2.
    three, seven = max(np.hypot(2, 1), np.hypot(2, 3)), np.hypot(2, 2)
    hausdorff = (4 * 1 + 4 * 3 + 2 * three) / 10 + (4 * 1 + 2 * seven + 1 * 3) / 7
    assert scores["hausdorff"] == pytest.approx(hausdorff / 2)


def test_panoptic_match_needs_more_than_half() -> None:
    truth, half = np.array([[1, 1, 1, 0]]), np.array([[0, 1, 1, 1]])
    assert contingency(truth, half).iou.tolist() == [0.5]
    assert contingency(truth, half).panoptic_quality == (0, 0, 0)


def test_glas_rule_takes_exactly_half_but_each_true_object_once() -> None:
    truth = np.array([[1, 1, 1, 1]])
    assert contingency(truth, np.array([[2, 2, 0, 0]])).f1 == 1
    assert contingency(truth, np.array([[2, 0, 0, 0]])).f1 == 0
    assert contingency(truth, np.array([[2, 2, 3, 3]])).f1 == pytest.approx(2 / 3)


def test_glas_rule_pairs_by_largest_overlap() -> None:
    """A prediction over all of a small object and less than half of a large one has found neither."""
    truth = np.array([[1, 1, 2, 2, 2, 2, 2, 2, 2]])
    assert contingency(truth, np.array([[1, 1, 1, 1, 1, 0, 0, 0, 0]])).f1 == 0


def test_aji_pairs_by_iou_not_by_overlap() -> None:
    """The large prediction shares 3 pixels at IoU 3/13, the small one 2 at IoU 2/5."""
    truth, prediction = np.array([[1] * 5 + [0] * 8]), np.array([[2, 2] + [3] * 11])
    assert contingency(truth, prediction).aji == pytest.approx(2 / (5 + 11))


def test_empty_maps() -> None:
    empty, some = np.zeros((3, 4), int), np.eye(3, 4, dtype=int)
    assert list(object_scores(empty, empty).values()) == [1, 1, 1, 1, 1, 1, 0]
    for scores in (object_scores(empty, some), object_scores(some, empty)):
        assert list(scores.values()) == [0, 0, 0, 0, 0, 0, 5]


@given(LABELS)
def test_any_pair_of_maps(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = pair
    scores = object_scores(truth, prediction)
    *shares, distance = scores.values()
    assert all(0 <= value <= 1 for value in shares)
    assert 0 <= distance <= np.hypot(*truth.shape)
    same = object_scores(truth, truth)
    assert [same[name] for name in ("aji", "pq", "f1", "dice", "hausdorff")] == pytest.approx([1, 1, 1, 1, 0])
    swapped = object_scores(prediction, truth)
    for name in ("pq", "dice", "hausdorff"):
        assert scores[name] == pytest.approx(swapped[name])
    # Rising renumbering, however sparse, changes nothing.
    sparse = object_scores(np.array([0, 3, 10, 1000, 10**9])[truth], prediction.astype(np.uint8))
    assert sparse == scores


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="truth is"):
        object_scores(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="integer"):
        contingency(np.zeros((2, 2)), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="negative"):
        contingency(np.zeros((1, 2), int), np.array([[0, -1]]))


def test_panoptic_quality_is_that_of_torchmetrics() -> None:
    detection = pytest.importorskip("torchmetrics.detection")
    torch = pytest.importorskip("torch")
    metric = detection.PanopticQuality(things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)
    for truth, prediction in pairs(6):
        maps = [torch.tensor(np.stack([m > 0, m], -1)[None].astype(np.int64)) for m in (prediction, truth)]
        pq, sq, dq = metric(*maps)[0].tolist()  # things come before stuffs
        assert contingency(truth, prediction).panoptic_quality == pytest.approx((pq, dq, sq))


def test_aji_and_panoptic_quality_are_those_of_cellseg_metrics() -> None:
    """Its AJI pairs by largest overlap, which is the largest IoU in these maps."""
    package = pytest.importorskip("cellseg_metrics")
    compared = 0
    for truth, prediction in pairs(12):
        table = contingency(truth, prediction)
        theirs = package.panoptic_quality(truth, prediction)
        assert table.panoptic_quality == pytest.approx((theirs["pq"], theirs["dq"], theirs["sq"]), abs=1e-6)
        by_overlap = [table.overlap[table.truth == t].argmax() for t in np.unique(table.truth)]
        by_iou = [table.iou[table.truth == t].argmax() for t in np.unique(table.truth)]
        ties = [np.sum(table.overlap[table.truth == t] == table.overlap[table.truth == t].max()) for t in table.truth]
        if by_overlap == by_iou and max(ties) == 1:
            compared += 1
            assert table.aji == pytest.approx(package.aggregated_jaccard_index(truth, prediction), abs=1e-6)
    assert compared >= 4


def _pairwise(truth: np.ndarray, prediction: np.ndarray, score: object, nearest: bool) -> float:
    """Both directions of a GlaS score, object by object over whole masks, from a score of two masks."""
    total = 0.0
    for one, two in ((truth, prediction), (prediction, truth)):
        for i in np.unique(one[one > 0]):
            mask = one == i
            shared = np.bincount(two[mask], minlength=2)
            shared[0] = 0
            others = [shared.argmax()] if shared.any() else np.unique(two[two > 0]) if nearest else []
            total += mask.sum() / (one > 0).sum() * min((score(mask, two == j) for j in others), default=0.0)  # type: ignore[operator]
    return total / 2


def test_object_hausdorff_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    for truth, prediction in pairs(5):
        expected = _pairwise(truth, prediction, metrics.hausdorff_distance, nearest=True)
        assert object_scores(truth, prediction)["hausdorff"] == pytest.approx(expected)


def test_object_dice_is_that_of_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    torch = pytest.importorskip("torch")

    def dice(one: np.ndarray, two: np.ndarray) -> float:
        return float(functional.binary_f1_score(torch.tensor(one).int(), torch.tensor(two).int()))

    for truth, prediction in pairs(5):
        assert contingency(truth, prediction).dice == pytest.approx(_pairwise(truth, prediction, dice, nearest=False))


@settings(max_examples=40)
@given(LABELS)
def test_object_f1_counts_as_torchmetrics_recall_does(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """A true positive has a recall of at least half, as a mask, of the true object that it overlaps most."""
    functional = pytest.importorskip("torchmetrics.functional.classification")
    torch = pytest.importorskip("torch")
    truth, prediction = pair
    found = set()
    for j in np.unique(prediction[prediction > 0]):
        shared = np.bincount(truth[prediction == j], minlength=2)
        shared[0] = 0
        i = int(shared.argmax())
        masks = [torch.tensor(m).int() for m in (prediction == j, truth == i)]
        if shared.any() and float(functional.binary_recall(*masks)) >= 0.5:
            found.add(i)
    objects = len(set(truth.flat) - {0}) + len(set(prediction.flat) - {0})
    assert contingency(truth, prediction).f1 == pytest.approx(2 * len(found) / objects if objects else 1.0)
