"""The toy posterior of bench.spread, and what it says of samplers."""

from __future__ import annotations

from utils.command import run_command

from pathlib import Path

import pytest
import torch

from bench import spread
from bench.spread import SHARE, Known, Toy
from sde.process import VP
from tests.commands import ROOT
from utils.config import load_config
from utils.schema import Config
from utils.sections import SamplingConfig


def sampled_by(steps: int, objective: str = "mean") -> Config:
    """quickstart, by ancestral steps."""
    config = load_config(ROOT / "cfg" / "quickstart.yaml")
    sampling, sde = (
        SamplingConfig(sampler="ancestral", steps=steps),
        config.sde.model_copy(update={"objective": objective}),
    )
    return config.model_copy(update={"sampling": sampling, "sde": sde})


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_ancestral_steps_of_a_perfect_distributional_denoiser_are_exact_in_law(steps: int) -> None:
    config = sampled_by(steps, "distribution")
    ratios, means = Known(config).spread(4096)
    assert ratios == pytest.approx([1.0] * len(ratios), abs=0.05)
    assert means[0] == pytest.approx(1, abs=0.02)
    law = Known(config).law(2000)
    assert law["share"] == pytest.approx(SHARE, abs=0.04)
    assert (law["within"], law["all"]) == pytest.approx((1, 1), abs=0.05)
    assert law["distance"] < 0.05  # .03 by chance in one of twenty


def test_few_ancestral_steps_of_a_mean_are_too_narrow() -> None:
    ratios, _ = Known(sampled_by(5)).spread(4096)
    assert max(ratios) < 0.55
    assert Known(sampled_by(5)).law(1000)["distance"] > 0.15
    assert min(Known(sampled_by(200)).spread(2048)[0]) > 0.95


def test_the_toys_denoiser_is_the_mean_of_its_posterior() -> None:
    """By importance weights on draws of the prior, in two dimensions."""
    toy, process, t = Toy(*torch.tensor([[0.3, -0.2], [0.4, 0.7], [0.9, 0.2]])), VP(), torch.tensor(0.4)
    z, count, g = torch.tensor([0.25, -0.3]), 400_000, torch.Generator().manual_seed(0)
    kind = 2 * torch.bernoulli(torch.full((count, 1), SHARE), generator=g) - 1
    m = toy.mean + kind * toy.offset + toy.std * torch.randn((count, 2), generator=g)
    far = ((z - process.alpha(t) * m) / process.sigma(t)).square().sum(dim=1)
    weight = torch.softmax(-0.5 * far, dim=0)[:, None]
    mean = (weight * m).sum(dim=0)
    torch.testing.assert_close(toy.denoiser(process)(z, t), mean, atol=0.01, rtol=0)
    drawn = toy.denoiser(process, g)(z.expand(count, 2), t)
    torch.testing.assert_close(drawn.mean(dim=0), mean, atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.var(dim=0), (weight * (m - mean) ** 2).sum(dim=0), atol=0.01, rtol=0)


@pytest.mark.slow
def test_tables_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "spread.png"
    options = ["--configs", str(ROOT / "cfg" / "joint_phantom.yaml"), "--samples", "200", "--picture", str(picture)]
    assert run_command(lambda: spread.main(options)) == 0
    out = capsys.readouterr().out
    assert out.count("| joint_phantom | dpm_solver 14 |") == 2
    assert "| ancestral, distributional denoiser |" in out
    assert picture.stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--configs", "nowhere.yaml"], "nowhere.yaml"),
        (["--configs", str(ROOT / "cfg" / "baseline_unet.yaml")], "baseline_unet: draws do not start from noise"),
        (["--samples", "1"], "--samples 1: 2 or more"),
        (["--picture", "nowhere/spread.png"], "--picture nowhere/spread.png: a .png file"),
    ],
)
def test_refusals(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: spread.main(options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
