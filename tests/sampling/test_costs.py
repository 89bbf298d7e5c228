"""What draws cost: network evaluations and seconds, image by image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import sampling.drawer
from data.dataset import load_split
from data.scenes import scenes_of
from evaluation.instances import DrawObjects
from sampling.drawer import Drawer, Timed, whole_draws
from sampling.loading import load_denoiser
from sampling.tiled import TiledDrawer
from sampling.tiling import tiling_of
from sde.noise import DrawNoise
from sde.process import Process
from sde.samplers import Callback, Denoise, Noise, heun
from tests.commands import Workspace, newest
from utils.config import load_config

DIRECT = ["--set", "sde.prior_share=0.5"]


class Clock:
    """Stands still but for what is said to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sampling.drawer, "time", clock)
    return clock


def test_only_what_makes_the_items_is_timed(clock: Clock) -> None:
    def made() -> Iterator[None]:
        for _ in range(3):
            clock.now += 5
            yield

    items = Timed(made())
    for _ in items:
        clock.now += 20
    assert items.seconds == pytest.approx(15, abs=0.1)


@pytest.mark.slow
def test_scoring_is_not_drawing(trained: Workspace, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    add = DrawObjects.add

    def slow(self: DrawObjects, sdf: np.ndarray) -> np.ndarray:
        clock.now += 100
        return add(self, sdf)

    monkeypatch.setattr(DrawObjects, "add", slow)
    assert trained("sample", "--set", "sampling.animate=false", "--set", "sampling.draws=2").code == 0
    assert clock.now > 200
    assert pd.read_csv(newest(trained) / "metrics.csv")["seconds"].between(0, 1, inclusive="neither").all()


def more_and_more(denoise: Denoise, process: Process, noise: Noise, *, callback: Callback | None = None) -> Tensor:
    """Draw d of image i takes 1 + d + 10 i evaluations."""
    assert isinstance(noise, DrawNoise)
    ((image, draw),) = noise.draws
    z = noise()
    for _ in range(1 + draw + 10 * (int(image[-1]) % 2)):
        m = denoise(z, torch.tensor(0.5))
    return m


def drawer_by(trained: Workspace, sampler: object, *overrides: str) -> Drawer:
    config = load_config("config.yaml", overrides)
    denoiser = load_denoiser(config, trained.run_folder() / "checkpoints" / "best.pt", torch.device("cpu"))
    return Drawer(denoiser, sampler, 0, 1, 1.0, 0.0, torch.device("cpu"), False, False)  # type: ignore[arg-type]


def test_every_draw_has_its_own_number_of_evaluations(trained: Workspace) -> None:
    scenes = scenes_of(load_split(load_config("config.yaml").data, "test"))[:2]
    drawn = whole_draws(drawer_by(trained, more_and_more), scenes, 3)
    assert [(i, evaluations) for i, _, evaluations in drawn] == [(0, 1), (0, 2), (0, 3), (1, 11), (1, 12), (1, 13)]


def test_evaluations_are_means_over_draws_and_images(trained: Workspace) -> None:
    adaptive = [
        "--set",
        "sampling.sampler=adaptive",
        "--set",
        "sampling.tolerance=0.05",
        "--set",
        "sampling.animate=false",
    ]
    pytest.importorskip("torchdiffeq")
    assert trained("sample", *adaptive, "--set", "sampling.draws=2").code == 0
    rows = pd.read_csv(newest(trained) / "metrics.csv")["nfe_per_draw"]
    summary = json.loads((newest(trained) / "summary.json").read_text())
    assert summary["nfe_per_draw"] == pytest.approx(rows.mean())
    assert rows.min() > 1


@pytest.mark.slow
def test_a_shared_direct_mean_is_counted_once_for_all_draws(trained: Workspace) -> None:
    """Heun with 5 evaluations, the first of which is the direct mean: 4 for each of 4 draws, and 1 for all of them."""
    assert trained("main", *DIRECT).code == 0
    assert trained("sample", *DIRECT, "--set", "sampling.draws=4", "--set", "sampling.animate=false").code == 0
    assert (pd.read_csv(newest(trained) / "metrics.csv")["nfe_per_draw"] == 4.25).all()
    drawer = drawer_by(trained, partial(heun, steps=5), "sde.prior_share=0.5")
    drawer.max_batch, evaluated = 3, []
    drawer.denoiser.network.register_forward_hook(lambda module, inputs, output: evaluated.append(len(output)))
    images = torch.randint(0, 255, (1, 1, 32, 32), dtype=torch.uint8)
    assert len(list(drawer(images, ["a"], 4))) == 4
    assert sum(evaluated) == 4 * 4.25
    evaluated.clear()
    tiles = TiledDrawer(drawer, 16, 0.25, 4)
    (band,) = tiles(lambda window: images[0].numpy(), (32, 32), "a")
    assert sum(evaluated) == 4 * band.nfe * len(tiling_of((32, 32), 16, 0.25).windows)
    assert band.nfe == 4.25
    # In bands of two rows of tiles each, whose features, and the mean with them, are not kept.
    evaluated.clear()
    tiles.memory = 1
    one, other = tiles(lambda w: images[0, :, w.top : w.top + w.height].numpy(), (32, 32), "a")
    assert (one.nfe, other.nfe, sum(evaluated)) == (5, 5, 2 * 4 * 5 * 6)
