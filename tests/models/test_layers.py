"""Blocks that do together what they could do apart."""

from __future__ import annotations

import pytest
import torch

from models.layers import LARGE, Dropout, GroupNorm, JoiningBlock, ResidualBlock
from tests.networks import noise


def test_a_skip_connection_computed_once_is_as_good_as_concatenated() -> None:
    joining = JoiningBlock(8, embedding=4)
    for parameter in joining.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    plain = ResidualBlock(16, 8, embedding=4)
    plain.load_state_dict(joining.state_dict())
    assert plain.norm1.num_groups == joining.norm1.num_groups
    many, skip, embedding = noise(3, 8, 12, 10), noise(1, 8, 12, 10, seed=1), noise(1, 4, seed=2)
    expected = plain(torch.cat([many, skip.expand(3, -1, -1, -1)], dim=1), embedding)
    torch.testing.assert_close(joining.join(many, joining.of_skip(skip), embedding), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [2, 6, 18, 48])
def test_no_group_has_channels_of_both(width: int) -> None:
    assert width % (2 * width // JoiningBlock(width, embedding=4).norm1.num_groups) == 0


@pytest.mark.parametrize("channels", [(8, 4), (4, 4)], ids=["fewer", "as many"])
def test_the_shortcut_of_a_block_that_grows_repeats_pixels(channels: tuple[int, int]) -> None:
    x = noise(2, channels[0], 6, 4)
    grown = ResidualBlock(*channels, resample="up")(x)  # starts as its shortcut
    expected = torch.nn.functional.interpolate(x, scale_factor=2.0)
    if channels[0] != channels[1]:
        block = ResidualBlock(*channels, resample="up")
        expected, grown = block.shortcut(expected), block(x)
    torch.testing.assert_close(grown, expected / 2**0.5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
def test_the_gradient_of_large_norms_is_that_of_torch(layout: torch.memory_format) -> None:
    own, torchs = GroupNorm(2, 8), torch.nn.GroupNorm(2, 8, eps=1e-5, dtype=torch.float64)
    torch.nn.init.normal_(own.weight)
    torchs.load_state_dict(own.state_dict())
    x = (3 * noise(4, 8, 128, LARGE // 2**12) + 1).contiguous(memory_format=layout)
    weights = noise(*x.shape, seed=1)
    found = []
    for norm, maps in ((own, x), (torchs, x.double())):
        maps.requires_grad_()
        (norm(maps) * weights).sum().backward()
        found.append([maps.grad, norm.weight.grad, norm.bias.grad])
    for ours, theirs in zip(*found, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours.double() / scale, theirs / scale, atol=1e-5, rtol=0)


def test_a_time_shared_by_the_batch_is_one_of_each() -> None:
    block, x, embedding = ResidualBlock(8, 8, embedding=4), noise(3, 8, 6, 4), noise(1, 4, seed=1)
    torch.nn.init.normal_(block.conv2.weight)
    torch.testing.assert_close(block(x, embedding), block(x, embedding.expand(3, -1)))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
def test_dropout_keeps_its_share_and_the_mean(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.ones(5, 7, 63, 61).contiguous(memory_format=layout)
    layer = Dropout(0.3)
    y = layer(x)
    assert y.stride() == x.stride()
    assert sorted(set(y.flatten().tolist())) == pytest.approx([0.0, 1 / 0.7])
    for part in (y, y[0], y[:, 3], y[..., 1]):
        share = float((part > 0).float().mean())
        assert abs(share - 0.7) < 5 * (0.21 / part.numel()) ** 0.5
    assert torch.equal(layer.eval()(x), x)
