"""Whole images from the parts they were cut into, so that scores are those of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np

from data.dataset import Split
from data.names import unique_names
from data.patches import Window
from data.rows import Patch


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

    @property
    def rater_sdfs(self) -> np.ndarray:
        """(R, K, H, W), of each rater; R = 1 where there is a single annotation."""
        return self.assemble([p.sdf for p in self.parts])

    def target(self, representation: str) -> np.ndarray:
        """(R, K, H, W), see `Patch.target`."""
        return self.assemble([p.target(representation) for p in self.parts])


def _windows(parts: Sequence[Patch]) -> tuple[Window, ...] | None:
    """Where the parts lie, moved to start at 0; None unless they are equal in size and raters and
    leave no gap."""
    if any(part.corner is None or part.sdf.shape != parts[0].sdf.shape for part in parts):
        return None
    corners = [part.corner for part in parts if part.corner is not None]
    top, left = (min(corner[i] for corner in corners) for i in (0, 1))
    height, width = parts[0].labels.shape
    windows = tuple(Window(row - top, column - left, height, width) for row, column in corners)
    whole = max(w.top for w in windows) + height, max(w.left for w in windows) + width
    if whole[0] * whole[1] > len(parts) * height * width:
        return None
    covered = np.zeros(whole, bool)
    for window in windows:
        covered[window.slices] = True
    return windows if covered.all() else None


class Scenes(Sequence[Scene]):
    """The images of a split, each put together when it is asked for: of a `Split` no more are in memory.

    keys: of all, in their order. groups: what stays together in a split, of each (`Patch.group`). outlines: the images
    with the patches that they were planned by, of a `Split` those without pixels.
    """

    def __init__(self, patches: Sequence[Patch], plans: Sequence[tuple[Scene, tuple[int, ...]]]) -> None:
        self._patches, self._plans = patches, plans
        self.outlines = [plan for plan, _ in plans]
        self.keys = [plan.key for plan in self.outlines]
        self.groups = [plan.parts[0].group for plan in self.outlines]

    def __len__(self) -> int:
        return len(self._plans)

    @overload
    def __getitem__(self, index: int) -> Scene: ...

    @overload
    def __getitem__(self, index: slice) -> Scenes: ...

    def __getitem__(self, index: int | slice) -> Scene | Scenes:
        if isinstance(index, slice):
            return Scenes(self._patches, self._plans[index])
        plan, places = self._plans[index]
        return replace(plan, parts=tuple(self._patches[i] for i in places))


def scenes_of(patches: Sequence[Patch]) -> Scenes:
    """Parts of one image_id together where they cover it, every other patch by itself; in the order of the first."""
    by_image: dict[str, list[tuple[int, Patch]]] = {}
    for i, patch in enumerate(patches.outlines if isinstance(patches, Split) else patches):
        by_image.setdefault(patch.image_id, []).append((i, patch))
    plans = []
    for image_id, numbered in by_image.items():
        places, parts = zip(*numbered, strict=True)
        windows = _windows(parts) if len(parts) > 1 else None
        if windows is not None:
            plans.append((Scene(image_id, parts, windows), places))
        else:
            plans += [(Scene(p.key, (p,), (Window(0, 0, *p.labels.shape),)), (i,)) for i, p in numbered]
    keys = unique_names([plan.key for plan, _ in plans])
    return Scenes(patches, [(replace(plan, key=key), places) for (plan, places), key in zip(plans, keys, strict=True)])
