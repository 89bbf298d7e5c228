"""Networks and thresholds from a config."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from data.sdf import signed_distance
from evaluation.ensemble import classify
from models.build import denoiser_of, threshold_of, warn_of_direct, warn_of_prior
from models.denoiser import Draw
from sde import process
from tests.commands import ROOT
from tests.networks import noise, shake
from utils import sections
from utils.config import load_config
from utils.sections import SDEConfig


@pytest.mark.parametrize(
    ("config", "low", "high"), [("quickstart", 0.5e6, 1.5e6), ("glas_small", 1e6, 3e6), ("glas", 55e6, 70e6)]
)
def test_sizes_by_config(config: str, low: float, high: float) -> None:
    with torch.device("meta"):
        model = denoiser_of(load_config(ROOT / "cfg" / f"{config}.yaml"))
    assert low < sum(p.numel() for p in model.parameters()) < high


@pytest.mark.parametrize(
    "options",
    [
        [
            "sde.objective=distribution",
            "sde.prior_share=1",
            "sampling.sampler=mean",
            "model.encoder.multipliers=[1, 1, 1]",
        ],
        ["model.encoder.kind=rrdb"],
        ["model.encoder.kind=timm", "model.encoder.name=test_resnet"],
        ["model.kind=joint"],
        ["model.kind=ssn", "data.representation=binary", "sampling.sampler=logits"],
        ["model.kind=prob_unet", "data.representation=binary", "sampling.sampler=logits"],
        ["model.kind=attention_unet", "data.representation=binary", "sampling.sampler=mean"],
    ],
    ids=["draws", "rrdb", "timm", "joint", "ssn", "prob_unet", "attention_unet"],
)
def test_networks_of_blocks_of_pixels_give_maps_of_the_image(tmp_path: Path, options: list[str]) -> None:
    """And what they give follows the image by the pixel."""
    if "timm" in str(options):
        pytest.importorskip("timm")
    sizes = "{channels: 8, multipliers: [1, 1], encoder: {channels: 8}}"
    (tmp_path / "a.yaml").write_text(f"name: a\ndata: {{root: x, color: rgb}}\nmodel: {sizes}\n")
    torch.manual_seed(0)
    model = denoiser_of(load_config(tmp_path / "a.yaml", ["model.unshuffle=2", *options])).eval()
    shake(model)
    image, z, t = noise(2, 3, 26, 36), noise(2, 1, 26, 36, seed=1), torch.tensor(1.0)
    draws, rows = [Draw(3, 0), Draw(4, 1)], torch.arange(2)
    with torch.no_grad():
        first, other = (
            model(z, t, model.of_draws(model.encode(x), rows, draws)) for x in (image, image.roll(1, dims=3))
        )
    assert first.shape == z.shape
    assert first.std() > 0.01
    assert (first - other).abs().max() > 1e-3


@pytest.mark.parametrize("truncation", [2, 4, 15])
@pytest.mark.parametrize(
    "options",
    [["sde.process=vp"], ["sde.process=ve", "data.sdf_scale=0.2"], ["sde.prior_share=1", "sampling.sampler=mean"]],
    ids=["vp", "ve", "regression"],
)
def test_a_draw_of_the_true_sdf_has_the_true_area(tmp_path: Path, options: list[str], truncation: int) -> None:
    """Noise of a quarter of a pixel moves as much border out as in, if the threshold is where the border lies."""
    (tmp_path / "a.yaml").write_text("name: a\ndata: {root: x}\n")
    config = load_config(tmp_path / "a.yaml", [*options, f"data.truncation={truncation}"])
    y, x = np.mgrid[:256, :256]
    mask = np.zeros((256, 256), dtype=bool)
    for row, column, radius in ((60, 70, 30), (150, 60, 18), (80, 180, 40), (190, 190, 10), (200, 110, 25)):
        mask |= (y - row) ** 2 + 1.3 * (x - column) ** 2 < radius**2
    noise = np.random.default_rng(0).normal(0, 0.25 / truncation, mask.shape)
    draw = signed_distance(mask, truncation) + noise
    found = classify(draw[None], threshold_of(config)) > 0
    assert found.sum() == pytest.approx(mask.sum(), rel=0.015)


def test_the_papers_threshold_is_an_option(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\ndata: {root: x, truncation: 2}\n")

    def threshold(*options: str) -> float:
        return threshold_of(load_config(tmp_path / "a.yaml", options))

    paper = "sampling.threshold=paper"
    assert threshold() == 0.25
    assert threshold(paper) == pytest.approx(3e-3)
    assert threshold(paper, "data.sdf_scale=0.2") == pytest.approx(3e-3 / 0.2)
    assert threshold(paper, "sde.process=vp") == pytest.approx(3 * 0.0032, rel=0.02)
    assert threshold("data.truncation=1000") == pytest.approx(3e-3)  # no less than what the noise needs
    assert threshold("sampling.threshold=0.1") == 0.1
    assert threshold("data.representation=binary") == threshold("data.representation=binary", paper) == 0


@pytest.mark.parametrize(("scale", "warned"), [(1.0, True), (0.2, False)])
def test_too_narrow_a_prior_is_logged(caplog: pytest.LogCaptureFixture, scale: float, warned: bool) -> None:
    config = load_config(ROOT / "cfg" / "glas.yaml", ["model.channels=8", "model.encoder.channels=8"])
    model = denoiser_of(config, sigma_data=0.57 * scale)
    with caplog.at_level(logging.WARNING):
        warn_of_prior(model, (128, 128))
    assert bool(caplog.records) == warned
    assert not warned or "128x128" in caplog.text


@pytest.mark.parametrize(("prediction", "warned"), [("eps", True), ("score", True), ("edm", False), ("v", False)])
def test_a_direct_mean_that_is_hard_to_learn_is_logged(
    caplog: pytest.LogCaptureFixture, prediction: str, warned: bool
) -> None:
    keys = ["data.raw=x", "model.channels=8", "model.encoder.channels=8", f"sde.prediction={prediction}"]
    with caplog.at_level(logging.WARNING):
        warn_of_direct(denoiser_of(load_config(ROOT / "cfg" / "dsb2018.yaml", keys)))
        warn_of_direct(denoiser_of(load_config(ROOT / "cfg" / "dsb2018.yaml", [*keys, "sde.prior_share=0"])))
    assert len(caplog.records) == warned


def test_names_of_the_schema_are_those_of_the_code() -> None:
    """The ground floor knows no other room, so the schedules' names stand there once more."""
    named = get_args(SDEConfig.model_fields["process"].annotation)
    assert set(named) == {"ve", "vp", "flow", *process.SCHEDULES}
    assert set(sections.SCHEDULES) == set(process.SCHEDULES)
