"""Whole images from the parts they were cut into, so that scores are those of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.dataset import Patch
from data.images import safe_id
from data.patches import Window


@dataclass(frozen=True)
class Scene:
    """One image to be scored: its parts and where they lie. A later part wins where two overlap.

    key: unique in the split, fit for a file name.
    """

    key: str
    parts: tuple[Patch, ...]
    windows: tuple[Window, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the whole."""
        return max(w.top + w.height for w in self.windows), max(w.left + w.width for w in self.windows)

    def assemble(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Arrays (..., h, w) of the parts to one (..., H, W)."""
        if len(arrays) == 1:
            return arrays[0]
        whole = np.zeros((*arrays[0].shape[:-2], *self.shape), arrays[0].dtype)
        for array, window in zip(arrays, self.windows, strict=True):
            whole[(..., *window.slices)] = array
        return whole

    @cached_property
    def image(self) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8."""
        if self.parts[0].image.ndim == 2:
            return self.assemble([p.image for p in self.parts])
        return self.assemble([p.image.transpose(2, 0, 1) for p in self.parts]).transpose(1, 2, 0)

    @cached_property
    def labels(self) -> np.ndarray:
        """(H, W) uint8, 0 = background, k = the k-th class."""
        return self.assemble([p.labels for p in self.parts])

    @cached_property
    def instances(self) -> np.ndarray | None:
        """(H, W) integers, the object of each pixel, 0 = background; None where no table says it."""
        maps = [p.instances for p in self.parts]
        known = [m for m in maps if m is not None]
        return self.assemble(known) if len(known) == len(maps) else None

    @cached_property
    def raters(self) -> np.ndarray | None:
        """(R, H, W) bool, None where there is a single annotation."""
        if not self.parts[0].raters:
            return None
        return self.assemble([np.stack(p.raters) for p in self.parts])

    @cached_property
    def sdf(self) -> np.ndarray:
        """(K, H, W), a mean over raters."""
        return self.assemble([p.sdf.mean(axis=0) for p in self.parts])


def _windows(parts: Sequence[Patch]) -> tuple[Window, ...] | None:
    """Where the parts lie, moved to start at 0; None unless they are equal in size and leave no gap."""
    if any(part.place is None or part.labels.shape != parts[0].labels.shape for part in parts):
        return None
    places = [part.place for part in parts if part.place is not None]
    top, left = (min(place[i] for place in places) for i in (0, 1))
    size = parts[0].labels.shape
    windows = tuple(Window(row - top, column - left, *size) for row, column in places)
    covered = np.zeros([max(w.top + w.height for w in windows), max(w.left + w.width for w in windows)], bool)
    for window in windows:
        covered[window.slices] = True
    return windows if covered.all() else None


def scenes_of(patches: Sequence[Patch]) -> list[Scene]:
    """Parts of one image_id together where they cover it, every other patch by itself; in the order of the first."""
    by_image: dict[str, list[Patch]] = {}
    for patch in patches:
        by_image.setdefault(patch.image_id, []).append(patch)
    names = [safe_id(image_id) for image_id in by_image]
    scenes = []
    for image_id, parts in by_image.items():
        windows = _windows(parts) if len(parts) > 1 and names.count(safe_id(image_id)) == 1 else None
        if windows is not None:
            scenes.append(Scene(safe_id(image_id), tuple(parts), windows))
        else:
            scenes += [Scene(p.key, (p,), (Window(0, 0, *p.labels.shape),)) for p in parts]
    return scenes
