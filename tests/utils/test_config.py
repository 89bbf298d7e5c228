"""Reading YAML: bases, overrides, one line of error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from models.build import threshold_of
from tests.commands import ROOT
from utils.config import dump_config, effective, load_config, parse_config
from utils.errors import ConfigError


@pytest.mark.parametrize("path", sorted((ROOT / "cfg").glob("baseline_*.yaml")), ids=lambda p: p.stem)
def test_configs_are_valid(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.data.root == load_config(ROOT / "cfg" / "glas.yaml").data.root


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path / "a.yaml", "name: a\ndata: {root: x}\n")


@pytest.mark.parametrize("path", sorted((ROOT / "cfg").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_load_and_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    again = load_config(write(tmp_path / "again.yaml", dump_config(config)))
    assert again == config


def test_glas_is_the_papers_experiment() -> None:
    config = load_config(ROOT / "cfg" / "glas.yaml")
    assert (config.sde.sigma_min, config.sde.sigma_max, config.training.learning_rate) == (1e-3, 5.0, 1e-4)
    assert (config.data.size, config.data.color, config.data.flips) == ((128, 128), "grey", True)
    sampling = config.sampling
    assert sampling.steps // (1 + sampling.corrector_steps) == 200
    assert (sampling.corrector_steps, sampling.r, sampling.draws) == (1, 0.15, 128)
    assert (config.data.sdf_scale, config.sampling.threshold) == (0.2, "paper")
    assert threshold_of(config) == pytest.approx(3e-3 / 0.2)


def test_base_and_overrides(tmp_path: Path, minimal: Path) -> None:
    child = write(tmp_path / "b.yaml", "base: a.yaml\nsde: {process: vp}\ntraining: {learning_rate: 1e-3}\n")
    config = load_config(child, ["training.steps=7", "model.multipliers=[1, 2]"])
    assert (config.name, config.sde.process, config.training.steps) == ("a", "vp", 7)
    assert config.training.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as text
    assert config.model.multipliers == (1, 2)


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        ("name: a\ndata: {root: x, trunkation: 3}", ["data.trunkation", "did you mean data.truncation"]),
        ("name: a\ndata: {root: x}\ntrainig: {}", ["trainig", "did you mean training"]),
        (
            "name: a\ndata: {root: x}\nmodel: {encoder: {chanels: 3}}",
            ["model.encoder.chanels", "model.encoder.channels"],
        ),
        ("name: a\ndata: {root: x, truncation: wide}", ["data.truncation", "'wide'", "number"]),
        ("name: a\ndata: {root: x, truncation: -1}", ["data.truncation", "-1", "greater than 0"]),
        ("name: a\ndata: {root: x, truncation: .nan}", ["data.truncation", "finite"]),
        ("name: a\ndata: {root: x}\ntraining: {steps: true}", ["training.steps", "True", "number"]),
        ("name: a\ndata: {root: x}\ntraining: {steps: 1.5}", ["training.steps", "1.5"]),
        ("name: a\ndata: {root: x}\nsde: {process: vpp}", ["sde.process", "'vpp'", "'parabola' or 'flow'"]),
        ("name: a\ndata: {root: x}\nsde: {sigma_min: 6}", ["sde.sigma_min: 6", "below sigma_max"]),
        ("name: a\ndata: {root: x}\nsampling: {steps: 5}", ["sampling.steps: 5", "not a multiple"]),
        (
            "name: a\ndata: {root: x}\nsampling: {grid: rho}",
            ["sampling.grid: rho is for sampler: euler_maruyama", "heun or dpm_solver, not pc"],
        ),
        ("name: a\ndata: {root: x}\nsampling: {eta: 0.5}", ["sampling.eta: 0.5", "ddim"]),
        ("name: a\ndata: {root: x}\nmodel: {attention: [3]}", ["model.attention: 3", "down-sampling factor"]),
        ("name: a\ndata: {root: x}\ntraining: {weight_decay: 0.1}", ["training.weight_decay", "adamw"]),
        ("name: a\ndata: {root: x, source: glas}", ["data.source: glas needs data.raw"]),
        ("name: a/b\ndata: {root: x}", ["name", "'a/b'"]),
        ("data: {root: x}", ["name is missing"]),
        ("name: a", ["data is missing"]),
        ("name: a\nname: b\ndata: {root: x}", ["'name' is given twice"]),
        ("- 1", ["mapping of sections, not list"]),
        ("name: [a", ["not valid YAML"]),
        ("base: nowhere.yaml\nname: a", ["nowhere.yaml", "cannot be read"]),
        ("base: bad.yaml\nname: a", ["circle"]),
        ("base: 3\nname: a", ["path of another config"]),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, text: str, needles: list[str]) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    for needle in needles:
        assert needle in message, message


IDLE = [
    ("sampling.rho=3", "sampling.rho: 3.0 is for grid: rho, not logsnr", "sampling.grid=rho sampling.sampler=heun"),
    ("sampling.tolerance=0.1", "sampling.tolerance: 0.1 is for sampler: adaptive, not pc", "sampling.sampler=adaptive"),
    ("sampling.standard_error=0.1", "sampling.standard_error: 0.1 is for draws: auto, not 128", "sampling.draws=auto"),
    ("sampling.most_draws=9", "sampling.most_draws: 9 is for draws: auto, not 128", "sampling.draws=auto"),
    ("sde.sigmoid_shift=-1", "sde.sigmoid_shift: -1.0 is for weighting: sigmoid, not score", "sde.weighting=sigmoid"),
    ("sde.beta_max=9", "sde.beta_max: 9.0 is for process: vp, not ve", "sde.process=vp"),
    ("training.ema.gamma=3", "training.ema.gamma: 3.0 is for kind: power, not constant", "training.ema.kind=power"),
    ("data.allow_partial=true", "is for source: glas or monuseg, not prepared", "data.source=glas data.raw=x"),
    ("data.phantom.size=32", "data.phantom.size: 32 is for source: phantom, not prepared", "data.source=phantom"),
    ("model.backbone=resnet18", "model.backbone: resnet18 is for kind: unet, unetplusplus or fcn, not conditional",
     "model.kind=fcn data.representation=binary sampling.sampler=mean model.backbone=resnet50"),
]  # fmt: skip


@pytest.mark.parametrize(("idle", "message", "used"), IDLE, ids=[idle for idle, _, _ in IDLE])
def test_a_key_without_effect_is_refused_and_with_effect_is_not(
    minimal: Path, idle: str, message: str, used: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [idle])
    assert str(caught.value).startswith(f"--set {idle}: ")
    assert message in str(caught.value)
    load_config(minimal, [idle, *used.split()])


@pytest.mark.parametrize(
    ("choice", "idle"),
    [
        ("sampling.sampler=heun", "sampling.r=0.3"),
        ("sampling.sampler=heun", "sampling.corrector_steps=3"),
        ("sampling.sampler=heun", "sampling.denoise_last=true"),
        ("sampling.sampler=mean", "sampling.steps=10"),
        ("sampling.sampler=mean", "sampling.draws=10"),
        ("sde.process=vp", "sde.sigma_max=3"),
        ("sde.process=cosine", "sde.sigma_min=0.1"),
        ("training.ema.kind=power", "training.ema.decay=0.9"),
        ("model.encoder.kind=rrdb", "model.encoder.attention=[2]"),
    ],
)
def test_what_a_base_set_for_another_choice_takes_its_default(tmp_path: Path, choice: str, idle: str) -> None:
    base = write(tmp_path / "a.yaml", "name: a\ndata: {root: x}\n")
    before = load_config(base, [choice])
    key, value = idle.split("=")
    section, *inner, name = key.split(".")
    text = f"{name}: {value}"
    for part in reversed(inner):
        text = f"{part}: {{{text}}}"
    write(base, f"name: a\ndata: {{root: x}}\n{section}: {{{text}}}\n")
    assert load_config(base) != before
    assert load_config(base, [choice]) == before
    with pytest.raises(ConfigError, match=re.escape(key)):
        load_config(base, [choice, idle])
    assert effective(base, [choice, idle]) == [choice]


def test_error_names_the_file_the_key_stands_in(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "name: a\ndata: {root: x, truncation: -3}\n")
    child = write(tmp_path / "b.yaml", "base: a.yaml\ntraining: {steps: 3}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: data\.truncation"):
        load_config(child)
    with pytest.raises(ConfigError, match=r"--set training\.steps=no: training\.steps"):
        load_config(child, ["data.truncation=3", "training.steps=no"])


@pytest.mark.parametrize("override", ["training.steps", "=3", "training..steps=3", "training.steps=[1"])
def test_malformed_override(minimal: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(minimal, [override])


def test_stored_configs_may_say_what_is_gone(minimal: Path) -> None:
    """Only with the value that runs without the option had."""
    before = yaml.safe_load(minimal.read_text())
    assert parse_config({**before, "model": {"channels": 8, "anchored": False}}, minimal).model.channels == 8
    with pytest.raises(ConfigError, match=r"model\.anchored is not a known key"):
        parse_config({**before, "model": {"anchored": True}}, minimal)
