"""Whole images by tiles and bands: draws without seams, memory that suffices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.baselines import Baseline
from models.denoiser import Denoiser, build_denoiser
from models.uncertainty import DropoutDraws
from models.unet import Sizes
from sampling.drawer import drawer_of
from sampling.sampler import Sampler
from sampling.tiled import tiled_of
from sampling.tiling import Tiling, tiling_of
from sde.predictor_corrector import predictor_corrector
from sde.process import VE
from sde.samplers import ancestral, heun, posterior_mean
from tests.commands import Workspace
from tests.networks import Pixelwise, blurred, maps, tiled
from utils.config import load_config
from utils.errors import ConfigError

SPREAD = 0.3  # standard deviation of m given the image


WHOLE = 2**34  # memory for one band


class Neighbours(Pixelwise):
    """The same with the image and the state averaged over 3 x 3 pixels first, so that borders matter."""

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        return super().forward(F.avg_pool2d(z, 3, 1, 1), t, [F.avg_pool2d(features[0], 3, 1, 1)])


def unet() -> Denoiser:
    """A small conditional U-Net whose weights say something, as after a training."""
    torch.manual_seed(0)
    model = build_denoiser(VE(0.01, 5.0), "edm", 1, 1, Sizes(8, [1, 2]), Sizes(8, [1, 2]))
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (20, 20), (90, 75)])
@pytest.mark.parametrize("steps", ["ancestral", "heun", "pc"])
def test_draws_of_a_local_denoiser_are_those_without_tiles(shape: tuple[int, int], steps: str) -> None:
    samplers: dict[str, Sampler] = {
        "ancestral": partial(ancestral, steps=5),
        "heun": partial(heun, steps=4),
        "pc": partial(predictor_corrector, steps=6),
    }
    image = blurred(*shape)
    by_tiles = maps(tiled(Pixelwise(), 3, samplers[steps]), image)
    whole = maps(tiled(Pixelwise(), 3, samplers[steps], tile=max(32, *shape) - 1), image)  # 2 tiles, nearly all of it
    assert whole[1].max() > 0.01
    for one, other in zip(by_tiles[:2], whole[:2], strict=True):
        assert one.shape == (1, *shape)
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_denoiser_that_looks_less_far_than_tiles_overlap() -> None:
    image = blurred(90, 90)
    by_tiles, whole = (maps(tiled(Neighbours(), 1, overlap=0.5, tile=tile), image)[0] for tile in (32, 89))
    assert np.sqrt(np.mean((by_tiles - whole) ** 2)) < 0.01 * whole.std()


def overlaps(tiling: Tiling) -> np.ndarray:
    """Pixels of more than one tile, (H, W) bool."""
    count = np.zeros(tiling.shape)
    for window in tiling.windows:
        count[window.slices] += 1
    return count > 1


def test_draws_spread_as_much_where_tiles_overlap() -> None:
    image = blurred(80, 80)
    std = maps(tiled(Pixelwise(), 40, partial(heun, steps=12)), image)[1]
    inside = overlaps(tiling_of((80, 80), 32, 0.25))
    variance = std[0] ** 2
    assert np.sqrt(variance[inside].mean() / variance[~inside].mean()) == pytest.approx(1, abs=0.02)


def dropping() -> DropoutDraws:
    """Dropout at two resolutions of a network that looks at 2 x 2 pixels only."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 1), nn.Dropout(0.3), nn.AvgPool2d(2), nn.Dropout(0.3), nn.Upsample(scale_factor=2)]
    return DropoutDraws(Baseline(VE(), nn.Sequential(*layers, nn.Conv2d(16, 1, 1)), 2, 1).eval())


@pytest.mark.parametrize("most", [1, 7, 16])
def test_a_dropout_draw_has_one_set_of_units_for_all_tiles(most: int) -> None:
    """Units of each tile's own would lose half of the variance in the middle of an overlap."""
    image, options = blurred(80, 80), {"draws": 12, "sampler": posterior_mean, "overlap": 0.5}
    assert all(top % 2 == 0 for top in tiling_of((80, 80), 32, 0.5).tops)
    drawn, seen, whole = tiled(dropping(), **options), [], []  # type: ignore[arg-type, var-annotated]
    drawn.drawer.max_batch = most
    list(drawn(lambda window: image, (80, 80), "image", seen.append))
    list(tiled(dropping(), **{**options, "tile": 128})(lambda window: image, (80, 80), "image", whole.append))  # type: ignore[arg-type]
    np.testing.assert_allclose(seen, whole, atol=1e-5)
    assert np.std(seen, axis=0).min() > 1e-3


