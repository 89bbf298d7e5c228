"""What only a GPU can show; skipped where there is none. tests/training/test_precision.py runs there, too."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from data import batches
from data.batches import Batches
from sampling.drawer import Drawer, drawer_of, image_tensor
from sampling.loading import drawing, set_draws
from sde.noise import DrawNoise
from tests.commands import Workspace, rows, sets
from tests.networks import SYSTEMS, disc_patches, shake, system
from training.session import build_state, source_of, training_step
from utils.checkpoint import load_checkpoint
from utils.schema import Config

pytestmark = pytest.mark.gpu
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is float32, as on a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@contextmanager
def no_waiting() -> Iterator[None]:
    """What makes the host wait for the GPU raises an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def random_drawer(config: Config, device: torch.device, size: int = 32) -> Drawer:
    """Random weights, the same on all devices."""
    model = build_state(config, disc_patches(), device).model.eval()
    shake(model)
    set_draws(model, config.sampling)
    return drawer_of(config, drawing(config.data, config.sampling, [model], (size, size)))


def draws(drawer: Drawer, count: int, size: int = 32) -> Tensor:
    return torch.stack([draw for _, draw in drawer(image_tensor(disc_patches(1, size)), ["a"], count)])


def test_noise_is_that_of_a_cpu() -> None:
    here, there = (DrawNoise(3, [("a", 0), ("a", 1), ("b", 0)], (1, 8, 8), device) for device in (CPU, CUDA))
    for _ in range(3):
        found = there()
        assert found.is_cuda
        assert torch.equal(here(), found.cpu())


@pytest.mark.parametrize("name", SYSTEMS)
def test_draws_are_those_of_a_cpu(name: str) -> None:
    """Up to rounding, which several evaluations may make larger in single pixels."""
    config = system(name, training={"precision": "float32"})
    expected = draws(random_drawer(config, CPU), 3)
    difference = (draws(random_drawer(config, CUDA), 3) - expected).abs()
    assert expected.std() > 0.01
    assert difference.mean() < 1e-3 * expected.std()
    assert difference.max() < 0.1 * expected.std()


@pytest.mark.parametrize("name", SYSTEMS)
def test_neither_steps_nor_evaluations_wait(name: str) -> None:
    config = system(name)
    state = build_state(config, disc_patches(), CUDA)
    training_step(state, config.data, config.sde, config.training)  # libraries are loaded, memory is pinned
    with no_waiting():
        taken = [training_step(state, config.data, config.sde, config.training) for _ in range(2)]
    assert all(torch.isfinite(step.losses).all() for step in state.team.read(taken))
    drawer, owners = random_drawer(config, CUDA), [("a", 0), ("a", 1)]
    features = drawer.encode(image_tensor(disc_patches(1)))

    def evaluated() -> Tensor:
        with torch.no_grad():
            identities = [drawer.identity(*owner) for owner in owners]
            own = drawer.denoiser.of_draws(features, torch.tensor([0, 0]), identities)
            return drawer.run(partial(drawer.denoised, features=own), owners, (1, 32, 32))

    evaluated()
    with no_waiting():
        found = evaluated()
    assert torch.isfinite(found).all()


def test_no_augmentation_waits() -> None:
    augment = {"brightness": 0.1, "contrast": 0.1, "gamma": 0.1, "blur": 1.0, "noise": 0.1, "stain": 0.1, "scale": 0.1,
               "rotate": 10.0, "elastic": 2.0}  # fmt: skip
    data = {"color": "rgb", "rotations": True, "crop": [24, 24], "augment": augment}
    config = system("mean", data=data)
    state = build_state(config, disc_patches(color="rgb"), CUDA)
    state.batches.next()
    with no_waiting():
        state.batches.next()


@pytest.mark.parametrize("room", [True, False], ids=["on the device", "on the host"])
def test_batches_are_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    """Also of data that a GPU has no room for, which a thread fetches ahead."""
    data = system("mean", data={"rotations": True}).data
    source = source_of(disc_patches(), data.sdf_scale)
    expected = Batches(source.placed(CPU), 3, 5, CPU, data)
    if not room:
        monkeypatch.setattr(batches, "on_device", lambda tensor, device: tensor)
    placed = source.placed(CUDA)
    assert placed.ahead != room
    found = Batches(placed, 3, 5, CUDA, data)
    for _ in range(5):
        one, other = expected.next(), found.next()
        assert other.images.is_cuda
        assert torch.equal(one.images, other.images.cpu())
        assert torch.equal(one.m, other.m.cpu())


def test_batches_of_draws_are_halved_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    config = system("both", training={"precision": "float32"})
    drawer = replace(random_drawer(config, CUDA, 256), max_batch=2)
    torch.cuda.reset_peak_memory_stats()
    expected = draws(drawer, 128, 256)
    limit = 2 * torch.cuda.max_memory_allocated() + 2**27
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(CUDA).total_memory)
    try:
        whole = replace(drawer, max_batch=128)
        with caplog.at_level(logging.WARNING):
            found = draws(whole, 128, 256)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 <= whole.max_batch < 128
    assert caplog.records[0].getMessage().startswith("out of memory with 128 at once; going on with sampling.max_batch")
    assert torch.cuda.max_memory_allocated() <= limit
    assert (found - expected).abs().mean() < 1e-3 * expected.std()


def test_a_run_goes_on_on_the_other_device(trained: Workspace) -> None:
    """In bfloat16 on the GPU, then on the CPU, then on the GPU again."""

    def goes_on(steps: int, *words: str) -> dict[str, Any]:
        result = trained("main", *sets([f"training.steps={steps}"]), *words)
        assert result.code == 0, result.err
        return dict(load_checkpoint(trained.run_folder() / "checkpoints" / "last.pt"))

    assert goes_on(3, "--device", "cuda")["step"] == 3
    run = str(trained.run_folder())
    assert goes_on(5, "--resume", run)["optimizer"]["param_groups"][0]["fused"] is None
    state = goes_on(8, "--resume", run, "--device", "cuda")
    assert state["optimizer"]["param_groups"][0]["fused"]
    assert state["step"] == 8
    assert [row["step"] for row in rows(trained.run_folder()) if row["loss"]] == ["2", "3", "4", "5", "6", "8"]
    assert trained("sample", "--run", run).code == 0  # on the CPU
