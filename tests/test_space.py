"""Processes, predictions, weightings and samplers together, from YAML to scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.commands import Workspace, newest, rows

# Every value of every choice at least once.
SYSTEMS = {
    "sgm-sdf, vp": ["sde.process=vp", "sde.prediction=eps", "sde.weighting=score", "sampling.sampler=euler_maruyama"],
    "raw score": ["sde.prediction=score", "sde.weighting=max_snr_one", "sampling.sampler=pc", "sampling.steps=6"],
    "released score": ["sde.prediction=score_raw", "sde.weighting=edm", "sampling.sampler=euler"],
    "flowsdf": ["sde.process=flow", "sde.prediction=velocity", "sde.weighting=uniform",
                "sampling.sampler=flowsdf_released"],
    "ambiguous": ["sde.process=cosine", "sde.input_scale=0.1", "sde.prediction=x", "sde.weighting=sigmoid",
                  "sde.per_logsnr=true", "sampling.sampler=ancestral", "sampling.variance=large"],
    "both": ["sde.process=linear", "sde.prediction=both", "sde.tanh=true", "sde.weighting=min_snr",
             "sampling.sampler=ddim", "sampling.eta=0.5"],
    "v": ["sde.process=linear_simple", "sde.prediction=v", "sde.weighting=snr_plus_one", "sampling.sampler=dpm_solver",
          "sampling.stochastic=true", "data.sdf_scale=0.2"],
    "parabola": ["sde.process=parabola", "sde.prediction=edm", "sampling.sampler=mean"],
    "binary": ["data.representation=binary", "sde.prediction=x", "sde.tanh=true", "sde.weighting=uniform"],
    "exact": ["sampling.sampler=adaptive", "sampling.tolerance=0.1"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_train_and_sample(trained: Workspace, name: str) -> None:
    if name == "exact":
        pytest.importorskip("torchdiffeq")
    options = [a for option in SYSTEMS[name] for a in ("--set", option)]
    for command in ("main", "sample"):
        result = trained(command, *options)
        assert result.code == 0, result.err
    losses = [float(row["loss"]) for row in rows(trained.run_folder()) if row["loss"]]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    summary = json.loads((newest(trained) / "summary.json").read_text())
    assert summary["draws"] == (1 if name == "parabola" else 3)
    assert summary["nfe_per_draw"] == {"raw score": 6, "parabola": 1}.get(name, 5) or name == "exact"
    mmse = np.load(newest(trained) / "phantom_0011" / "mmse.npy")
    assert np.isfinite(mmse).all()
    assert mmse.std() > 0
    if name == "binary":
        assert summary["threshold"] == 0
        assert np.abs(mmse).max() <= 1.0 + 1e-6


def test_the_representation_belongs_to_the_run(trained: Workspace) -> None:
    assert "data.representation" in trained.fails("sample", "--set", "data.representation=binary")
