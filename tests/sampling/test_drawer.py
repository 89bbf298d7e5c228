"""Draws: the same in any batch and order, on features computed once, until the mean is sure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from data.dataset import Split, load_split
from data.scenes import scenes_of
from models.denoiser import Draw
from models.pooled import PooledDraws, views_of
from models.unet import ImageEncoder
from sampling.drawer import Drawer, drawer_of, scene_groups
from sampling.loading import load_denoiser
from sampling.sampler import sampler_of
from sde.process import VP
from tests.commands import Workspace, section, shake_checkpoint
from tests.networks import direct_denoiser, shake
from utils.config import load_config
from utils.sections import SamplingConfig


@pytest.mark.slow
def test_designed_draws_are_sampled(trained: Workspace) -> None:
    options = ["--set", "sampling.save_draws=true", "--set", "sampling.animate=false"]
    folders = []
    for design in ("independent", "antithetic"):
        assert trained("sample", *options, "--set", f"sampling.noise={design}").code == 0
        folders.append(sorted((trained.run_folder() / "samples").iterdir())[-1])
    one, two = (np.load(folder / "phantom_0010" / "draws.npz")["sdf"] for folder in folders)
    np.testing.assert_allclose(one[0::2], two[0::2], atol=2e-4)
    assert not np.allclose(one[1], two[1])


@pytest.mark.slow
def test_draws_until_the_mean_is_sure(trained: Workspace) -> None:
    auto = ["--set", "sampling.draws=auto", "--set", "sampling.most_draws=12", "--set", "sampling.animate=false"]
    counts = {}
    for tolerance in ("10", "1e-6"):
        assert trained("sample", *auto, "--set", f"sampling.standard_error={tolerance}").code == 0
        folder = sorted((trained.run_folder() / "samples").iterdir())[-1]
        counts[tolerance] = pd.read_csv(folder / "metrics.csv")["draws"].tolist()
    assert counts == {"10": [4, 4, 4], "1e-6": [12, 12, 12]}
    fixed = ["--set", "sampling.draws=12", "--set", "sampling.animate=false"]
    assert trained("sample", *fixed).code == 0
    again = sorted((trained.run_folder() / "samples").iterdir())[-1]
    for image in pd.read_csv(folder / "metrics.csv")["image_id"]:
        np.testing.assert_allclose(np.load(folder / image / "mmse.npy"), np.load(again / image / "mmse.npy"), atol=1e-5)


@pytest.mark.parametrize("sampler", ["heun", "pc"])
def test_a_draw_is_the_same_in_any_batch_and_order(trained: Workspace, sampler: str) -> None:
    shake_checkpoint(trained.run_folder(), scale=0.03)
    config = load_config(trained.path / "config.yaml", [f"sampling.sampler={sampler}", "sampling.steps=10"])
    denoiser = load_denoiser(config, trained.run_folder() / "checkpoints" / "best.pt", torch.device("cpu"))
    images = torch.randint(0, 255, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def draw(order: list[int], batch: int, draws: int) -> dict[tuple[int, int], torch.Tensor]:
        drawer = drawer_of(config, denoiser)
        drawer.max_batch = batch
        seen: dict[tuple[int, int], torch.Tensor] = {}
        for i, sdf in drawer(images[order], [f"image{k}" for k in order], draws):
            number = sum(key[0] == order[i] for key in seen)
            seen[order[i], number] = sdf
        return seen

    reference = draw([0, 1, 2], 64, 3)
    assert reference[0, 0].std() > 0.01
    assert not torch.allclose(reference[0, 0], reference[0, 1], atol=1e-2)
    for order, batch, draws in (([2, 0, 1], 2, 3), ([1], 1, 2), ([0, 2], 5, 1)):
        for key, sdf in draw(order, batch, draws).items():
            torch.testing.assert_close(sdf, reference[key], atol=2e-4, rtol=0)


@torch.no_grad()
def test_small_batches_are_of_few_views_and_draws_come_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = direct_denoiser(process=VP(), distribution=True)
    shake(model)
    pool, batches = PooledDraws([model.eval()], views_of(True, True, True)), []
    of_draws = pool.of_draws

    def noting(features: list[torch.Tensor], rows: torch.Tensor, draws: list[Draw]) -> list[torch.Tensor]:
        batches.append([draw.number % 8 for draw in draws])
        return of_draws(features, rows, draws)

    monkeypatch.setattr(pool, "of_draws", noting)
    images = torch.randint(0, 255, (2, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sampler = sampler_of(SamplingConfig(sampler="ancestral", steps=1))

    def drawn(pixels: int | None) -> list[tuple[int, torch.Tensor]]:
        how: dict[str, Any] = {
            "channels_last": False,
            "bfloat16": False,
            "device": torch.device("cpu"),
            "pixels": pixels,
        }
        return list(Drawer(pool, sampler, seed=1, max_batch=64, sdf_scale=1.0, threshold=0.0, **how)(images, "ab", 19))

    whole = drawn(None)
    assert [len(batch) for batch in batches] == [38]
    batches.clear()
    parts = drawn(3 * 16 * 16)
    assert sum(map(len, batches)) == 38
    assert max(len(set(batch)) for batch in batches) == 2
    for (i, one), (j, other) in zip(whole, parts, strict=True):
        assert i == j
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole[0][1], whole[8][1], atol=1e-3)


@torch.no_grad()
def test_draws_of_parts_are_given_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image in parts each draw is wanted whole, so that its parts are not to wait for all draws of one part."""
    pool = PooledDraws([direct_denoiser(process=VP(), distribution=True)], views_of(True, True, True))
    batches, of_draws = [], pool.of_draws

    def noting(features: list[torch.Tensor], rows: torch.Tensor, draws: list[Draw]) -> list[torch.Tensor]:
        batches.append(len(draws))
        return of_draws(features, rows, draws)

    monkeypatch.setattr(pool, "of_draws", noting)
    images = torch.zeros((2, 1, 16, 16), dtype=torch.uint8)
    how: dict[str, Any] = {"channels_last": False, "bfloat16": False, "device": torch.device("cpu")}
    sampler = sampler_of(SamplingConfig(sampler="ancestral", steps=1))
    drawer = Drawer(pool, sampler, seed=1, max_batch=64, sdf_scale=1.0, threshold=0.0, pixels=3 * 16 * 16, **how)
    pairs = [(part, draw) for draw in range(60) for part in range(2)]
    given = 0
    for i, _ in drawer.draw(drawer.encode(images), "ab", pairs, (16, 16)):
        assert i == pairs[given][0]
        given += 1
        assert sum(batches) - given < 3 * 8
    assert given == sum(batches) == 120


@pytest.mark.slow
def test_features_are_computed_once_per_image(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    forward = ImageEncoder.forward

    def counting(self: ImageEncoder, image: torch.Tensor) -> list[torch.Tensor]:
        encoded.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(ImageEncoder, "forward", counting)
    options = ["--set", "sampling.draws=7", "--set", "sampling.max_batch=2", "--set", "sampling.animate=false"]
    assert trained("sample", *options).code == 0
    assert sum(encoded) == 3  # three images; 3 * 7 draws * 5 evaluations of the network


def test_groups_do_not_depend_on_what_is_done(trained: Workspace) -> None:
    scenes = scenes_of(load_split(section(root=trained.path / "prepared", truncation=6), "test"))
    assert [len(group) for group in scene_groups(scenes, 2)] == [2, 1]
    assert [i for group in scene_groups(scenes, 1) for i in group] == [0, 1, 2]


def test_no_image_is_read_to_be_grouped(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(section(root=trained.path / "prepared", truncation=6), "test")
    monkeypatch.setattr(Split, "patch", lambda *_: pytest.fail("an image was read"))
    assert list(scene_groups(scenes_of(split), 2)) == [[0, 1], [2]]
