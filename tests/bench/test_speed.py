"""Ratios of speed, and the count of operations."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch

from bench import speed
from models.unet import ImageEncoder
from tests.helpers import Workspace
from utils.config import load_config


@pytest.mark.slow
def test_speed_prints_ratios_of_every_way(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    speed.main(["--config", "config.yaml", "--device", "cpu", "--rounds", "1", "--size", "16", "--draws", "2"])
    found = re.findall(r"([\d.]+) x +([\d.]+)% of ([\d.e-]+) TFLOP/s$", capsys.readouterr().out, re.MULTILINE)
    assert len(found) == 7
    assert all(float(number) > 0 for line in found for number in line)


def test_operations_are_those_of_convolutions_and_products() -> None:
    layer, matrix = torch.nn.Conv2d(3, 4, 3, padding=1), torch.ones(5, 5)
    assert speed.operations(lambda: layer(torch.zeros(2, 3, 8, 8))) == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    assert speed.operations(lambda: matrix @ matrix) == 2 * 5**3


def test_the_plain_way_encodes_at_every_evaluation(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = load_config("config.yaml"), torch.device("cpu")
    calls: list[int] = []
    forward = ImageEncoder.forward

    def counting(self: ImageEncoder, image: torch.Tensor) -> list[torch.Tensor]:
        calls.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(ImageEncoder, "forward", counting)
    images = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    results = []
    for way in (speed.Way("plain", False, False, cached=False), speed.Way("cached", False, False)):
        calls.clear()
        torch.manual_seed(0)
        draw = partial(speed.drawer_for(way, config, cpu), images, ["image"], 2)
        results.append(torch.stack([sdf for _, sdf in draw()]))
        assert len(calls) == (6 if way.name == "plain" else 1)
    torch.testing.assert_close(results[0], results[1])
