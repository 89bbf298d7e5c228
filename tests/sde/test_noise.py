"""Noise that belongs to a draw."""

from __future__ import annotations

import math

import pytest
import torch

from sde.noise import DrawNoise, draw_seed


def test_draw_seeds_differ_and_stay() -> None:
    seeds = {draw_seed(s, i, d) for s in (0, 1) for i in ("a", "b", "a1") for d in range(12)}
    assert len(seeds) == 72
    assert draw_seed(0, "train_1", 3) == draw_seed(0, "train_1", 3)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draw_noise_is_normal_and_moves_on() -> None:
    noise = DrawNoise(0, [("a", 0), ("a", 1)], (1, 200, 200))
    first, second = noise(), noise()
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(1.0, abs=0.02)
    assert first.abs().max().item() > 3.0  # not clipped
    assert torch.corrcoef(first.flatten(1))[0, 1].abs().item() < 0.03


def first_noise(antithetic: bool, count: int = 64, image: str = "a") -> torch.Tensor:
    return DrawNoise(3, [(image, d) for d in range(count)], (1, 24, 20), antithetic=antithetic)()


@pytest.mark.parametrize("antithetic", [False, True])
def test_noise_is_normal_and_belongs_to_its_draw(antithetic: bool) -> None:
    noise = first_noise(antithetic)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    columns = noise.flatten(1)
    correlation = (columns.T @ columns / len(columns)).fill_diagonal_(0)
    assert correlation.abs().mean() < 1.3 / math.sqrt(len(columns))  # no pixel follows another
    pick = DrawNoise(3, [("a", 17), ("b", 4), ("a", 6)], (1, 24, 20), antithetic=antithetic)
    once = pick()
    torch.testing.assert_close(once[0], noise[17])
    torch.testing.assert_close(once[2], noise[6])
    assert not torch.allclose(once[1], noise[4])
    plain = DrawNoise(3, [("a", 17), ("b", 4), ("a", 6)], (1, 24, 20))
    plain()
    assert torch.equal(pick(), plain())  # only the first noise is mirrored


def test_antithetic_pairs_cancel() -> None:
    noise = first_noise(True)
    assert torch.equal(noise[0::2], -noise[1::2])
