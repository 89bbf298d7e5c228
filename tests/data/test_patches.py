"""Windows, whole images from parts, raters, classes, crops and the published layout, up to the command line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.dataset import Patch, Reading, load_split
from data.patches import Window, even_parts, overlapping, random_window
from data.scenes import scenes_of
from data.sdf import signed_distance
from tests.conftest import Workspace
from utils.errors import DataError

SIZES = st.tuples(st.integers(8, 90), st.integers(8, 90))


@given(SIZES, SIZES, SIZES)
def test_overlapping_windows_cover_the_picture(
    shape: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]
) -> None:
    if shape[0] < patch[0] or shape[1] < patch[1]:
        with pytest.raises(ValueError, match="smaller than a patch"):
            overlapping(shape, patch, stride)
        return
    stride = min(stride[0], patch[0]), min(stride[1], patch[1])
    windows = overlapping(shape, patch, stride)
    covered = np.zeros(shape, int)
    for window in windows:
        assert covered[window.slices].shape == patch
        covered[window.slices] += 1
    assert covered.min() > 0
    tops = sorted({w.top for w in windows})
    assert all(b - a <= stride[0] for a, b in itertools.pairwise(tops))
    assert len(set(windows)) == len(windows)


@given(SIZES, SIZES)
def test_even_parts_are_equal_and_cover_the_picture(shape: tuple[int, int], most: tuple[int, int]) -> None:
    windows = even_parts(shape, most)
    assert len({(w.height, w.width) for w in windows}) == 1
    assert windows[0].height <= most[0]
    assert windows[0].width <= most[1]
    covered = np.zeros(shape, int)
    for window in windows:
        covered[window.slices] += 1
    assert covered.min() == 1
    assert len(windows) == -(-shape[0] // most[0]) * -(-shape[1] // most[1])


def test_four_even_parts() -> None:
    expected = [Window(top, left, 250, 250) for top in (0, 250) for left in (0, 250)]
    assert even_parts((500, 500), (250, 250)) == expected
    assert len(overlapping((500, 500), (128, 128), (62, 62))) == 49


def test_random_windows_reach_every_place() -> None:
    rng = np.random.default_rng(0)
    seen = {(w.top, w.left) for w in (random_window((9, 10), (8, 8), rng) for _ in range(200))}
    assert seen == {(t, l) for t in range(2) for l in range(3)}  # noqa: E741
    with pytest.raises(ValueError, match="smaller than a crop"):
        random_window((7, 10), (8, 8), rng)


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


# Up to the command line.

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


def test_images_in_parts_are_scored_as_a_whole(workspace: Workspace) -> None:
    for command in ("prepare", "main"):
        assert workspace(command, *PARTS).code == 0
    assert workspace("sample", *PARTS, "--set", "sampling.save_draws=true").code == 0
    folder = next((workspace.run_folder() / "samples").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["images"] == 3
    rows = pd.read_csv(folder / "metrics.csv")
    assert list(rows["image_id"]) == [f"phantom_00{i}" for i in (10, 11, 12)]
    draws = np.load(folder / "phantom_0011" / "draws.npz")["sdf"]
    assert draws.shape == (3, 48, 48)
    np.testing.assert_allclose(np.load(folder / "phantom_0011" / "mmse.npy"), draws.mean(axis=0), atol=1e-5)
    assert Image.open(folder / "phantom_0011" / "mask.png").size == (48, 48)
    # One draw at a time gives the same whole draws.
    options = ["--set", "sampling.save_draws=true", "--set", "sampling.max_batch=1"]
    assert workspace("sample", *PARTS, *options).code == 0
    again = sorted((workspace.run_folder() / "samples").iterdir())[-1]
    np.testing.assert_allclose(np.load(again / "phantom_0011" / "draws.npz")["sdf"], draws, atol=2e-4)


def test_pictures_smaller_than_a_patch_are_named(workspace: Workspace) -> None:
    result = workspace("prepare", "--set", "data.patch=[64, 64]")
    assert result.code == 2
    assert "data.raw: 8 problems" in result.err
    assert "phantom_0000: 32 x 32 pixels, smaller than a patch of 64 x 64" in result.err
    assert not (workspace.path / "prepared").exists()


def test_random_crops_train_and_fixed_ones_test(workspace: Workspace) -> None:
    crop = ["--set", "data.crop=[16, 24]"]
    for command in ("prepare", "main", "sample"):
        assert workspace(command, *crop).code == 0
    tables = {s: pd.read_csv(workspace.path / "prepared" / f"{s}.csv") for s in ("train", "test")}
    assert set(tables["train"]["height"]) == {32}
    assert set(zip(tables["test"]["height"], tables["test"]["width"], strict=True)) == {(16, 24)}
    assert "up to date" in workspace("prepare", *crop).out
    assert "larger than" in workspace.fails("main", "--set", "data.crop=[40, 40]")


def test_one_rater_at_a_time_is_learned(workspace: Workspace) -> None:
    raters = ["--set", "data.phantom.raters=3", "--set", "data.phantom.objects=nuclei"]
    for command in ("prepare", "main", "sample"):
        assert workspace(command, *raters).code == 0
    patches = load_split(workspace.path / "prepared", "train", Reading(rgb=False, truncation=6))
    assert patches[0].sdf.shape == (3, 1, 32, 32)
    for sdf, rater in zip(patches[0].sdf, patches[0].raters, strict=True):
        np.testing.assert_array_equal(sdf[0], signed_distance(rater, 6))


CLASSES = ["--set", "data.classes=[1, 2]", "--set", "data.phantom.objects=glands_and_lumina"]


def test_classes_are_trained_jointly_and_exclude_each_other(workspace: Workspace) -> None:
    for command in ("prepare", "main"):
        assert workspace(command, *CLASSES).code == 0
    assert workspace("sample", *CLASSES, "--set", "sampling.save_draws=true").code == 0
    folder = next((workspace.run_folder() / "samples").iterdir())
    image = folder / "phantom_0011"
    mmse, labels = np.load(image / "mmse.npy"), np.asarray(Image.open(image / "classes.png"))
    assert mmse.shape == np.load(image / "std.npy").shape == (2, 32, 32)
    assert np.load(image / "draws.npz")["sdf"].shape == (3, 2, 32, 32)
    summary = json.loads((folder / "summary.json").read_text())
    expected = np.where(mmse.min(axis=0) < summary["threshold"], 1 + (mmse[1] < mmse[0]), 0)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(np.asarray(Image.open(image / "mask.png")) > 0, labels > 0)
    scores = summary["mmse"]["classes"]
    assert set(scores) == {"1", "2"}
    assert summary["mmse"]["f1"] == pytest.approx((scores["1"]["f1"] + scores["2"]["f1"]) / 2)
    rows = pd.read_csv(folder / "metrics.csv")
    assert rows["f1"][0] == pytest.approx((rows["f1_class_1"][0] + rows["f1_class_2"][0]) / 2)
    assert "data.classes" in workspace.fails("sample", "--set", "data.classes=[2, 1]", *CLASSES[2:])


def test_class_patches_on_disk(workspace: Workspace) -> None:
    assert workspace("prepare", *CLASSES).code == 0
    root = workspace.path / "prepared"
    row = pd.read_csv(root / "train.csv").iloc[0]
    values, sdf = np.asarray(Image.open(root / row["classname"])), np.load(root / row["maskdtname"])
    assert set(np.unique(values)) == {0, 1, 2}
    for k in (1, 2):
        np.testing.assert_array_equal(sdf[k - 1], signed_distance(values == k, 6))
    reading = Reading(rgb=False, truncation=6, classes=(1, 2))
    np.testing.assert_array_equal(load_split(root, "train", reading)[0].labels, values)
    with pytest.raises(DataError, match=r"holds the value 1; data\.classes are \[2, 3\]"):
        load_split(root, "train", Reading(rgb=False, truncation=6, classes=(2, 3)))
    with pytest.raises(DataError, match=r"expected float32 \(H, W\)"):
        load_split(root, "train", Reading(rgb=False, truncation=6))


@pytest.mark.parametrize("divisor", [1, 5])
def test_the_published_layout_trains_as_it_is(workspace: Workspace, divisor: int) -> None:
    """filename, maskname, maskdtname with leading slashes, SDFs divided by 5 or not, no val.csv, no dataset.json."""
    assert workspace("prepare").code == 0
    root = workspace.path / "prepared"
    for split in ("train", "test"):
        table = pd.read_csv(root / f"{split}.csv")[["filename", "maskname", "maskdtname"]]
        for name in table["maskdtname"]:
            np.save(root / name, np.load(root / name) / np.float32(divisor))
        ("/" + table).to_csv(root / f"{split}.csv")
    (root / "val.csv").unlink()
    (root / "dataset.json").unlink()
    options = ["--set", "data.source=prepared", "--set", "data.validation_fraction=0.25"]
    for command in ("main", "sample"):
        assert workspace(command, *options).code == 0
    sdf = np.concatenate([p.sdf for p in load_split(root, "train", Reading(rgb=False, truncation=6))])
    assert (sdf.min(), sdf.max()) == (-1, 1)


def test_an_sdf_with_the_wrong_sign_is_refused(workspace: Workspace) -> None:
    assert workspace("prepare").code == 0
    path = next((workspace.path / "prepared" / "Training_patches").glob("*_sdf.npy"))
    np.save(path, -np.load(path))
    assert "an SDF is negative inside" in workspace.fails("main")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.foreground=[1]"], "foreground: is for source: folder, not phantom"),
        (["data.classes=[1, 2]"], "classes: source: phantom has objects of one kind only"),
        (["data.classes=[1]"], "data.classes"),
        (["data.classes=[1, 1]", "data.source=prepared"], "must be different values from 1 to 255"),
        (["data.stride=[8, 8]"], "stride: [8, 8] needs data.patch"),
        (["data.crop=[16, 16]", "data.test_patch=[16, 16]"], "does not go with data.crop"),
        (["data.size=[32, 32]", "data.patch=[64, 64]"], "patch: [64, 64] is larger than data.size: [32, 32]"),
        (["data.augment.stain=0.2"], "augment.stain: needs data.color: rgb"),
        (["data.source=lidc"], "source: lidc needs data.raw"),
        (["data.stain=reinhard"], "data.stain: 'reinhard' is not allowed"),
    ],
)
def test_impossible_combinations(workspace: Workspace, options: list[str], message: str) -> None:
    arguments = [a for option in options for a in ("--set", option)]
    assert message in workspace.fails("prepare", *arguments)
    assert [path.name for path in Path(".").iterdir()] == ["config.yaml"]
