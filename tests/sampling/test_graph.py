"""Networks as one graph give what the program itself gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.recipe import transform_image
from models.baselines import Baseline
from models.denoiser import Denoiser, Draw
from models.latent import latent_of
from sampling.graph import DrawGraph, DrawsGraph, MeanGraph, Preparation
from tests.networks import direct_denoiser, noise, shake, small_baseline
from utils.data_schema import DataConfig

EIGHT = (0, 1, 2, 3, 4, 7, 5, 6)


def distributional(unshuffle: int = 1) -> Denoiser:
    model = direct_denoiser(distribution=True, unshuffle=unshuffle)
    model.spread.fill_(1.5)
    return model.requires_grad_(False)


def grey(height: int, width: int, batch: int = 2) -> Tensor:
    return (127.5 + 60.0 * noise(batch, 1, height, width)).clamp(0, 255).round()


def mean_of(model: Denoiser, image: Tensor) -> Tensor:
    features = model.features(image / 127.5 - 1.0)
    return features[-1] if isinstance(model, Baseline) else model.direct_moments(features, image.shape[-2:])[0]


@torch.no_grad()
def test_the_mean_is_the_direct_mean_in_sdf_units() -> None:
    for model in (direct_denoiser(), direct_denoiser("both", second_moment=True), small_baseline("resunet").eval()):
        shake(model)
        image = grey(13, 22)  # no multiples of the stride
        assert torch.allclose(MeanGraph(model, 0.2)(image), mean_of(model, image) / 0.2, atol=1e-4)


def test_pictures_are_prepared_as_the_program_does() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(20, 230, (29, 37, 3), np.uint8)
    for grey, stretch in ((True, False), (True, True), (False, True)):
        data = DataConfig(root="unused", color="grey" if grey else "rgb", stretch=stretch)
        for picture in (pixels, pixels[..., 1]):
            planes = torch.from_numpy(np.atleast_3d(picture)).permute(2, 0, 1).float()
            found = Preparation(grey, stretch)(torch.stack([planes, planes / 2]))
            expected = torch.tensor(np.atleast_3d(transform_image(picture, data))).permute(2, 0, 1)
            rounding = 0.5 if not stretch else 0.5 + 255 * 0.5 / np.ptp(picture)  # before and after the stretch
            assert found.shape == (2, *expected.shape)
            assert float((127.5 * (found[0] + 1) - expected).abs().max()) < 1.5 * rounding
            if stretch:  # each by itself
                assert torch.allclose(found[0], found[1], atol=1e-4)


@torch.no_grad()
def test_the_mean_of_all_views_turns_with_the_image() -> None:
    graph, image = MeanGraph(direct_denoiser(), 1.0, EIGHT), grey(16, 24)
    assert torch.allclose(graph(image.rot90(1, (2, 3))), graph(image).rot90(1, (2, 3)), atol=1e-5)


@pytest.mark.parametrize("unshuffle", [1, 2])
@torch.no_grad()
def test_a_draw_is_the_programs_of_the_same_noise(unshuffle: int) -> None:
    model, image, seeds = distributional(unshuffle), grey(16, 24), [5, 6]
    draws = [Draw(seed, number) for number, seed in enumerate(seeds)]
    features = model.of_draws(model.encode(image / 127.5 - 1.0), torch.tensor([0, 1]), draws)
    end = torch.tensor(model.process.t_max)
    xi = latent_of(seeds, [(0, 0), (0, 0)], float(end), (16, 24), [1])[0]
    found = DrawGraph(model, 0.5)(image, xi)
    assert torch.allclose(found, model(torch.zeros(2, 1, 16, 24), end, features) / 0.5, atol=1e-5)
    assert found.std() > 0.01
    for zero in (0.0 * xi, torch.zeros(1, xi.shape[1], 1, 1)):
        assert torch.allclose(DrawGraph(model, 0.5)(image, zero), mean_of(model, image) / 0.5, atol=1e-5)


@pytest.mark.parametrize("unshuffle", [1, 2])
@torch.no_grad()
def test_maps_are_those_of_the_draws_that_the_graph_holds(unshuffle: int) -> None:
    model, image = distributional(unshuffle), grey(16, 20)
    graph, one = DrawsGraph(model, 1.0, (0,), 0.1, 4, seed=3), DrawGraph(model, 1.0)
    features = model.features(image / 127.5 - 1.0)
    levels = [graph.noise_of(i, features[0])[0] for i in range(4)]  # the finest, which has all that the network sees
    xi = [F.interpolate(own, scale_factor=unshuffle) for own in levels]
    sdf = torch.stack([one(image, own) for own in xi])
    mean, std, probability = graph(image)
    assert torch.allclose(mean, sdf.mean(dim=0), atol=1e-5)
    assert torch.allclose(std, sdf.std(dim=0), atol=1e-5)
    assert torch.allclose(probability, (sdf < 0.1).float().mean(dim=0))
    assert std.mean() > 0.01


def test_the_noise_of_a_draw_is_white_and_its_own() -> None:
    model = distributional()
    few, more = (DrawsGraph(model, 1.0, (0,), 0.0, draws, seed=3) for draws in (2, 5))
    xi = [more.noise_of(i, torch.zeros(1, 1, 96, 96))[0] for i in range(5)]
    for i, own in enumerate(xi[:2]):
        assert torch.equal(few.noise_of(i, torch.zeros(1, 1, 96, 96))[0], own)
    assert not torch.equal(xi[0], xi[1])
    finest = torch.cat(xi)[:, :2]
    assert abs(float(finest.mean())) < 0.03
    assert abs(float(finest.std()) - 1.0) < 0.03
    assert not (finest[..., 1:] == finest[..., :-1]).any()


@torch.no_grad()
def test_draws_take_turns_at_views_about_the_mean_of_all() -> None:
    model, image = distributional(), grey(16, 16, batch=1)
    model.spread.fill_(0.0)
    mean, std, _ = DrawsGraph(model, 1.0, EIGHT, 0.1, 8, seed=0)(image)
    assert torch.allclose(mean, MeanGraph(model, 1.0, EIGHT)(image), atol=1e-5)
    assert std.max() < 1e-5
