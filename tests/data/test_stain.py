"""Stain normalisation: known stains are found, structure stays, pictures without tissue are left alone."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.optimize import nnls

from data.images import read_image
from data.stain import METHODS, StainError, central_stain, fit_stain, normalise, optical_density, stain_densities
from tests.commands import ROOT, Workspace

STAINS = np.array([[0.60, 0.72, 0.35], [0.12, 0.95, 0.28]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
OTHER = np.array([[0.72, 0.62, 0.31], [0.22, 0.90, 0.38]])
OTHER /= np.linalg.norm(OTHER, axis=1, keepdims=True)
TISSUE_IMAGES = ROOT.parent / "shared" / "data" / "monuseg" / "Training" / "Tissue Images"


def densities(seed: int = 0, size: int = 160) -> np.ndarray:
    """Nuclei of haematoxylin on fibres of eosin, (size, size, 2)."""
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.standard_normal((size, size)), sigma) for sigma in (3, 5)]
    nuclei, fibres = ((f - f.mean()) / f.std() for f in fields)
    return np.stack([1.4 * (nuclei > 1.0) + 0.05, np.where(nuclei > 1.0, 0.1, 0.5 + 0.2 * fibres).clip(0)], axis=-1)


def photograph(amounts: np.ndarray, stains: np.ndarray = STAINS) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, 1.0, (*amounts.shape[:2], 3))
    return (255 * np.exp(-amounts @ stains) + noise).round().clip(0, 255).astype(np.uint8)


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((a * b).sum(axis=1), -1, 1)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stains", [STAINS, OTHER], ids=["one scanner", "another"])
def test_known_stains_are_found_in_order(method: str, stains: np.ndarray) -> None:
    found = fit_stain(photograph(densities(), stains), method)
    assert degrees(found.matrix, stains).max() < 6
    assert (found.matrix >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(found.matrix, axis=1), 1, atol=1e-6)


@given(st.lists(st.floats(0, 3), min_size=3, max_size=3))
def test_densities_are_the_non_negative_least_squares(density: list[float]) -> None:
    expected, _ = nnls(STAINS.T, np.array(density))
    found = stain_densities(np.array(density, np.float32), STAINS)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_tissue_from_two_scanners_becomes_alike(method: str) -> None:
    amounts = densities()
    one, two = photograph(amounts), photograph(amounts * [0.7, 1.3], OTHER)
    target = fit_stain(one, method)
    mapped = normalise(two, fit_stain(two, method), target)
    assert np.abs(mapped.astype(int) - one).mean() < 0.35 * np.abs(two.astype(int) - one).mean()
    itself = normalise(one, target, target)
    assert np.abs(itself.astype(int) - one).mean() < 3


def test_structure_and_background_stay() -> None:
    amounts = densities()
    amounts[:40] = 0
    image = photograph(amounts, OTHER)
    source, target = fit_stain(image, "vahadane"), fit_stain(photograph(densities(1)), "vahadane")
    mapped = normalise(image, source, target)
    assert mapped[:40].mean() > 250
    before, after = (optical_density(i)[40:].sum(axis=-1).ravel() for i in (image, mapped))
    assert np.corrcoef(before, after)[0, 1] > 0.98


@pytest.mark.parametrize("method", METHODS)
def test_too_little_tissue_is_said(method: str) -> None:
    with pytest.raises(StainError, match="too little tissue"):
        fit_stain(np.full((50, 50, 3), 250, np.uint8), method)
    with pytest.raises(StainError, match="grey"):
        fit_stain(np.zeros((50, 50), np.uint8), method)
    for value in (0, 60):
        with pytest.raises(StainError, match="one stain"):
            fit_stain(np.full((50, 50, 3), value, np.uint8), method)
    one = photograph(densities() * [1, 0])
    with pytest.raises(StainError, match="one stain"):
        fit_stain(one, method)


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="vahadane, macenko"):
        fit_stain(np.zeros((50, 50, 3), np.uint8), "reinhard")


def test_the_same_picture_gives_the_same_stains() -> None:
    image = photograph(densities())
    one, two = fit_stain(image, "vahadane"), fit_stain(image, "vahadane")
    np.testing.assert_array_equal(one.matrix, two.matrix)


def test_the_central_stain_is_no_outlier() -> None:
    stains = [fit_stain(photograph(densities(seed)), "macenko") for seed in range(3)]
    stains.insert(1, fit_stain(photograph(densities(), OTHER), "macenko"))
    assert central_stain(stains) != 1


def tissue_folder(workspace: Workspace) -> list[str]:
    """Three pictures of tissue, one of them from another scanner, and an empty slide; the options to prepare them."""
    for folder in ("images", "masks"):
        (workspace.path / "raw" / folder).mkdir(parents=True)
    pictures = {name: photograph(densities(seed, 96)) for seed, name in enumerate(("one", "two"))}
    pictures["other"] = photograph(densities(2, 96) * 0.6, OTHER)
    pictures["white"] = np.full((96, 96, 3), 245, np.uint8)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(workspace.path / "raw" / "images" / f"{name}.png")
        Image.fromarray((pixels[..., 0] < 90).astype(np.uint8) * 255).save(
            workspace.path / "raw" / "masks" / f"{name}.png"
        )
    options = ["source=folder", "raw=raw", "color=rgb", "stain=vahadane", "validation_fraction=0", "test_fraction=0"]
    return [a for option in options for a in ("--set", f"data.{option}")]


@pytest.mark.slow
def test_preparation_normalises_and_names_what_it_cannot(workspace: Workspace) -> None:
    options = tissue_folder(workspace)
    result = workspace("prepare", *options)
    assert result.code == 0
    assert result.err.splitlines() == [
        "warning: white: too little tissue (0.0% of the pixels); passed on without stain normalisation"
    ]
    described = json.loads((workspace.path / "prepared" / "dataset.json").read_text())
    target = described["stain_target"]["image"]
    assert target in ("one", "two")
    assert list(described["notes"]) == ["white"]
    pictures = {
        n: read_image(workspace.path / "prepared/Training_patches" / f"{n}.png") for n in ("other", "white", target)
    }
    raw = {n: read_image(workspace.path / "raw/images" / f"{n}.png") for n in pictures}
    np.testing.assert_array_equal(pictures["white"], raw["white"])
    means = {n: p.reshape(-1, 3).mean(axis=0) for n, p in pictures.items()}
    before = np.abs(raw["other"].reshape(-1, 3).mean(axis=0) - raw[target].reshape(-1, 3).mean(axis=0)).mean()
    assert np.abs(means["other"] - means[target]).mean() < 0.5 * before
    assert "up to date" in workspace("prepare", *options).out
    described.pop("stain_version")  # as of data whose stains were found in another way
    (workspace.path / "prepared" / "dataset.json").write_text(json.dumps(described))
    assert "up to date" not in workspace("prepare", *options).out
    assert "up to date" in workspace("prepare", *options).out


@pytest.mark.slow
def test_the_target_can_be_chosen(workspace: Workspace) -> None:
    options = tissue_folder(workspace)
    for target in ("other", "raw/images/two.png"):
        assert workspace("prepare", *options, "--set", f"data.stain_target={target}").code == 0
        described = json.loads((workspace.path / "prepared" / "dataset.json").read_text())
        assert described["stain_target"]["image"] == target
    message = workspace.fails("prepare", *options, "--set", "data.stain_target=three")
    assert "three is neither a file nor an image of the archive (one, other, two, ...)" in message
    message = workspace.fails("prepare", *options, "--set", "data.stain_target=white")
    assert "too little tissue" in message
    for name in ("one", "two", "other"):
        (workspace.path / "raw" / "images" / f"{name}.png").unlink()
        (workspace.path / "raw" / "masks" / f"{name}.png").unlink()
    assert "none of white can be read and has enough tissue" in workspace.fails("prepare", *options)


@pytest.mark.slow
@pytest.mark.skipif(not TISSUE_IMAGES.is_dir(), reason="the MoNuSeg archive is not on this machine")
def test_real_tiles_come_closer_to_each_other() -> None:
    images = [read_image(TISSUE_IMAGES / name)[::4, ::4] for name in sorted(os.listdir(TISSUE_IMAGES))[::5]]
    stains = [fit_stain(image, "vahadane") for image in images]
    target = stains[central_stain(stains)]
    after = [normalise(image, stain, target) for image, stain in zip(images, stains, strict=True)]
    spread = [np.array([i.reshape(-1, 3).mean(axis=0) for i in x]).std(axis=0).mean() for x in (images, after)]
    assert spread[1] < 0.9 * spread[0]
