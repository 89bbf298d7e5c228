"""Every config that the schema accepts trains a step and makes a draw; every other one is refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from data.rows import Patch
from sampling.drawer import drawer_of, image_tensor
from sampling.loading import drawing, set_draws
from sampling.sampler import draws_of
from training.session import build_state, read_steps, training_step
from utils.config import parse_config
from utils.data_schema import AugmentConfig, DataConfig, PhantomConfig
from utils.errors import ConfigError, UsageError
from utils.schema import Config
from utils.sections import ONE_PASS, STOCHASTIC, EvaluationConfig

FEW = st.integers(1, 3)
# Values that keep a step small, or that lie where a choice could hide; Literals and bools take any of theirs.
POOLS: dict[str, Any] = {
    "name": st.just("any"),
    "seed": st.sampled_from([0, 2**63 - 1]),
    "root": st.just("nowhere"),
    "raw": st.just("raw"),
    "channels": st.sampled_from([4, 5, 7, 12, 43]),
    "backbone": st.sampled_from([None, "resnet18"]),
    "multipliers": st.lists(st.integers(1, 2), min_size=2, max_size=3),
    "attention": st.lists(st.sampled_from([1, 2]), max_size=1),
    "blocks": st.integers(1, 2),
    "dropout": st.sampled_from([0.0, 0.3]),
    "source": st.sampled_from(["prepared", "folder"]),
    "size": st.none(),
    "patch": st.none(),
    "stride": st.none(),
    "test_patch": st.none(),
    "crop": st.sampled_from([None, [8, 16], [16, 16]]),
    "truncation": st.sampled_from([2, 15]),
    "sdf_scale": st.sampled_from([0.2, 1.0, 3.0]),
    "classes": st.sampled_from([None, [1, 2], [3, 1, 2]]),
    "sigma_min": st.sampled_from([1e-5, 1e-3, 0.1]),
    "sigma_max": st.sampled_from([0.5, 5.0, 50.0]),
    "beta_min": st.sampled_from([0.01, 0.1, 1.0]),
    "beta_max": st.sampled_from([1.0, 20.0]),
    "input_scale": st.sampled_from([0.05, 0.1, 1.0]),
    "sigmoid_shift": st.sampled_from([-4.0, 0.0, 4.0]),
    "prior_share": st.sampled_from([0.0, 0.3, 1.0]),
    "clean_share": st.sampled_from([0.0, 0.25, 0.5]),
    "batch": FEW,
    "noises": FEW,
    "warmup": st.integers(0, 2),
    "steps": st.sampled_from([6, 12]),
    "corrector_steps": st.integers(0, 2),
    "gamma": st.just(0.3),
    "latent": FEW,
    "members": st.sampled_from([["a"], ["a", "b"]]),
    "draws": st.sampled_from([1, 2, "auto"]),
}
GIVEN = {"name", "root", "raw", "data", "model", "encoder", "channels", "multipliers", "sampling", "steps", "draws",
         "members", "training", "batch", "kind", "sampler", "process", "prediction"}  # always there  # fmt: skip


def tree_of(section: type[BaseModel]) -> Any:
    """Mappings with some of the keys of a section."""
    keys = {name: values_of(name, field.annotation) for name, field in section.model_fields.items()}
    keys = {name: values for name, values in keys.items() if values is not None}
    always = {name: values for name, values in keys.items() if name in GIVEN}
    return st.fixed_dictionaries(always, optional={n: v for n, v in keys.items() if n not in GIVEN})


def values_of(name: str, annotation: Any) -> Any:
    """Values of a key; None for keys that change nothing here, which keep their defaults."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return None if annotation in (PhantomConfig, EvaluationConfig) else tree_of(annotation)
    if name in POOLS:
        return POOLS[name]
    kinds = [annotation, *get_args(annotation)]
    texts = [text for kind in kinds if get_origin(kind) is Literal for text in get_args(kind)]
    if texts:
        return st.sampled_from([*texts, *([None] if type(None) in kinds else [])])
    if annotation is bool:
        return st.booleans()
    return st.sampled_from([0.0, 0.3]) if name in AugmentConfig.model_fields else None


