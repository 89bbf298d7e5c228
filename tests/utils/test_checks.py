"""Settings that do not fit each other are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.commands import DROPOUT, RESUNET, ROOT, Workspace, joint_config, sets
from utils.config import load_config
from utils.errors import ConfigError

DRAWS = ["sde.prior_share=1", "sde.objective=distribution", "sampling.sampler=ancestral", "sampling.steps=1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.foreground=[1]"], "foreground: [1] is for source: folder, not phantom"),
        (["data.classes=[1, 2]"], "classes: source: phantom has objects of one kind only"),
        (["data.classes=[1]"], "data.classes"),
        (["data.classes=[1, 1]", "data.source=prepared"], "must be different values from 1 to 255"),
        (["data.stride=[8, 8]"], "stride: [8, 8] needs data.patch"),
        (["data.crop=[16, 16]", "data.test_patch=[16, 16]"], "does not go with data.crop"),
        (["data.crop=[16, 16]", "data.foreground_share=0.5"], "foreground_share: does not go with data.crop"),
        (["data.foreground_share=0"], "data.foreground_share: 0 is not allowed"),
        (["data.size=[32, 32]", "data.patch=[64, 64]"], "patch: [64, 64] is larger than data.size: [32, 32]"),
        (["data.augment.stain=0.2"], "augment.stain: 0.2 is for color: rgb, not grey"),
        (["data.source=lidc"], "source: lidc needs data.raw"),
        (["data.stain=reinhard"], "data.stain: 'reinhard' is not allowed"),
    ],
)
def test_impossible_combinations(workspace: Workspace, options: list[str], message: str) -> None:
    arguments = [a for option in options for a in ("--set", option)]
    assert message in workspace.fails("prepare", *arguments)
    assert [path.name for path in Path(".").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["sampling.sampler=heun"], "mc_dropout or ensemble"),
        (["data.representation=sdf"], "data.representation: sdf"),
        (["sde.prior_share=0.5"], "sde.prior_share"),
        (["model.second_moment=true"], "model.second_moment"),
        (["training.noises=2"], "training.noises: 2"),
        (["model.backbone=resnet18"], "model.backbone"),
        (["model.dropout=0", *DROPOUT], "model.dropout"),
        (["model.kind=fcn", "model.backbone=resnet18"], "resnet50 or resnet101"),
        (["model.kind=unet", "model.dropout=0.1"], "model.dropout"),
        (["model.kind=unet", "model.dropout=0", "model.multipliers=[1,2]"], "model.multipliers"),
        (["model.kind=unet", "model.dropout=0", "training.batch=1"], "training.batch: 1"),
        (["model.kind=conditional", "model.multipliers=[1,2]", *DROPOUT], "sde.prior_share: 0"),
        (["model.kind=conditional", "model.multipliers=[1,2]", "model.backbone=resnet18"], "model.backbone"),
        (["sampling.sampler=ensemble"], "members"),
        (["sampling.members=[a]"], "members"),
        (["sampling.sampler=ensemble", "sampling.members=[a]", "sampling.draws=auto"], "draws: auto"),
        ([*DROPOUT, "sampling.noise=antithetic"], "noise: antithetic"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused(workspace: Workspace, changes: list[str], words: str) -> None:
    assert words in workspace.fails("main", *sets([*RESUNET, *changes]))


BASELINE = ["data.representation=binary", "sampling.sampler=logits"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("quickstart", ["model.kind=ssn", *BASELINE]),
        ("lidc_small", ["model.kind=ssn", "data.raters=one", *BASELINE]),
        ("quickstart", ["model.kind=joint", "sampling.sampler=dpm_solver", "sampling.steps=14"]),
    ],
)
def test_keys_without_effect_refuse_nothing(name: str, keys: list[str]) -> None:
    """Of a distributional config whose network is changed for a baseline."""
    assert load_config(ROOT / "cfg" / f"{name}.yaml", keys).sde.objective == "mean"
    with pytest.raises(ConfigError, match=r"data\.raters: all"):
        load_config(ROOT / "cfg" / "lidc_small.yaml", ["model.kind=ssn", *BASELINE])


@pytest.mark.parametrize("more", ["sampling.augment=true", "sampling.members=[a]"])
def test_antithetic_pairs_are_of_one_network_in_one_view(workspace: Workspace, more: str) -> None:
    keys = ["data.flips=true", "sampling.sampler=ancestral", "sampling.noise=antithetic", more]
    assert "does not go with sampling.members or sampling.augment" in workspace.fails("main", *sets(keys))


def test_the_second_moment_needs_the_direct_mean(workspace: Workspace) -> None:
    assert "sde.prior_share" in workspace.fails("main", "--set", "model.second_moment=true")


def test_draws_are_a_number_or_auto(workspace: Workspace) -> None:
    assert "sampling.draws" in workspace.fails("sample", "--set", "sampling.draws=many")
    assert "sampling.draws" in workspace.fails("sample", "--set", "sampling.draws=0")


@pytest.mark.parametrize(
    ("override", "needle"),
    [
        ("model.encoder.channels=16", "model.encoder"),
        ("model.second_moment=true", "model.second_moment"),
        ("sde.prior_share=0.25", "sde.prior_share: 0.25"),
        ("sde.prediction=both", "sde.prediction: both"),
        ("model.kind=both", "model.kind"),
        ("sde.clean_share=0.6", "sde.clean_share"),
    ],
)
def test_settings_of_the_other_kind_are_refused(workspace: Workspace, override: str, needle: str) -> None:
    (workspace.path / "config.yaml").write_text(yaml.safe_dump(joint_config()))
    assert needle in workspace.fails("main", "--set", override)
    assert not (workspace.path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["sampling.sampler=flowsdf_released"],
            "sde.process: ve does not go with sampling.sampler: flowsdf_released, which needs flow",
        ),
        (["sde.process=cosine", "sde.prediction=velocity"], "sde.prediction: velocity, which needs ve, vp or flow"),
        (["data.raters=all"], "sde.prior_share: 0.0 does not go with data.raters: all, which needs 1"),
        (
            ["data.raters=all", "model.kind=joint"],
            "model.kind: joint does not go with data.raters: all, which needs conditional",
        ),
        (
            [*DRAWS, "data.raters=all", "model.raters=3"],
            "data.raters: all does not go with model.raters: 3, as whose mask is which must be told",
        ),
        (
            [*DRAWS, "model.raters=3", "sampling.rater=3"],
            "sampling.rater: 3 must be below model.raters: 3, those that the network tells apart",
        ),
        (
            [*DRAWS[:2], "model.raters=3", "sampling.sampler=mean", "sampling.rater=1"],
            "sampling.rater: 1 is for sampler: ancestral, not mean",
        ),
        (["model.raters=3"], "model.raters: 3 is for sde.objective: distribution, not mean"),
        (["sde.tanh=true"], "tanh: true is for prediction: x or both, not edm"),
        (["sde.input_scale=0.5"], "input_scale: 0.5 is for process: cosine, linear, linear_simple or parabola, not ve"),
        (["sampling.eta=0.5"], "eta: 0.5 is for sampler: ddim, not heun"),
        (["sampling.variance=large"], "variance: large is for sampler: ancestral, not heun"),
        (["sampling.order=1"], "order: 1 is for sampler: dpm_solver, not heun"),
        (["sampling.stochastic=true"], "stochastic: true is for sampler: dpm_solver, not heun"),
        (["sampling.sampler=mean", "sampling.grid=rho"], "heun or dpm_solver, not mean"),
        (["sampling.sampler=pc", "sampling.steps=6", "sampling.grid=rho"], "heun or dpm_solver, not pc"),
    ],
)
def test_bad_combinations_are_refused_in_a_sentence(workspace: Workspace, options: list[str], message: str) -> None:
    line = workspace.fails("main", *[a for option in options for a in ("--set", option)])
    assert message in line
