"""Networks and thresholds from a config."""

from __future__ import annotations

import pytest
import torch

from models.build import denoiser_of
from tests.helpers import ROOT
from utils.config import load_config


@pytest.mark.parametrize(
    ("config", "low", "high"), [("quickstart", 0.5e6, 1.5e6), ("glas_small", 1e6, 3e6), ("glas", 55e6, 70e6)]
)
def test_sizes_by_config(config: str, low: float, high: float) -> None:
    with torch.device("meta"):
        model = denoiser_of(load_config(ROOT / "cfg" / f"{config}.yaml"))
    assert low < sum(p.numel() for p in model.parameters()) < high
