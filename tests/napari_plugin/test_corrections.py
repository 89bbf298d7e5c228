"""Corrected labels as a folder to train on: what is written, what is refused, what a failure leaves."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.sources.record import Sample
from napari_plugin.corrections import corrected, save_layers, write_correction
from tests.commands import full_disk, listed
from tests.pictures import picture
from utils.errors import DataError, UsageError

LABELS = np.zeros((20, 30), np.int32)
LABELS[2:8, 3:9], LABELS[2:8, 9:12], LABELS[15, 20] = 1, 7, 70_000


def sample_of(folder: Path, name: str, **options: Any) -> Sample:
    """What a training reads of the folder."""
    archive = listed("folder", folder, **options)
    assert archive.problems == []
    (record,) = [record for record in archive.records if record.image_id == name]
    sample = record.read()
    assert sample is not None
    return sample


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 4)])
def test_pixels_and_objects_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert write_correction(tmp_path, "a b", pixels, LABELS) == tmp_path / "labels" / "a_b.png"
    sample = sample_of(tmp_path, "a_b")
    np.testing.assert_array_equal(sample.image, pixels[..., :3] if len(shape) == 3 else pixels)
    assert sample.instances is not None
    np.testing.assert_array_equal(sample.mask, LABELS > 0)
    for value in np.unique(LABELS):  # numbers above 16 bits become others
        assert len(np.unique(sample.instances[value == LABELS])) == 1
    assert len(np.unique(sample.instances)) == len(np.unique(LABELS))


def test_a_file_is_copied_byte_by_byte(tmp_path: Path) -> None:
    file = tmp_path / "given.TIF"
    tifffile.imwrite(file, picture(20, 30).astype(np.uint16) * 200)
    write_correction(tmp_path / "out", "deep", file, np.zeros((20, 30), np.uint8))
    assert (tmp_path / "out" / "images" / "deep.TIF").read_bytes() == file.read_bytes()
    assert not sample_of(tmp_path / "out", "deep").mask.any()  # that nothing is there is an answer as well


def test_classes_go_to_masks(tmp_path: Path) -> None:
    classes = (LABELS > 0).astype(np.uint8) + (LABELS == 7)
    write_correction(tmp_path, "a", picture(20, 30), classes, classes=True)
    sample = sample_of(tmp_path, "a", classes=[1, 2])
    assert sample.classes is not None
    np.testing.assert_array_equal(sample.classes, classes)
    with pytest.raises(UsageError, match="has masks/, and labels/ does not go with it"):
        write_correction(tmp_path, "b", picture(20, 30), LABELS)
    assert corrected(tmp_path) == {"a"}


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    write_correction(tmp_path, "a", picture(20, 30), LABELS)
    before = state(tmp_path)
    with pytest.raises(UsageError, match=r"labels/a\.png: is there already"):
        write_correction(tmp_path, "a", picture(20, 30), LABELS * 0)
    assert state(tmp_path) == before
    write_correction(tmp_path, "a", picture(20, 30), LABELS * 0, replace=True)
    assert not sample_of(tmp_path, "a").mask.any()
    Image.fromarray(picture(20, 30)).save(tmp_path / "other.bmp")
    before = state(tmp_path)
    for replace in (False, True):  # two files of one stem could not be trained on
        with pytest.raises(UsageError, match=r"images/a\.png: another picture|is there already"):
            write_correction(tmp_path, "a", tmp_path / "other.bmp", LABELS, replace=replace)
    assert state(tmp_path) == before


def test_a_folder_of_pictures_without_labels_gets_them(tmp_path: Path) -> None:
    """Also what is left of a process that was killed between picture and labels."""
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(20, 30)).save(tmp_path / "images" / "a.png")
    before = (tmp_path / "images" / "a.png").read_bytes()
    with pytest.raises(UsageError, match=r"images/a\.png: another picture of this name"):
        write_correction(tmp_path, "a", picture(20, 30, seed=5), LABELS)
    write_correction(tmp_path, "a", tmp_path / "images" / "a.png", LABELS)
    assert (tmp_path / "images" / "a.png").read_bytes() == before
    assert sample_of(tmp_path, "a").mask.any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [(LABELS - 1, "whole numbers from 0 on"), (LABELS / 2, "float64"), (LABELS[None], r"shape \(1, 20, 30\)"),
     (LABELS[:19], "mask of 30 x 19, image of 30 x 20")],
)  # fmt: skip
def test_labels_that_are_none(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        write_correction(tmp_path / "out", "a", picture(20, 30), labels)
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    for image in (picture(20, 30) / 255, np.zeros((20, 30, 2), np.uint8), tmp_path / "a.png", tmp_path / "b.png"):
        with pytest.raises((UsageError, DataError), match=r"a: float64|shape|cannot be read|no such file"):
            write_correction(tmp_path / "out", "a", image, LABELS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("replace", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, replace: bool) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 30)).astype(np.uint8)
    if replace:
        write_correction(tmp_path, "a", noise, LABELS)
    before = state(tmp_path)
    for room in (50, 300):  # not even the labels, only these
        with full_disk(room), pytest.raises(OSError, match=r"a\.png"):
            write_correction(tmp_path, "a", 255 - noise, LABELS * 2, replace=replace)
        assert state(tmp_path) == before


def test_a_kill_between_picture_and_labels_is_mended_by_saving_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.parent.name == "labels":
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_correction(tmp_path, "a", picture(20, 30), LABELS)
    assert corrected(tmp_path) == set()
    monkeypatch.setattr(os, "replace", move)
    write_correction(tmp_path, "a", picture(20, 30), LABELS)
    assert sample_of(tmp_path, "a").mask.any()


def layer(data: np.ndarray, name: str = "a", path: str | None = None, **metadata: Any) -> SimpleNamespace:
    return SimpleNamespace(data=data, name=name, metadata=metadata, source=SimpleNamespace(path=path))


def test_layers_that_napari_has_opened_itself(tmp_path: Path) -> None:
    """The file where there is one, under the layer's name; the pixels where there is none."""
    Image.fromarray(picture(20, 30)).save(tmp_path / "mine.bmp")
    labels = layer(LABELS, "Labels")
    save_layers(layer(picture(20, 30), "mine", str(tmp_path / "mine.bmp")), labels, tmp_path / "out")
    save_layers(layer(picture(20, 30), "painted"), labels, tmp_path / "out")
    results = layer(picture(20, 30), "b", str(tmp_path), file=None, picture="from a pyramid")
    save_layers(results, labels, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {
        "mine.bmp", "painted.png", "from_a_pyramid.png"}  # fmt: skip
    with pytest.raises(UsageError, match="an image layer and a labels layer are needed"):
        save_layers(None, labels, tmp_path / "out")
