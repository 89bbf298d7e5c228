"""Whole images from parts."""

from __future__ import annotations

import numpy as np

from data.patches import Window, even_parts
from data.rows import Patch
from data.scenes import scenes_of


def patch_of(image_id: str, window: Window | None, whole: np.ndarray) -> Patch:
    part = whole if window is None else whole[window.slices]
    place = None if window is None else (window.top, window.left)
    sdf = np.ones((1, 1, *part.shape[:2]), np.float32)
    labels = (part[..., 0] > 99).astype(np.uint8)
    return Patch(f"{image_id}{place}", image_id, "f", part, sdf, labels, (), place)


def test_parts_become_the_image_again() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (31, 44, 3), dtype=np.uint8)
    parts = [patch_of("a", window, whole) for window in even_parts((31, 44), (16, 16))]
    (scene,) = scenes_of(parts)
    assert scene.key == "a"
    assert scene.shape == (31, 44)
    np.testing.assert_array_equal(scene.image, whole)
    np.testing.assert_array_equal(scene.labels, whole[..., 0] > 99)
    draws = [np.stack([p.labels, 1 - p.labels]).astype(np.float32) for p in parts]
    np.testing.assert_array_equal(scene.assemble(draws)[1], whole[..., 0] <= 99)


def test_what_is_no_whole_stays_in_parts() -> None:
    whole = np.zeros((32, 32, 3), np.uint8)
    parts = [patch_of("a", window, whole) for window in even_parts((32, 32), (16, 16))]
    assert len(scenes_of(parts[:3])) == 3  # a corner is missing
    assert len(scenes_of([patch_of("a", None, whole), patch_of("a", None, whole)])) == 2
    assert len(scenes_of([*parts, patch_of("b", None, whole)])) == 2
    clash = [patch_of("x y", w, whole) for w in even_parts((32, 32), (16, 16))]
    clash += [patch_of("x_y", w, whole) for w in even_parts((32, 32), (16, 16))]
    scenes = scenes_of(clash)
    assert len({scene.key for scene in scenes}) == len(scenes)
