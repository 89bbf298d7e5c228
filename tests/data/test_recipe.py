"""What is written of an image: patches, crops, raters, classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.dataset import load_split
from data.patches import Window
from data.recipe import FOLDERS, write_image
from data.sdf import signed_distance
from data.sources.record import Record, Sample
from tests.commands import Workspace, section
from utils.errors import DataError

PATCHES = ["--set", "data.phantom.size=48", "--set", "data.patch=[32, 32]", "--set", "data.stride=[16, 16]"]


PARTS = [*PATCHES, "--set", "data.test_patch=[24, 24]"]


def test_patches_are_cut_from_the_sdf_of_the_whole(workspace: Workspace) -> None:
    result = workspace("prepare", *PARTS)
    assert "(8 train, 2 val, 3 test images; 32, 8, 12 patches)" in result.out
    assert workspace("prepare", "--set", "data.phantom.size=48", "--set", "data.root=whole").code == 0
    table = pd.read_csv(workspace.path / "prepared" / "train.csv")
    assert list(zip(table["top"][:4], table["left"][:4], strict=True)) == [(0, 0), (0, 16), (16, 0), (16, 16)]
    for row in table.to_dict("records"):
        window = Window(row["top"], row["left"], row["height"], row["width"])
        for suffix in ("_sdf.npy", ".png", "_mask.png", "_instances.png"):
            whole = workspace.path / "whole" / "Training_patches" / f"{row['image_id']}{suffix}"
            part = workspace.path / "prepared" / str(row["filename"]).replace(".png", suffix)
            a, b = (np.load(p) if suffix.endswith("npy") else np.asarray(Image.open(p)) for p in (whole, part))
            np.testing.assert_array_equal(a[window.slices], b)


def test_pictures_smaller_than_a_patch_are_named(workspace: Workspace) -> None:
    result = workspace("prepare", "--set", "data.patch=[64, 64]")
    assert result.code == 2
    assert "data.raw: 8 problems" in result.err
    assert "phantom_0000: 32 x 32 pixels, smaller than a patch of 64 x 64" in result.err
    assert not (workspace.path / "prepared").exists()


CLASSES = ["--set", "data.classes=[1, 2]", "--set", "data.phantom.objects=glands_and_lumina"]


def test_class_patches_on_disk(workspace: Workspace) -> None:
    assert workspace("prepare", *CLASSES).code == 0
    root = workspace.path / "prepared"
    row = pd.read_csv(root / "train.csv").iloc[0]
    values, sdf = np.asarray(Image.open(root / row["classname"])), np.load(root / row["maskdtname"])
    assert set(np.unique(values)) == {0, 1, 2}
    for k in (1, 2):
        np.testing.assert_array_equal(sdf[k - 1], signed_distance(values == k, 6))
    patches = load_split(section(root=root, truncation=6, classes=(1, 2)), "train")
    np.testing.assert_array_equal(patches[0].labels, values)
    with pytest.raises(DataError, match=r"holds the value 1; data\.classes are \[2, 3\]"):
        load_split(section(root=root, truncation=6, classes=(2, 3)), "train")
    with pytest.raises(DataError, match=r"expected float32 \(H, W\)"):
        load_split(section(root=root, truncation=6), "train")


def test_raters_and_colour_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = tuple(rng.random((9, 7)) < 0.5 for _ in range(3))
    sample = Sample(rng.integers(0, 255, (9, 7, 3), dtype=np.uint8), masks[0], None, masks)
    record = Record("x", "test", "x", lambda: sample)
    for folder in FOLDERS.values():
        (tmp_path / folder).mkdir()
    (row,) = write_image(record, tmp_path, section(color="rgb", truncation=3)).rows
    names = str(row["raternames"]).split(";")
    assert len(names) == 3
    for name, mask in zip(names, masks, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)) > 0, mask)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / str(row["filename"]))), sample.image)
