"""Scores over evaluations per draw."""

from __future__ import annotations

from utils.command import run_command

import json

import pandas as pd
import pytest

from bench import nfe
from tests.commands import Workspace


@pytest.mark.slow
def test_nfe_scores_every_sampler_and_goes_on(trained: Workspace) -> None:
    options = ["--config", "config.yaml", "--device", "cpu", "--nfe", "1", "2", "--split", "test"]
    samplers = ["--samplers", "heun", "pc", "mean", "flowsdf_released"]

    def run(*more: str) -> int:
        return run_command(lambda: nfe.main([*options, *more]))

    assert run("--samplers", "heun") == 0
    assert run(*samplers) == 0
    path = trained.run_folder() / "nfe_test.csv"
    table = pd.read_csv(path)
    rows = list(zip(table["sampler"], table["nfe"], table["draws"], strict=True))
    assert rows == [("heun", 1, 3), ("heun", 2, 3), ("mean", 1, 1), ("pc", 2, 3)]
    assert table["mmse_f1"].between(0, 1).all()
    assert path.with_suffix(".png").stat().st_size > 5000
    assert "| heun | 1 | 3 | 3 |" in path.with_suffix(".md").read_text()
    assert trained("sample", "--set", "sampling.steps=2").code == 0
    summary = json.loads((next((trained.run_folder() / "samples").iterdir()) / "summary.json").read_text())
    assert table["mmse_f1"][1] == pytest.approx(summary["mmse"]["f1"], abs=1e-6)
    assert table["single_f1"][1] == pytest.approx(summary["single"]["f1"], abs=1e-6)
    assert run("--nfe", "0") == 2
