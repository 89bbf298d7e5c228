"""Processes, predictions, weightings and samplers together, from YAML to scores; what does not fit is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conftest import Workspace

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
          "sampling.stochastic=true"],
    "parabola": ["sde.process=parabola", "sde.prediction=edm", "sampling.sampler=mean"],
    "binary": ["data.representation=binary", "sde.prediction=x", "sde.tanh=true", "sde.weighting=uniform"],
    "exact": ["sampling.sampler=adaptive", "sampling.tolerance=0.1"],
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_train_and_sample(workspace: Workspace, name: str) -> None:
    if name == "exact":
        pytest.importorskip("torchdiffeq")
    options = [a for option in SYSTEMS[name] for a in ("--set", option)]
    for command in ("prepare", "main", "sample"):
        result = workspace(command, *options)
        assert result.code == 0, result.err
    folder = next((workspace.run_folder() / "samples").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["draws"] == (1 if name == "parabola" else 3)
    assert summary["nfe_per_draw"] > 0
    mmse = np.load(folder / "phantom_0011" / "mmse.npy")
    assert np.isfinite(mmse).all()
    if name == "binary":
        assert summary["threshold"] == 0
        assert np.abs(mmse).max() <= 1.0 + 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sampling.sampler=flowsdf_released"], "flowsdf_released is for sde.process: flow, not ve"),
        (["sde.process=cosine", "sde.prediction=velocity"], "cosine stands still at t = 0"),
        (["sde.tanh=true"], "tanh: is for prediction: x or both, not edm|tanh: bounds a predicted mask"),
        (["sde.input_scale=0.5"], "is for the schedules"),
        (["sampling.eta=0.5"], "eta: 0.5 is for sampler: ddim, not heun"),
        (["sampling.variance=large"], "variance: large is for sampler: ancestral, not heun"),
        (["sampling.order=1"], "order: 1 is for sampler: dpm_solver, not heun"),
        (["sampling.stochastic=true"], "stochastic: True is for sampler: dpm_solver, not heun"),
        (["sampling.sampler=mean", "sampling.grid=rho"], "grid: rho is not for sampler: mean"),
        (["sampling.sampler=pc", "sampling.steps=6", "sampling.grid=rho"], "grid: rho is not for sampler: pc"),
    ],
)
def test_bad_combinations_are_refused_in_a_sentence(workspace: Workspace, options: list[str], message: str) -> None:
    line = workspace.fails("main", *[a for option in options for a in ("--set", option)])
    assert any(part in line for part in message.split("|"))


def test_the_representation_belongs_to_the_run(trained: Workspace) -> None:
    assert "data.representation" in trained.fails("sample", "--set", "data.representation=binary")
