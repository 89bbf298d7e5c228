"""Whole images by tiles and bands: draws without seams, memory that suffices, files that appear whole."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.patches import Window
from models.denoiser import build_denoiser
from results.tiff import BandWriter
from sampling.drawer import Drawer, drawer_of
from sampling.memory import batches
from sampling.sampler import Sampler, sampler_of
from sampling.tiled import Band, TiledDrawer, tiled_of
from sampling.tiling import Tiling, tiling_of
from sde.predictor_corrector import predictor_corrector
from sde.process import VE
from sde.samplers import ancestral, heun, posterior_mean
from tests.conftest import Workspace
from utils.config import ConfigError, load_config
from utils.errors import UsageError

SPREAD = 0.3  # standard deviation of m given the image
WHOLE = 2**34  # memory for one band


class Pixelwise(nn.Module):
    """m ~ N(x, SPREAD^2) at every pixel on its own, x being the image in [-1, 1]: the denoiser is known."""

    mask_channels, second_moment = 1, True

    def __init__(self) -> None:
        super().__init__()
        self.process = VE(0.01, 5.0)

    def features(self, image: Tensor) -> list[Tensor]:
        return [image[:, :1]]

    def encode(self, image: Tensor) -> list[Tensor]:
        return self.features(image)

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        variance = self.process.sigma(t).item() ** 2
        return features[0] + SPREAD**2 / (SPREAD**2 + variance) * (z - features[0])

    def direct_moments(self, features: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        return features[0], torch.full_like(features[0], SPREAD**2)


class Neighbours(Pixelwise):
    """The same with the image and the state averaged over 3 x 3 pixels first, so that borders matter."""

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        return super().forward(F.avg_pool2d(z, 3, 1, 1), t, [F.avg_pool2d(features[0], 3, 1, 1)])


def unet() -> nn.Module:
    """A small conditional U-Net whose weights say something, as after a training."""
    torch.manual_seed(0)
    model = build_denoiser(
        VE(0.01, 5.0), "edm", image_channels=1, channels=8, multipliers=[1, 2], blocks=1, attention=[],
        encoder_channels=8, encoder_multipliers=[1, 2], encoder_blocks=1, encoder_attention=[], dropout=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    return model.eval()


def picture(height: int, width: int) -> np.ndarray:
    """(1, H, W) uint8, blobs of some 10 pixels."""
    noise = torch.randn(1, 1, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(1))
    smooth = F.interpolate(noise, (height, width), mode="bicubic")[0]
    return (127.5 + 60 * smooth).clamp(0, 255).to(torch.uint8).numpy()


def tiled(model: nn.Module, draws: int, sampler: Sampler | None = None, **changes: object) -> TiledDrawer:
    sampler = sampler or partial(ancestral, steps=5)
    cpu = torch.device("cpu")
    drawer = Drawer(model, sampler, 3, 16, 1.0, cpu, channels_last=False, bfloat16=False)  # type: ignore[arg-type]
    options = {"tile": 32, "overlap": 0.25, "memory": WHOLE, **changes}
    return TiledDrawer(drawer, draws=draws, threshold=0.0, **options)  # type: ignore[arg-type]


def maps(tiled: TiledDrawer, image: np.ndarray) -> list[np.ndarray]:
    """MMSE, std, probability and labels of the whole, after a look at how the bands follow each other."""
    asked: list[Window] = []

    def read(window: Window) -> np.ndarray:
        asked.append(window)
        return np.ascontiguousarray(image[(slice(None), *window.slices)])

    bands = list(tiled(read, image.shape[1:], "image"))  # type: ignore[arg-type]
    ends = np.cumsum([len(band.labels) for band in bands]).tolist()
    assert [band.top for band in bands] == [0, *ends[:-1]]
    assert ends[-1] == image.shape[1]
    assert max(window.height for window in asked) < image.shape[1] or len(bands) == 1
    names = ("mmse", "std", "probability", "labels")
    return [np.concatenate([getattr(band, name) for band in bands], axis=-2) for name in names]


@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (20, 20), (90, 75)])
@pytest.mark.parametrize("steps", ["ancestral", "heun", "pc"])
def test_draws_of_a_local_denoiser_are_those_without_tiles(shape: tuple[int, int], steps: str) -> None:
    samplers: dict[str, Sampler] = {
        "ancestral": partial(ancestral, steps=5),
        "heun": partial(heun, steps=4),
        "pc": partial(predictor_corrector, steps=6),
    }
    image = picture(*shape)
    by_tiles = maps(tiled(Pixelwise(), 3, samplers[steps]), image)
    whole = maps(tiled(Pixelwise(), 3, samplers[steps], tile=256), image)
    assert whole[1].max() > 0.01
    for one, other in zip(by_tiles[:2], whole[:2], strict=True):
        assert one.shape == (1, *shape)
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_denoiser_that_looks_less_far_than_tiles_overlap() -> None:
    image = picture(90, 90)
    by_tiles, whole = (maps(tiled(Neighbours(), 1, overlap=0.5, tile=tile), image)[0] for tile in (32, 256))
    assert np.sqrt(np.mean((by_tiles - whole) ** 2)) < 0.01 * whole.std()


def overlaps(tiling: Tiling) -> np.ndarray:
    """Pixels of more than one tile, (H, W) bool."""
    count = np.zeros(tiling.shape)
    for window in tiling.windows:
        count[window.slices] += 1
    return count > 1


def test_draws_spread_as_much_where_tiles_overlap() -> None:
    image = picture(80, 80)
    std = maps(tiled(Pixelwise(), 40, partial(heun, steps=12)), image)[1]
    inside = overlaps(tiling_of((80, 80), 32, 0.25))
    variance = std[0] ** 2
    assert np.sqrt(variance[inside].mean() / variance[~inside].mean()) == pytest.approx(1, abs=0.02)


def seam(image: np.ndarray, edges: Sequence[int]) -> float:
    """Mean absolute difference of neighbouring rows across `edges`, over that elsewhere."""
    steps = np.abs(np.diff(image, axis=-2)).mean(axis=(0, -1))
    at = np.isin(np.arange(1, image.shape[-2]), edges)
    return float(steps[at].mean() / steps[~at].mean())


def test_a_network_leaves_no_seams() -> None:
    image = picture(80, 80)
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
    image = picture(200, 40)
    one, bands = (maps(tiled(Neighbours(), 3, overlap=0.25, memory=memory), image) for memory in (WHOLE, 1))
    scale = one[0].std()
    for a, b in zip(one[:2], bands[:2], strict=True):
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.01 * scale
    exact = [maps(tiled(Pixelwise(), 3, memory=memory), image) for memory in (WHOLE, 1)]
    for a, b in zip(*exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("memory", [1, WHOLE])
def test_draws_do_not_depend_on_max_batch(memory: int) -> None:
    image, model = picture(64, 40), unet()
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
    image = picture(150, 70)
    mmse, std, probability, labels = maps(tiled(Pixelwise(), 0, memory=1), image)
    truth = image / 127.5 - 1
    np.testing.assert_allclose(mmse, truth, atol=1e-5)
    np.testing.assert_allclose(std, SPREAD, atol=1e-5)
    np.testing.assert_array_equal(labels, mmse[0] < 0)
    assert ((probability > 0.5) == (labels > 0)).mean() > 0.999


def test_the_posterior_mean_needs_no_second_moment() -> None:
    image = picture(50, 50)
    mmse, std, _, _ = maps(tiled(Pixelwise(), 1, partial(posterior_mean)), image)
    assert abs(float((mmse - (image / 127.5 - 1)).std())) < 0.03
    assert std.max() == 0


def test_draws_end_when_the_mean_is_sure_enough() -> None:
    counts = []
    for most in (16, 3):
        drawn = tiled(Pixelwise(), 64, standard_error=0.08)
        drawn.drawer.max_batch = most
        _, std, probability, _ = maps(drawn, picture(40, 40))
        whole = (n for n in range(4, 65, 4) if np.allclose(probability * n, np.round(probability * n), atol=1e-4))
        counts.append(next(whole))
        spread = np.sqrt(np.mean(std**2))
        assert spread / np.sqrt(counts[-1]) <= 0.08
        assert spread / np.sqrt(counts[-1] - 4) > 0.075  # one round less was not enough, but for the spread's own noise
    assert counts[0] == counts[1] < 64


class Hungry(Pixelwise):
    """Has memory for a few tiles only."""

    room = 3

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        if len(z) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore of it.")
        return super().forward(z, t, features)


def test_batches_shrink_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    image = picture(70, 70)
    hungry = tiled(Hungry(), 2)
    with caplog.at_level(logging.WARNING):
        result = maps(hungry, image)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 16 at once; going on with sampling.max_batch 8",
        "out of memory with 8 at once; going on with sampling.max_batch 4",
        "out of memory with 4 at once; going on with sampling.max_batch 2",
    ]
    np.testing.assert_allclose(result[0], maps(tiled(Pixelwise(), 2), image)[0], atol=1e-5)


def test_patches_are_drawn_in_batches_that_fit() -> None:
    images = torch.from_numpy(np.stack([picture(16, 16)] * 2))
    hungry, plain = tiled(Hungry(), 0).drawer, tiled(Pixelwise(), 0).drawer
    drawn, expected = (list(d(images, ["a", "b"], 5)) for d in (hungry, plain))
    assert hungry.max_batch == 2
    assert [i for i, _ in drawn] == [0] * 5 + [1] * 5
    for (_, one), (_, other) in zip(drawn, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_single_tile_without_room_is_a_usage_error() -> None:
    hungry = tiled(Hungry(), 2)
    hungry.drawer.denoiser.room = 0  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"out of memory with a single .* \(CUDA out of memory"):
        maps(hungry, picture(40, 40))


@pytest.mark.parametrize(
    ("error", "halved"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_only_lack_of_memory_halves(error: Exception, halved: bool) -> None:
    drawer = tiled(Pixelwise(), 0).drawer
    failed: list[slice] = []

    def evaluate(part: slice) -> slice:
        if not failed:
            failed.append(part)
            raise error
        return part

    if halved:
        assert [part for part, _ in batches(drawer, 5, evaluate)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    else:
        with pytest.raises(RuntimeError, match="shapes"):
            list(batches(drawer, 5, evaluate))


def random_bands(shape: tuple[int, int], classes: int, heights: Sequence[int]) -> list[Band]:
    rng = np.random.default_rng(0)
    tops = np.cumsum([0, *heights[:-1]])
    return [
        Band(
            int(top),
            rng.normal(size=(classes, n, shape[1])).astype(np.float32),
            rng.random((classes, n, shape[1]), np.float32),
            rng.random((n, shape[1]), np.float32),
            rng.integers(0, classes + 1, (n, shape[1]), np.uint8),
        )
        for top, n in zip(tops, heights, strict=True)
    ]


@pytest.mark.parametrize(
    ("shape", "classes", "heights"),
    [((1, 1), 1, [1]), ((7, 700), 1, [7]), ((600, 300), 1, [100, 1, 450, 49]), ((300, 260), 2, [290, 10])],
)
def test_tiff_files_are_the_maps(tmp_path: Path, shape: tuple[int, int], classes: int, heights: list[int]) -> None:
    bands = random_bands(shape, classes, heights)
    with BandWriter(tmp_path, shape, classes) as writer:
        for band in bands:
            writer.add(band)
    found = {path.name: tifffile.imread(path) for path in tmp_path.iterdir()}
    names = {"mmse.tif", "std.tif", "mask.tif", "probability.tif"} | ({"classes.tif"} if classes > 1 else set())
    assert set(found) == names
    for name in ("mmse", "std"):
        whole = np.concatenate([getattr(band, name) for band in bands], axis=1)
        np.testing.assert_array_equal(found[f"{name}.tif"], whole[0] if classes == 1 else whole.transpose(1, 2, 0))
    labels = np.concatenate([band.labels for band in bands])
    np.testing.assert_array_equal(found["mask.tif"], (labels > 0) * np.uint8(255))
    probability = np.concatenate([band.probability for band in bands])
    np.testing.assert_array_equal(found["probability.tif"], np.round(probability * 255).astype(np.uint8))
    if classes > 1:
        np.testing.assert_array_equal(found["classes.tif"], labels)
    with tifffile.TiffFile(tmp_path / "mmse.tif") as file:
        page = file.pages[0]
        assert page.is_tiled  # type: ignore[union-attr]
        assert page.dtype == np.float32


@pytest.mark.parametrize("heights", [[], [10], [300], [300, 299]])
def test_an_image_that_fails_leaves_no_thread(tmp_path: Path, heights: list[int]) -> None:
    def interrupted() -> None:
        with BandWriter(tmp_path, (600, 300)) as writer:
            for band in random_bands((600, 300), 1, heights) if heights else []:
                writer.add(band)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not [thread.name for thread in threading.enumerate() if thread.name.endswith(".tif")]


def test_bands_must_make_up_the_image(tmp_path: Path) -> None:
    (band,) = random_bands((10, 30), 1, [10])
    with pytest.raises(ValueError, match="10 of 11 rows"), BandWriter(tmp_path, (11, 30)) as writer:
        writer.add(band)
    with pytest.raises(ValueError, match="rows of shape"), BandWriter(tmp_path, (9, 30)) as writer:
        writer.add(band)
    with pytest.raises(FileNotFoundError), BandWriter(tmp_path / "nowhere", (10, 30)) as writer:
        writer.add(band)


def test_settings_are_those_of_the_config(trained: Workspace) -> None:
    config = load_config("config.yaml", ["sampling.tile=24", "sampling.tile_overlap=0.5"])
    model = unet()
    drawer = drawer_of(config, model, sampler_of(config.sampling))  # type: ignore[arg-type]
    drawn = tiled_of(config, drawer, 32)
    assert (drawn.tile, drawn.overlap, drawn.draws) == (24, 0.5, 3)
    assert drawn.threshold == pytest.approx(0.03)
    assert tiled_of(load_config("config.yaml"), drawer, 32).tile == 32
    for nonsense in ("tile=0", "tile=15", "tile_overlap=0.6", "tile_overlap=-0.1"):
        with pytest.raises(ConfigError, match=r"sampling\.tile"):
            load_config("config.yaml", [f"sampling.{nonsense}"])
