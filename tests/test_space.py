"""Processes, predictions, weightings and samplers together, from YAML to scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers import Workspace

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


def test_the_representation_belongs_to_the_run(trained: Workspace) -> None:
    assert "data.representation" in trained.fails("sample", "--set", "data.representation=binary")


# The schedules stand still at t = 0, where a velocity says nothing: refused (test_space.py).
PAIRS = [
    (process, prediction)
    for process in ("ve", "vp", "cosine", "flow")
    for prediction in ("edm", "x", "eps", "v", "velocity", "both", "score", "score_raw")
    if (process, prediction) != ("cosine", "velocity")
]


@pytest.mark.parametrize(("process", "prediction"), PAIRS)
def test_every_process_and_prediction_trains_and_samples(trained: Workspace, process: str, prediction: str) -> None:
    choice = [
        "--set",
        f"sde.process={process}",
        "--set",
        f"sde.prediction={prediction}",
        "--set",
        "sde.weighting=score",
    ]
    assert trained("main", *choice, "--set", "training.steps=2", "--set", "data.sdf_scale=0.2").code == 0
    result = trained("sample", *choice, "--set", "data.sdf_scale=0.2", "--set", "sampling.draws=1")
    assert result.code == 0, result.err
