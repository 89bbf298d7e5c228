"""Scores of segmented objects against true ones: AJI, PQ, and the three of the GlaS challenge.

All take label maps (H, W) of integers, 0 = background; which numbers the objects have does not matter. Where both maps
are empty every score is 1 and the distance 0; where one of them is, every score is 0 and the distance the length of
the image's diagonal, so that means over images stay finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects


def check_labels(labels: np.ndarray) -> None:
    """Raise ValueError unless labels is a two-dimensional array of integers >= 0."""
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be a 2-d integer array, not {labels.dtype} of shape {labels.shape}")
    if labels.size and labels.min() < 0:
        raise ValueError("labels must not be negative")


def _compact(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels renumbered 1 .. n in their order, (H, W) int64, and the areas of the n objects."""
    if labels.size and labels.max() > labels.size:  # a table over all numbers would be larger than the image
        values, index = np.unique(labels, return_inverse=True)
        labels = index.reshape(labels.shape) + int(values[0] != 0)
    areas = np.bincount(labels.astype(np.int64).ravel(), minlength=1)
    areas[0] = 0
    return np.cumsum(areas > 0)[labels], areas[areas > 0]


def _largest(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Index of the largest value of every group that occurs; of equal ones the first."""
    order = np.lexsort((-values, groups))
    return order[np.unique(groups[order], return_index=True)[1]]


class _Objects:
    """Objects of a map, counted from 0.

    labels: (H, W), 1 .. n, 0 = background. bounds: (n, 4): top, left, bottom, right, the last two exclusive.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels
        bounds = [(a.start, b.start, a.stop, b.stop) for a, b in find_objects(labels)]
        self.bounds = np.array(bounds).reshape(-1, 4)

    def hausdorff(self, i: int, other: _Objects, j: int) -> float:
        """Hausdorff distance, in pixels, of the pixels of object i and of object j of the other map."""
        a, b = self.bounds[i], other.bounds[j]
        (top, left), (bottom, right) = np.minimum(a, b)[:2], np.maximum(a, b)[2:]
        one, two = self.labels[top:bottom, left:right] == i + 1, other.labels[top:bottom, left:right] == j + 1
        return float(max(distance_transform_edt(~two)[one].max(), distance_transform_edt(~one)[two].max()))

    def nearest(self, i: int, other: _Objects) -> float:
        """The least Hausdorff distance of object i to any object of the other map.

        The bounds of two sets lie no further apart than their Hausdorff distance, so that most need not be looked at.
        """
        least = np.abs(other.bounds - self.bounds[i]).max(axis=1)
        distance = np.inf
        for j in np.argsort(least, kind="stable"):
            if least[j] >= distance:
                break
            distance = min(distance, self.hausdorff(i, other, j))
        return distance


@dataclass(frozen=True, eq=False)
class Contingency:
    """Pixels that T true and P predicted objects share, and the scores that follow from them.

    truth_labels, prediction_labels: the maps (H, W), renumbered 1 .. T and 1 .. P by rising label. All else counts
    objects from 0: truth_areas (T,), prediction_areas (P,); truth, prediction and overlap (M,): numbers of the two
    objects and pixels in common, for each of the M pairs that overlap.
    """

    truth_labels: np.ndarray
    prediction_labels: np.ndarray
    truth_areas: np.ndarray
    prediction_areas: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    overlap: np.ndarray

    @cached_property
    def union(self) -> np.ndarray:
        """Pixels in either object of each pair; (M,)."""
        return self.truth_areas[self.truth] + self.prediction_areas[self.prediction] - self.overlap

    @cached_property
    def iou(self) -> np.ndarray:
        """IoU of each pair; (M,), in (0, 1]."""
        return self.overlap / self.union

    @property
    def empty(self) -> bool:
        """Neither map has an object."""
        return len(self.truth_areas) + len(self.prediction_areas) == 0

    @property
    def matches(self) -> np.ndarray:
        """Indices of the pairs with IoU strictly above 0.5; no object is in two of them (Kirillov et al. 2019)."""
        return np.flatnonzero(self.iou > 0.5)

    @property
    def partners(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the pairs with the largest overlap of each true and of each predicted object that has one."""
        return _largest(self.truth, self.overlap), _largest(self.prediction, self.overlap)

    @property
    def aji(self) -> float:
        """Aggregated Jaccard index, in [0, 1] (Kumar et al. 2017, algorithm 1).

        Each true object is paired with the prediction of largest IoU; a prediction may be taken more than once, and one
        that never is adds its area to the union. Some packages pair by largest overlap instead.
        """
        if self.empty:
            return 1.0
        best = _largest(self.truth, self.iou)
        missed = self.truth_areas.sum() - self.truth_areas[self.truth[best]].sum()
        spurious = self.prediction_areas.sum() - self.prediction_areas[np.unique(self.prediction[best])].sum()
        return float(self.overlap[best].sum() / (self.union[best].sum() + missed + spurious))

    @property
    def panoptic_quality(self) -> tuple[float, float, float]:
        """PQ, DQ, SQ, in [0, 1], with matches at IoU strictly above 0.5 (Kirillov et al. 2019); PQ = DQ SQ.

        DQ is the F1 of detection, SQ the mean IoU of the matches (0 if there are none).
        """
        if self.empty:
            return 1.0, 1.0, 1.0
        found = self.iou[self.matches]
        dq = 2 * len(found) / (len(self.truth_areas) + len(self.prediction_areas))
        sq = float(found.mean()) if len(found) else 0.0
        return dq * sq, dq, sq

    @property
    def f1(self) -> float:
        """Object F1 of the GlaS challenge, in [0, 1] (Sirinukunwattana et al. 2017).

        A predicted object belongs to the true object that it overlaps most, and is a true positive if it covers at
        least half of it, as the paper has it (the challenge's program asks for more than half). Two predictions that
        cover exactly half each count once.
        """
        if self.empty:
            return 1.0
        _, pairs = self.partners
        truth = self.truth[pairs]
        true_positive = len(np.unique(truth[2 * self.overlap[pairs] >= self.truth_areas[truth]]))
        return 2 * true_positive / (len(self.truth_areas) + len(self.prediction_areas))

    @property
    def dice(self) -> float:
        """Object Dice of the GlaS challenge, in [0, 1] (Sirinukunwattana et al. 2017).

        Dice of each object with the one of the other map that it overlaps most (0 without any), weighted by area; the
        mean of both directions.
        """
        if self.empty:
            return 1.0
        if len(self.overlap) == 0:
            return 0.0
        areas = self.truth_areas[self.truth] + self.prediction_areas[self.prediction]
        dice = 2 * self.overlap / areas
        one, two = self.partners
        by_truth = (self.truth_areas[self.truth[one]] * dice[one]).sum() / self.truth_areas.sum()
        by_prediction = (self.prediction_areas[self.prediction[two]] * dice[two]).sum() / self.prediction_areas.sum()
        return float(by_prediction + by_truth) / 2

    @property
    def hausdorff(self) -> float:
        """Object Hausdorff distance of the GlaS challenge, in pixels (Sirinukunwattana et al. 2017).

        Of each object and the one of the other map that it overlaps most, or without any overlap the one at the least
        Hausdorff distance; weighted by area, mean of both directions. Distances are between pixel centres.
        """
        if self.empty:
            return 0.0
        if len(self.truth_areas) == 0 or len(self.prediction_areas) == 0:
            return float(np.hypot(*self.truth_labels.shape))
        true, predicted = _Objects(self.truth_labels), _Objects(self.prediction_labels)
        one, two = self.partners
        pairs = np.unique(np.concatenate([one, two]))
        distances = {p: true.hausdorff(self.truth[p], predicted, self.prediction[p]) for p in pairs}
        both = 0.0
        for areas, numbers, partners, own, other in (
            (self.truth_areas, self.truth, one, true, predicted),
            (self.prediction_areas, self.prediction, two, predicted, true),
        ):
            known = {numbers[p]: distances[p] for p in partners}
            each = [known[i] if i in known else own.nearest(i, other) for i in range(len(areas))]
            both += float(areas @ np.array(each)) / float(areas.sum())
        return both / 2


def contingency(truth: np.ndarray, prediction: np.ndarray) -> Contingency:
    """The table of two label maps (H, W). Raises ValueError for other shapes, types or negative labels."""
    check_labels(truth)
    check_labels(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {truth.shape}, prediction {prediction.shape}")
    (one, areas), (two, others) = _compact(truth), _compact(prediction)
    both = (one > 0) & (two > 0)
    columns = max(1, len(others))
    codes, overlap = np.unique((one[both] - 1) * columns + two[both] - 1, return_counts=True)
    return Contingency(one, two, areas, others, codes // columns, codes % columns, overlap)


def object_scores(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """aji, pq, dq, sq, f1, dice (all in [0, 1]) and hausdorff (pixels) of two label maps (H, W), by the rules of
    `Contingency`. Raises ValueError for other shapes, types or negative labels."""
    table = contingency(truth, prediction)
    pq, dq, sq = table.panoptic_quality
    scores = {"aji": table.aji, "pq": pq, "dq": dq, "sq": sq}
    return {**scores, "f1": table.f1, "dice": table.dice, "hausdorff": table.hausdorff}
