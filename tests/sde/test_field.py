"""Noise of any window of an image."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde.field import BLOCK, FieldNoise


def field(
    window: tuple[int, int, int, int], draws: list[tuple[str, int]], calls: int = 1, antithetic: bool = False
) -> torch.Tensor:
    noise = FieldNoise(7, draws, 2, window, antithetic=antithetic)
    return torch.stack([noise() for _ in range(calls)])


@settings(max_examples=15)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 150), st.integers(1, 150))
def test_noise_does_not_depend_on_the_window(top: int, left: int, height: int, width: int) -> None:
    whole = field((0, 0, 350, 350), [("image", 0), ("image", 3)], calls=2)
    part = field((top, left, height, width), [("image", 3)], calls=2)
    torch.testing.assert_close(part[:, 0], whole[:, 1, :, top : top + height, left : left + width], atol=0, rtol=0)


def test_noise_is_standard_normal_and_independent() -> None:
    draws = [("a", 0), ("a", 1), ("b", 0)]
    x = field((40, 40, 2 * BLOCK, 2 * BLOCK), draws, calls=2).double()  # calls, draws, channels, H, W
    count = x[0, 0].numel()
    assert x.mean(dim=(2, 3, 4)).abs().max() < 4 / count**0.5
    assert (x.var(dim=(2, 3, 4)) - 1).abs().max() < 4 * (2 / count) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 0.05
    streams = x.flatten(0, 2).flatten(1)  # every call, draw and channel
    correlation = torch.corrcoef(streams) - torch.eye(len(streams), dtype=torch.float64)
    assert correlation.abs().max() < 4.5 / streams.shape[1] ** 0.5
    for shift in ((1, 0), (0, 1), (BLOCK, 0), (0, BLOCK)):  # pixels, and blocks, know nothing of each other
        moved = x[..., shift[0] :, shift[1] :]
        still = x[..., : x.shape[-2] - shift[0], : x.shape[-1] - shift[1]]
        assert abs(float((moved * still).mean())) < 4 / moved.numel() ** 0.5


def test_antithetic_draws_are_mirrored_at_first_only() -> None:
    pair = field((3, 4, 50, 60), [("a", 2), ("a", 3)], calls=2, antithetic=True)
    alone = field((3, 4, 50, 60), [("a", 3)], calls=2, antithetic=True)
    torch.testing.assert_close(pair[0, 1], -pair[0, 0], atol=0, rtol=0)
    torch.testing.assert_close(pair[:, 1], alone[:, 0], atol=0, rtol=0)
    assert (pair[1, 1] + pair[1, 0]).abs().max() > 0.5