def brought_together(tree: dict[str, Any]) -> dict[str, Any]:
    """The mapping with the values that its kind of model needs."""
    data, model, sde, sampling = (tree.setdefault(name, {}) for name in ("data", "model", "sde", "sampling"))
    kind, sampler = model.get("kind", "conditional"), sampling.get("sampler", "pc")
    if kind in ("conditional", "joint"):
        if sde.get("process") not in ("ve", "vp", "flow") and sde.get("prediction") == "velocity":
            sde["prediction"] = "v"
        if kind == "conditional" and sde.get("objective") == "distribution":
            sde["prior_share"] = sde.get("prior_share") or 1.0
            sampling["sampler"] = sampler if sampler in ONE_PASS else "ancestral"
            sampling["steps"] = 1 if sde["prior_share"] == 1 else sampling["steps"]
            for key in ("variance", "noise"):
                sampling.pop(key, None)
        elif kind == "conditional" and (sampler in ONE_PASS or sde.get("prior_share") == 1):
            sde["prior_share"], sampling["sampler"] = 1.0, sampler if sampler in ONE_PASS else "mean"
        if sampler == "mc_dropout":
            model["dropout"] = 0.3
        model["second_moment"] = (
            model.get("second_moment", False)
            and sde.get("prior_share", 0) > 0
            and sde.get("objective") != "distribution"
        )
        model["encoder"]["multipliers"] = model["multipliers"]
        return tree
    data["representation"] = "binary"
    if sampler not in (*ONE_PASS, *(("logits",) if kind in STOCHASTIC else ())):
        sampling["sampler"] = "logits" if kind in STOCHASTIC else "mean"
    if kind == "fcn":
        model["backbone"] = None
    elif kind in ("unet", "unetplusplus"):
        model["multipliers"] = [2, 1, *model["multipliers"]][:4]
    tree["training"]["batch"] = 2
    return tree


TREES = st.one_of(tree_of(Config), *[tree_of(Config).map(brought_together)] * 4)


def patches_of(data: DataConfig) -> list[Patch]:
    rng = np.random.default_rng(0)
    shape = (16, 16) if data.color == "grey" else (16, 16, 3)
    patches = []
    for name in "abc":
        sdf = rng.uniform(-1, 1, (1, data.channels, 16, 16)).astype(np.float32)
        labels = (sdf[0].min(axis=0) <= 0).astype(np.uint8)
        patches.append(Patch(name, name, f"{name}.png", rng.integers(0, 255, shape, np.uint8), sdf, labels))
    return patches


def one_step_and_one_draw(tree: dict[str, Any]) -> None:
    config = parse_config(tree, Path("any.yaml"))
    patches = patches_of(config.data)
    state = build_state(config, patches, torch.device("cpu"))
    taken = [training_step(state, config.data, config.sde, config.training)]
    read_steps(taken, state.team, patches, Path("nowhere"))
    trained = state.average.module.eval()
    set_draws(trained, config.sampling)
    denoiser = drawing(config.data, config.sampling, [trained, *[trained] * len(config.sampling.members)], (16, 16))
    drawer = drawer_of(config, denoiser)
    count = min(2, draws_of(config.sampling, denoiser))
    draws = [draw for _, draw in drawer(image_tensor(patches[:1]), ["a"], count)]
    assert len(draws) == count
    for draw in draws:
        assert draw.shape == (config.data.channels, 16, 16)
        assert torch.isfinite(draw).all()


def check(tree: dict[str, Any]) -> None:
    message = ""
    try:
        one_step_and_one_draw(tree)
    except (ConfigError, UsageError) as error:
        message = str(error)
    assert len(message.splitlines()) <= 1
    assert len(message) <= 300


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES.filter(lambda tree: tree["model"]["kind"] not in ("unet", "unetplusplus", "fcn")))
def test_accepted_configs_train_and_draw(tree: dict[str, Any]) -> None:
    check(tree)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES)
def test_accepted_configs_train_and_draw_with_the_networks_of_libraries(tree: dict[str, Any]) -> None:
    check(tree)
