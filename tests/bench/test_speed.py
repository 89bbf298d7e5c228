"""Ratios of speed, and the count of operations."""

from __future__ import annotations

import re
import sys
from functools import partial

import pytest
import torch

from bench import speed
from bench.peers import nearest, operations, parameters_of
from models.unet import ImageEncoder
from tests.commands import Workspace
from utils.config import load_config


@pytest.mark.slow
def test_speed_prints_ratios_of_every_way(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    speed.main(["--config", "config.yaml", "--device", "cpu", "--rounds", "1", "--size", "16", "--draws", "2"])
    found = re.findall(r"([\d.]+) x +([\d.]+)% of ([\d.e-]+) TFLOP/s$", capsys.readouterr().out, re.MULTILINE)
    assert len(found) == 7
    assert all(float(number) > 0 for line in found for number in line)


def test_operations_are_those_of_convolutions_and_products() -> None:
    layer, matrix = torch.nn.Conv2d(3, 4, 3, padding=1), torch.ones(5, 5)
    assert operations(lambda: layer(torch.zeros(2, 3, 8, 8))) == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    assert operations(lambda: matrix @ matrix) == 2 * 5**3


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


@pytest.mark.parametrize(("wanted", "width"), [(30, 4), (64, 8), (600, 24), (10**9, 128)])
def test_a_peer_is_as_large_as_a_network_of_its_kind_can_be(wanted: int, width: int) -> None:
    found = nearest(lambda width: torch.nn.Linear(width, width, bias=False), wanted, parameters_of)
    assert parameters_of(found) == width**2


def test_convolutions_are_done_again_without_what_is_between() -> None:
    layer, x = torch.nn.Conv2d(3, 4, 3, padding=1), torch.zeros(2, 3, 8, 8)
    again = speed.Convolutions.of(lambda: (layer(x).exp() @ torch.ones(8, 8)).sum().backward())
    assert operations(again) == 2 * operations(lambda: layer(x))  # forward, and of the weights backward


@pytest.mark.slow
def test_peers_that_are_not_installed_are_said(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("monai.networks.nets", "diffusers", "segmentation_models_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    speed.main(
        ["--config", "config.yaml", "--device", "cpu", "--rounds", "1", "--size", "16", "--draws", "2", "--peers"]
    )
    out = capsys.readouterr().out
    assert "MONAI DiffusionModelUNet: left out, it needs pip install monai einops" in out
    assert len(re.findall(r"(?:ours|our U-Net).* x .* x .* x$", out, re.MULTILINE)) in (2, 3)
