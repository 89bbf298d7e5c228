"""bfloat16 and channels_last beside float32 in the plain layout: losses, gradients and masks of every kind of network.

bfloat16 keeps 8 bits, a relative error of 1/256 for each value; what follows is what a few dozen layers make of it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.batches import representation_of
from evaluation.metrics import count
from sampling.drawer import drawer_of, image_tensor
from sampling.loading import drawing, set_draws
from tests.networks import LIBRARIES, disc_patches, each_system, shake, system
from training.session import build_state
from training.state import TrainingState
from utils.schema import Config

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PLAIN = {"precision": "float32", "channels_last": False}
WAYS = {
    "channels_last": {"precision": "float32", "channels_last": True},
    "bfloat16": {"precision": "bfloat16", "channels_last": False},
    "both": {"precision": "bfloat16", "channels_last": True},
}


def built(config: Config, device: str) -> TrainingState:
    state = build_state(config, disc_patches(), torch.device(device))
    if config.model.kind not in LIBRARIES:  # their weights do not begin at 0
        shake(state.model)
    return state


def loss_and_gradient(config: Config, device: str) -> tuple[float, Tensor]:
    """Of the first batch."""
    state = built(config, device)
    for module in state.model.modules():
        if isinstance(module, nn.Dropout):  # other units in another layout
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d) and config.model.kind == "fcn":
            module.eval()  # statistics of 64 values in each of fifty random layers: any rounding turns the gradient
    batch = state.batches.next()
    batch = batch._replace(m=representation_of(batch.m, config.data))
    losses, _ = state.losses_of(batch, state.generators, config.sde, config.training, 0)
    assert losses.dtype == torch.float32
    losses.mean().backward()
    gradients = [p.grad.flatten().double() for p in state.model.parameters() if p.grad is not None]
    return losses.mean().item(), torch.cat(gradients)


def masks(config: Config, device: str) -> np.ndarray:
    """Of four draws of each of two images, (8, H, W) bool."""
    model = built(config, device).model.eval()
    set_draws(model, config.sampling)
    drawer = drawer_of(config, drawing(config.data, config.sampling, [model], (32, 32)))
    draws = [draw for _, draw in drawer(image_tensor(disc_patches(2)), ["a", "b"], 4)]
    return (torch.stack(draws)[:, 0] < torch.stack(draws)[:, 0].median()).numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", each_system())
def test_a_step_and_draws_are_near_those_in_float32(name: str, device: str) -> None:
    plain = system(name, training=PLAIN)
    loss, gradient = loss_and_gradient(plain, device)
    drawn = masks(plain, device)
    for way, training in WAYS.items():
        config = system(name, training=training)
        other, its_gradient = loss_and_gradient(config, device)
        f1 = count(masks(config, device), drawn).f1
        cosine = torch.cosine_similarity(gradient, its_gradient, dim=0).item()
        rounded = training["precision"] == "bfloat16"
        assert other == pytest.approx(loss, rel=0.01 if rounded else 1e-4), way
        # Batch norms of few values make gradients of random weights sensitive.
        assert cosine > ((0.95 if name in LIBRARIES else 0.999) if rounded else 0.999999), way
        assert f1 > (0.98 if rounded else 0.995), way
