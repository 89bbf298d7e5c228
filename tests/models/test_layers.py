"""Blocks that do together what they could do apart."""

from __future__ import annotations

import pytest
import torch

from models.layers import JoiningBlock, ResidualBlock
from tests.helpers import noise


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