def test_dropout_draws_spread_as_much_where_tiles_overlap() -> None:
    """Also where corners of tiles are no multiples of the coarser layer's 2 pixels."""
    image = np.full((1, 75, 75), 90, np.uint8)
    tiling = tiling_of((75, 75), 32, 0.25)
    assert any(top % 2 for top in tiling.tops)
    variance = maps(tiled(dropping(), 60, posterior_mean), image)[1][0] ** 2
    inside = overlaps(tiling)
    assert variance[inside].mean() / variance[~inside].mean() == pytest.approx(1, abs=0.1)


def seam(image: np.ndarray, edges: Sequence[int]) -> float:
    """Mean absolute difference of neighbouring rows across `edges`, over that elsewhere."""
    steps = np.abs(np.diff(image, axis=-2)).mean(axis=(0, -1))
    at = np.isin(np.arange(1, image.shape[-2]), edges)
    return float(steps[at].mean() / steps[~at].mean())


def test_a_network_leaves_no_seams() -> None:
    image = blurred(80, 80)
    model = unet()
    tiling = tiling_of((80, 80), 32, 0.25)
    edges = [*tiling.tops[1:], *(top + 32 for top in tiling.tops[:-1])]
    sampler = partial(ancestral, steps=3)
    draw, mmse, std = maps(tiled(model, 1, sampler), image)[0], *maps(tiled(model, 6, sampler), image)[:2]
    assert draw.std() > 0.1
    for field in (draw, mmse, std):
        assert seam(field, edges) < 1.15
        assert seam(field.transpose(0, 2, 1), edges) < 1.15
    # The measure sees what it is to see: tiles that are put side by side.
    plain = np.concatenate([maps(tiled(model, 6, sampler), image[:, i : i + 20])[0] for i in range(0, 80, 20)], axis=1)
    assert seam(plain, [20, 40, 60]) > 1.5


