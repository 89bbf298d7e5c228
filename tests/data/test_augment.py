"""Augmentation: SDFs stay SDFs, the pair stays a pair, and every change is drawn from the one generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from data.augment import (
    Augmentation,
    deform_sdf,
    gaussian_blur,
    jitter_stain,
    random_grid,
    random_symmetry,
    truncated_distance,
)
from data.sdf import boundary_pixels, signed_distance
from tests.commands import section


def augmentation(
    flips: bool = True, truncation: float = 15.0, sdf_scale: float = 1.0, **changes: float
) -> Augmentation:
    """The changes of data.augment."""
    color = "rgb" if "stain" in changes else "grey"
    return Augmentation(section(flips=flips, truncation=truncation, sdf_scale=sdf_scale, color=color, augment=changes))


def blobs(count: int = 4, size: int = 64, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([gaussian_filter(rng.standard_normal((size, size)), 5) > 0.02 for _ in range(count)])


def pairs(truncation: float = 8.0, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures that show their mask, and SDFs."""
    masks = blobs(count)
    sdf = np.stack([signed_distance(mask, truncation) for mask in masks])
    return torch.from_numpy(masks * 155.0 + 50).float()[:, None], torch.from_numpy(sdf)[:, None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(arrays(np.bool_, st.tuples(st.integers(1, 17), st.integers(1, 17))), st.floats(0.7, 9))
def test_distances_are_those_of_the_preparation(mask: np.ndarray, truncation: float) -> None:
    found = truncated_distance(torch.from_numpy(mask), truncation).numpy()
    if not boundary_pixels(mask).any():
        np.testing.assert_allclose(found, truncation, rtol=1e-6)
        return
    np.testing.assert_allclose(found, np.abs(signed_distance(mask, truncation)) * truncation, atol=1e-5)


def test_nothing_asked_nothing_changed() -> None:
    image, sdf = pairs()
    for a, b in zip(augmentation(flips=False)(image, sdf, generator()), (image, sdf), strict=True):
        assert torch.equal(a, b)
    grid, zoom = random_grid(image, generator(), scale=0, rotate=0, elastic=0)
    torch.testing.assert_close(deform_sdf(sdf * 8, grid, zoom, 8.0), sdf * 8, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "change", [{"scale": 0.4}, {"rotate": 180.0}, {"elastic": 4.0}, {"scale": 0.3, "rotate": 30.0, "elastic": 2.0}]
)
def test_deformed_sdfs_are_sdfs_of_the_deformed_picture(change: dict[str, float]) -> None:
    image, sdf = pairs()
    augment = augmentation(flips=False, truncation=8.0, **change)
    moved, field = augment(image, sdf, generator(3))
    assert not torch.equal(field, sdf)
    assert field.abs().max() <= 1
    masks = (field[:, 0] <= 0).numpy()
    seen = moved[:, 0].numpy() > 127  # the picture shows the mask
    inside = seen & masks
    assert 2 * inside.sum() / (seen.sum() + masks.sum()) > 0.97
    # Away from the border, where nothing beyond it counts, the field is the SDF of its own mask.
    for own, mask in zip(field[:, 0].numpy(), masks, strict=True):
        np.testing.assert_allclose(own[8:-8, 8:-8], signed_distance(mask, 8.0)[8:-8, 8:-8], atol=1e-5)


def test_objects_beyond_the_border_are_not_forgotten() -> None:
    """The SDF of a whole image, cut: a gland just outside is known, and still is after a zoom."""
    mask = np.zeros((60, 90), bool)
    mask[20:40, 64:80] = True
    sdf = torch.from_numpy(signed_distance(mask, 10)[:, :60])[None, None]
    zoomed, _ = random_grid(torch.zeros(1, 1, 60, 60), generator(), scale=0, rotate=0, elastic=0)
    field = deform_sdf(sdf * 10, zoomed, torch.ones(1, 1, 1, 1), 10.0)
    assert field[0, 0, 30, 59] == pytest.approx(5, abs=1e-4)


def test_classes_stay_exclusive() -> None:
    masks = blobs(2)
    cores = np.stack([signed_distance(mask, 8.0) < -0.4 for mask in masks])
    channels = [[signed_distance(m & ~c, 8.0), signed_distance(c, 8.0)] for m, c in zip(masks, cores, strict=True)]
    sdf = torch.from_numpy(np.array(channels))
    augment = augmentation(truncation=8.0, scale=0.3, rotate=90.0, elastic=3.0)
    _, field = augment(torch.zeros(2, 1, 64, 64), sdf, generator(1))
    assert ((field <= 0).sum(dim=1) <= 1).all()
    assert all((field[:, k] <= 0).any() for k in (0, 1))


def test_sdf_scale_is_kept() -> None:
    image, sdf = pairs()
    big = augmentation(rotate=45.0, truncation=8.0)(image, sdf, generator())[1]
    small = augmentation(rotate=45.0, truncation=8.0, sdf_scale=0.2)(image, sdf * 0.2, generator())[1]
    torch.testing.assert_close(small, big * 0.2)


@pytest.mark.parametrize("change", ["brightness", "contrast", "gamma", "blur", "noise", "stain"])
def test_intensities_change_the_picture_only(change: str) -> None:
    image = torch.rand(6, 3, 20, 24, generator=generator()) * 255
    sdf = torch.rand(6, 1, 20, 24)
    augment = augmentation(flips=False, **{change: 4.0 if change == "blur" else 0.5})
    changed, same = augment(image, sdf, generator(1))
    assert torch.equal(same, sdf)
    assert changed.shape == image.shape
    assert 0 <= changed.min() <= changed.max() <= 255
    moves = (changed - image).abs().mean(dim=(1, 2, 3))
    assert (moves > 0.05).sum() >= 5
    assert len(moves.unique()) == 6  # each picture has its own
    assert torch.equal(changed, augment(image, sdf, generator(1))[0])


def test_blur_is_a_gaussian() -> None:
    image = torch.rand(2, 3, 40, 40, generator=generator())
    blurred = gaussian_blur(image, torch.tensor([0.8, 2.0]).view(-1, 1, 1, 1))
    for i, sigma in enumerate((0.8, 2.0)):
        expected = gaussian_filter(image[i].numpy(), (0, sigma, sigma), mode="mirror", radius=(0, 6, 6))
        np.testing.assert_allclose(blurred[i].numpy(), expected, atol=1e-5)


def test_stain_jitter_scales_densities() -> None:
    image = torch.rand(2, 3, 8, 8, generator=generator()) * 200 + 50
    change = torch.tensor([[0.2, 0.2], [0.0, 0.0]]).view(2, 2, 1, 1)
    out = jitter_stain(image, change)
    torch.testing.assert_close(out[1], image[1])
    assert (out[0] < image[0]).float().mean() > 0.7  # more of both stains is darker


def test_symmetries_keep_an_sdf_an_sdf() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = np.zeros((12, 12), bool)
    mask[1:5, 2:11] = True
    mask[8, 3] = True
    sdf = torch.from_numpy(signed_distance(mask, 5))[None, None].repeat(64, 1, 1, 1)
    image = torch.from_numpy(mask)[None, None].repeat(64, 1, 1, 1)
    image, sdf = random_symmetry(image, sdf, generator, flips=True, rotations=True)
    for i in range(64):
        np.testing.assert_allclose(sdf[i, 0].numpy(), signed_distance(image[i, 0].numpy(), 5), atol=1e-6)
    assert len({image[i].numpy().tobytes() for i in range(64)}) == 8
    same, _ = random_symmetry(image, sdf, generator, flips=False, rotations=False)
    assert torch.equal(same, image)


@pytest.mark.parametrize("size", [32, 64, 100])
@pytest.mark.parametrize("elastic", [4, 20])
def test_nothing_folds(size: int, elastic: float) -> None:
    """The Jacobian of where pixels come from is positive nearly everywhere, and displacements end near 5 pixels."""
    image = torch.zeros(40, 1, size, size)
    grid, _ = random_grid(image, generator(), scale=0, rotate=0, elastic=elastic)
    across, down = grid.diff(dim=2)[:, :-1], grid.diff(dim=1)[:, :, :-1]
    area = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
    assert (area <= 0).float().mean() < 1e-3
    still, _ = random_grid(image, generator(), scale=0, rotate=0, elastic=0)
    assert 2 < (grid - still).abs().max() < 7
