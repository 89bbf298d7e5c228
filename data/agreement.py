"""How the raters of prepared images differ: areas, empty masks, pairwise IoU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from data.rows import Patch
from data.scenes import Scene, scenes_of
from evaluation.raters import iou_matrix


@dataclass
class Agreement:
    """Of images with several raters; parts and overlapping patches of an image are put together first.

    areas: of each image the foreground of its raters in pixels, (R,). ious: of its raters among themselves, (R, R), 1
    where both masks are empty. Images may have different numbers of raters R.
    """

    areas: list[np.ndarray] = field(default_factory=list)
    ious: list[np.ndarray] = field(default_factory=list)

    def watching(self, patches: Iterable[tuple[str, Patch]]) -> Iterator[tuple[str, Patch]]:
        """Hands (split, patch) on and takes note of each image; one image in memory at a time."""
        for _, group in groupby(patches, key=lambda item: (item[0], item[1].image_id)):
            items = list(group)
            for scene in scenes_of([patch for _, patch in items]):
                self._add(scene)
            yield from items

    def _add(self, scene: Scene) -> None:
        if scene.raters is not None:
            self.areas.append(scene.raters.sum(axis=(1, 2)))
            self.ious.append(iou_matrix(scene.raters, scene.raters))

    def of_rater(self, k: int) -> np.ndarray:
        """Areas of rater k in the images that have one, 0 for empty masks."""
        return np.array([own[k] for own in self.areas if len(own) > k])

    @property
    def raters(self) -> int:
        """The most of any image."""
        return max(map(len, self.areas), default=0)

    def pairs(self) -> np.ndarray:
        """Mean IoU of each two raters over the images that have both, (R, R); NaN where none has."""
        shape = (len(self.ious), self.raters, self.raters)
        values = np.full(shape, np.nan)
        for own, iou in zip(values, self.ious, strict=True):
            own[: len(iou), : len(iou)] = iou
        known = ~np.isnan(values)
        return np.where(known.any(axis=0), np.nansum(values, axis=0) / np.maximum(known.sum(axis=0), 1), np.nan)

    def lines(self) -> list[str]:
        """What there is to say, a line for all and one for each rater; none without raters."""
        if not self.areas:
            return []
        all_pairs, marked = [], []
        for areas, own in zip(self.areas, self.ious, strict=True):
            one, two = np.triu_indices(len(areas), 1)
            all_pairs.append(own[one, two])
            marked.append(own[one, two][(areas[one] > 0) & (areas[two] > 0)])
        iou, both = (float(np.mean(x)) if len(x := np.concatenate(p)) else float("nan") for p in (all_pairs, marked))
        partly = np.mean([(areas > 0).any() and (areas == 0).any() for areas in self.areas])
        nobody = np.mean([not areas.any() for areas in self.areas])
        lines = [
            f"raters: mean IoU of two {iou:.3f}, {both:.3f} where both marked something; of {len(self.areas)} images "
            f"{100 * partly:.1f} % are empty for some of them only, {100 * nobody:.1f} % for all"
        ]
        for k in range(self.raters):
            areas = self.of_rater(k)
            empty = f"empty in {100 * np.mean(areas == 0):.1f} % of {len(areas)} images"
            if areas.any():
                low, median, high = np.percentile(areas[areas > 0], (25, 50, 75))
                empty = f"area {median:g} pixels (median; quartiles {low:g}, {high:g}), {empty}"
            lines.append(f"rater {k}: {empty}")
        return lines