def test_bands_are_one_image() -> None:
    image = blurred(200, 40)
    one, bands = (maps(tiled(Neighbours(), 3, overlap=0.25, memory=memory), image) for memory in (WHOLE, 1))
    scale = one[0].std()
    for a, b in zip(one[:2], bands[:2], strict=True):
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.01 * scale
    exact = [maps(tiled(Pixelwise(), 3, memory=memory), image) for memory in (WHOLE, 1)]
    for a, b in zip(*exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("memory", [1, WHOLE])
def test_draws_do_not_depend_on_max_batch(memory: int) -> None:
    image, model = blurred(64, 40), unet()
    results, evaluated = [], []
    for most in (16, 3):
        drawn = tiled(model, 2, partial(ancestral, steps=3), memory=memory)
        drawn.drawer.max_batch = most
        results.append(maps(drawn, image))
        evaluated.append(drawn.drawer.evaluations)
    assert evaluated == [3, 3]
    for one, other in zip(results[0][:2], results[1][:2], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_moments_in_one_evaluation() -> None:
    image = blurred(150, 70)
    mmse, std, probability, labels = maps(tiled(Pixelwise(), 0, memory=1), image)
    truth = image / 127.5 - 1
    np.testing.assert_allclose(mmse, truth, atol=1e-5)
    np.testing.assert_allclose(std, SPREAD, atol=1e-5)
    np.testing.assert_array_equal(labels, mmse[0] < 0)
    assert ((probability > 0.5) == (labels > 0)).mean() > 0.999


def test_the_posterior_mean_needs_no_second_moment() -> None:
    image = blurred(50, 50)
    mmse, std, _, _ = maps(tiled(Pixelwise(), 1, partial(posterior_mean)), image)
    assert abs(float((mmse - (image / 127.5 - 1)).std())) < 0.03
    assert std.max() == 0


def test_draws_end_when_the_mean_is_sure_enough() -> None:
    counts = []
    for most in (16, 3):
        drawn = tiled(Pixelwise(), 64, standard_error=0.08)
        drawn.drawer.max_batch = most
        _, std, probability, _ = maps(drawn, blurred(40, 40))
        whole = (n for n in range(4, 65, 4) if np.allclose(probability * n, np.round(probability * n), atol=1e-4))
        counts.append(next(whole))
        spread = np.sqrt(np.mean(std**2))
        assert spread / np.sqrt(counts[-1]) <= 0.08
        assert spread / np.sqrt(counts[-1] - 4) > 0.075  # one round less was not enough, but for the spread's own noise
    assert counts[0] == counts[1] < 64


def test_settings_are_those_of_the_config(trained: Workspace) -> None:
    config = load_config("config.yaml", ["sampling.tile=24", "sampling.tile_overlap=0.5"])
    model = unet()
    drawer = drawer_of(config, model)
    drawn = tiled_of(config.sampling, drawer, 32)
    assert (drawn.tile, drawn.overlap, drawn.draws) == (24, 0.5, 3)
    assert drawer.threshold == pytest.approx(0.5 / 6)
    assert tiled_of(load_config("config.yaml").sampling, drawer, 32).tile == 32
    for nonsense in ("tile=0", "tile=15", "tile_overlap=0.6", "tile_overlap=-0.1"):
        with pytest.raises(ConfigError, match=r"sampling\.tile"):
            load_config("config.yaml", [f"sampling.{nonsense}"])


def test_it_is_known_whether_one_band_is_enough() -> None:
    image = blurred(160, 40)
    for memory in (1, WHOLE):
        drawn = tiled(Pixelwise(), 3, memory=memory)
        bands = list(drawn(lambda w: image[(slice(None), *w.slices)], (160, 40), "image"))
        assert drawn.in_one_band((160, 40)) == (len(bands) == 1) == (memory == WHOLE)


@pytest.mark.parametrize("memory", [1, WHOLE])
@pytest.mark.parametrize("draws", [0, 3])
def test_glass_is_background_without_an_evaluation(draws: int, memory: int) -> None:
    """White right half: where only tiles of glass are, draws are background; elsewhere they are what they were, but
    where the denoised tiles meet the others. It saves as many evaluations as tiles."""
    image = blurred(160, 160)
    image[..., 72:] = 255
    whole, skipped = (tiled(Pixelwise(), draws, skip_glass=skip, overlap=0.0, memory=memory) for skip in (False, True))
    mmse, std, *_, labels = maps(skipped, image)
    before = maps(whole, image)
    tiles = tiling_of((160, 160), 32, 0.0)
    assert len(tiles.lefts) == 5
    for found, other in zip((mmse, std), before, strict=False):
        np.testing.assert_array_equal(found[..., :96], other[..., :96])
    assert (mmse[..., 96:] == 1).all()
    assert (std[..., 96:] == 0).all()
    assert not labels[:, 96:].any()
    costs = [[band.nfe for band in drawer(lambda w: image[(slice(None), *w.slices)], (160, 160), "image")]
             for drawer in (whole, skipped)]  # fmt: skip
    np.testing.assert_allclose(costs[1], 0.6 * np.array(costs[0]))


def test_a_picture_of_glass_alone() -> None:
    image = np.full((1, 70, 70), 255, np.uint8)
    mmse, std, probability, labels = maps(tiled(Pixelwise(), 2, skip_glass=True), image)
    np.testing.assert_allclose(mmse, 1, atol=1e-6)
    np.testing.assert_allclose(std, 0, atol=1e-6)
    assert not probability.any()
    assert not labels.any()


@pytest.mark.parametrize(("draws", "error"), [(0, None), (7, None), (40, 10.0)])
def test_progress_is_told_by_tiles_and_adds_up(draws: int, error: float | None) -> None:
    """Bands that end early, too."""
    image, told = blurred(300, 60), list[float]()
    drawer = tiled(Pixelwise(), draws, memory=1, standard_error=error)
    bands = list(drawer(lambda w: image[(slice(None), *w.slices)], (300, 60), "image", tick=told.append))
    assert len(told) >= len(bands) > 3
    assert sum(told) == pytest.approx(1)
    assert min(told) >= 0
