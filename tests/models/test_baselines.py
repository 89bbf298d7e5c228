"""Baselines of one pass: networks and loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.baselines import Baseline, dice_cross_entropy
from sde.process import VE
from tests.networks import LIBRARY, noise, shake, small_baseline

OWN = ("resunet", "attention_unet")


KINDS = (*OWN, *LIBRARY, "fcn")


END = torch.tensor(1.0, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_have_the_size_of_the_image(kind: str) -> None:
    for image_channels, mask_channels in ((1, 1), (3, 2)):
        model = small_baseline(kind, image_channels=image_channels, mask_channels=mask_channels).eval()
        with torch.no_grad():
            for size in ((32, 32), (21, 37)):
                features = model.encode(noise(2, image_channels, *size))
                sdf = model(noise(2, mask_channels, *size), END, features)
                assert sdf.shape == (2, mask_channels, *size)
                assert sdf.abs().max() <= 1


@pytest.mark.parametrize("kind", OWN)
def test_all_of_the_image_counts_for_a_pixel_far_away(kind: str) -> None:
    """The skips and the coarse levels are connected, gates included."""
    model = small_baseline(kind).eval()
    shake(model)
    image = noise(1, 1, 16, 16).requires_grad_()
    model.logits(image)[0, 0, 0, 0].backward()
    assert image.grad is not None
    assert image.grad[0, 0, -4:, -4:].abs().max() > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def fixed(logits: Tensor, mask_channels: int, scale: float = 1.0) -> Baseline:
    """Whose network gives these logits for any image."""

    class Fixed(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return logits

    return Baseline(VE(), Fixed(), 1, mask_channels, scale)


def test_the_map_is_background_minus_class() -> None:
    p = torch.tensor([0.1, 0.5, 0.8]).view(1, 1, 1, 3)
    found = fixed(torch.logit(p), 1, scale=0.2).encode(torch.zeros(1, 1, 1, 3))[0]
    torch.testing.assert_close(found, 0.2 * (1 - 2 * p))
    p = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.25, 0.45], [0.4, 0.42, 0.18]]).T.reshape(1, 3, 1, 3)
    found = fixed(p.log(), 2).encode(torch.zeros(1, 1, 1, 3))[0]
    torch.testing.assert_close(found, p[:, :1] - p[:, 1:])
    likeliest = torch.where(found.min(dim=1).values < 0, found.argmin(dim=1) + 1, 0)
    torch.testing.assert_close(likeliest, p.argmax(dim=1))


def test_loss_by_hand() -> None:
    p = torch.tensor([[0.9, 0.2, 0.4, 0.1], [0.5, 0.5, 0.5, 0.5]]).view(2, 1, 2, 2)
    m = torch.tensor([[-1.0, 1.0, -1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]).view(2, 1, 2, 2)
    entropy = -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.9)) / 4
    expected = [entropy + 1 - (2 * 1.3 + 1) / (1.6 + 2 + 1), math.log(2) + 1 - 1 / 3]
    torch.testing.assert_close(dice_cross_entropy(torch.logit(p), m), torch.tensor(expected))


def test_loss_of_classes_by_hand() -> None:
    p = torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.5, 0.3]]).T.reshape(1, 3, 1, 2)  # background, class 1, class 2
    m = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).view(1, 2, 1, 2)  # the second pixel is of class 1
    entropy = -(math.log(0.7) + math.log(0.5)) / 2
    dice = ((2 * 0.5 + 1) / (0.6 + 1 + 1) + 1 / (0.5 + 1)) / 2
    torch.testing.assert_close(dice_cross_entropy(p.log(), m), torch.tensor([entropy + 1 - dice]))


@pytest.mark.parametrize("kind", ["unet", "attention_unet"])
def test_a_trivial_mask_is_learned(kind: str) -> None:
    """What is bright is inside."""
    model = small_baseline(kind).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        coarse = torch.randn((4, 1, 4, 4), generator=generator)
        image = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        return image.clamp(-1, 1), torch.where(image > 0, -1.0, 1.0)

    for _ in range(25):
        image, m = batch()
        loss = dice_cross_entropy(model.logits(image), m).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, m = batch()
    with torch.no_grad():
        right = (model.encode(image)[0] < 0) == (m < 0)
    assert right.float().mean() > 0.9
