"""The page on prepared data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import Workspace


@pytest.mark.slow
def test_the_page_says_it(workspace: Workspace) -> None:
    assert workspace("prepare").code == 0
    result = workspace("inspect", "--pictures", "pictures")
    assert result.code == 0
    page = (workspace.path / "prepared" / "inspection.html").read_text()
    assert page.count("<figure>") == 13
    assert page.count('class="charts"') == 1
    assert page.count("Histogram") == 4
    assert "http" not in page.replace("http-equiv", "")
    assert Image.open(workspace.path / "pictures" / "augmented.png").size == (8 * 128, 4 * 128)
    root = workspace.path / "prepared"
    shutil.copy(root / "Training_patches" / "phantom_0001.png", root / "Test_patches" / "phantom_0010.png")
    out = workspace("inspect", "--output", "page.html").out
    assert "!! the same picture in two splits: 1, such as train/phantom_0001 = test/phantom_0010" in out
    assert "the same picture in two splits: 1" in Path("page.html").read_text()


@pytest.mark.slow
def test_the_page_of_classes_raters_and_parts(workspace: Workspace) -> None:
    classes = ["--set", "data.classes=[1, 2]", "--set", "data.phantom.objects=glands_and_lumina"]
    pages = []
    for options in (classes, ["--set", "data.phantom.raters=3"], ["--set", "data.test_patch=[16, 16]"]):
        assert workspace("prepare", *options).code == 0
        result = workspace("inspect", *options, "--pictures", "pictures")
        assert result.code == 0
        assert ("rater 2: area" in result.out) == ("data.phantom.raters=3" in options)
        pages.append((workspace.path / "prepared" / "inspection.html").read_text())
    assert ["mean IoU of raters" in page for page in pages] == [False, True, False]
    assert ["rater 2: area" in page for page in pages] == [False, True, False]
    assert Image.open(workspace.path / "pictures" / "raters.png").size == (1125, 420)
    assert ["16 x 16" in page for page in pages] == [False, False, True]
    assert not any(path.name.startswith(".") for path in (workspace.path / "prepared").iterdir())


def test_hand_made_folders_and_empty_ones(workspace: Workspace) -> None:
    assert workspace("prepare").code == 0
    root = workspace.path / "prepared"
    (root / "dataset.json").unlink()
    (root / "val.csv").write_text("filename,maskname\n")
    (root / "test.csv").unlink()
    out = workspace("inspect", "--set", "data.source=prepared").out
    assert "splits without images: 2, such as val" in out
    assert "The raw images are not at hand" in (root / "inspection.html").read_text()
    assert "no CSV files" in workspace.fails("inspect", "--set", "data.root=nowhere")


def test_groups_in_two_splits_are_a_leak(workspace: Workspace) -> None:
    assert workspace("prepare").code == 0
    for split in ("train", "val", "test"):
        path = workspace.path / "prepared" / f"{split}.csv"
        first, *rows = path.read_text().splitlines()
        path.write_text("\n".join([f"{first},group", *(f"{row},{'a' if split != 'val' else 'b'}" for row in rows)]))
    assert "!! groups in two splits: 1, such as a (test, train)" in workspace("inspect").out


def test_preparing_anew_drops_the_old_page(workspace: Workspace) -> None:
    for command in ("prepare", "inspect"):
        assert workspace(command).code == 0
    assert workspace("prepare", "--set", "data.truncation=5").code == 0
    assert not (workspace.path / "prepared" / "inspection.html").exists()
