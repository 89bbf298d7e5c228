"""Which keys of a config go together: two tables of choices, and what is no choice from a list.

Sections are given as a mapping of their names; keys are dotted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

from pydantic import BaseModel

from utils.data_schema import yaml_text
from utils.sections import ONE_PASS, PREDICTIONS, SCHEDULES, STOCHASTIC

DENOISERS = ("conditional", "joint")
TRUNKS = (*DENOISERS, "resunet", "attention_unet", *STOCHASTIC)  # kinds of models that are built on one
LIBRARIES = ("unet", "unetplusplus")
BASELINES = ("resunet", "attention_unet", *LIBRARIES, "fcn")  # whose logits have no distribution
ON_A_GRID = ("euler_maruyama", "ancestral", "ddim", "euler", "heun", "dpm_solver")
FROM_NOISE = ("pc", *ON_A_GRID, "flowsdf_released")

# With which values of a key other keys, or whole sections, have an effect.
RULES: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("data.source", ("phantom",), "data.phantom"),
    ("data.source", ("glas", "monuseg", "lidc", "dsb2018", "folder"), "data.raw"),
    ("data.source", ("glas", "monuseg"), "data.allow_partial"),
    ("data.source", ("folder",), "data.foreground data.instances data.window data.group_column"),
    ("data.source", ("monuseg", "lidc", "dsb2018", "folder"), "data.test_fraction"),
    ("data.source", ("glas", "monuseg", "lidc", "dsb2018", "folder", "prepared"), "data.validation_fraction"),
    ("data.stain", ("macenko", "vahadane"), "data.stain_target"),
    ("data.color", ("rgb",), "data.augment.stain"),
    ("model.kind", DENOISERS, "sde data.sdf_scale training.noises"),
    ("model.kind", ("conditional",), "model.encoder model.second_moment sde.prior_share sde.tanh sde.objective"),
    ("model.kind", ("conditional",), "sde.mask_weight"),
    ("model.kind", ("joint",), "sde.clean_share"),
    ("model.kind", TRUNKS, "model.blocks model.attention model.unshuffle"),
    ("model.kind", (*TRUNKS, *LIBRARIES), "model.channels model.multipliers"),
    ("model.kind", (*TRUNKS, "fcn"), "model.dropout"),
    ("model.kind", (*LIBRARIES, "fcn"), "model.backbone"),
    ("model.kind", ("ssn",), "model.rank"),
    ("model.kind", ("prob_unet",), "model.latent model.beta"),
    ("model.encoder.kind", ("unet",), "model.encoder.multipliers model.encoder.attention"),
    ("model.encoder.kind", ("unet", "rrdb"), "model.encoder.blocks"),
    ("model.encoder.kind", ("timm",), "model.encoder.name model.encoder.pretrained model.encoder.frozen"),
    ("model.encoder.kind", ("timm",), "training.encoder_rate"),
    ("model.encoder.frozen", (False,), "training.encoder_rate"),
    ("data.representation", ("sdf",), "sde.mask_weight"),
    ("sde.process", ("ve", "flow"), "sde.sigma_min"),
    ("sde.process", ("ve",), "sde.sigma_max"),
    ("sde.process", ("vp",), "sde.beta_min sde.beta_max"),
    ("sde.process", SCHEDULES, "sde.input_scale"),
    ("sde.prediction", ("x", "both"), "sde.tanh"),
    ("sde.objective", ("mean",), "model.second_moment sampling.noise"),
    ("sde.objective", ("distribution",), "sde.mean_first sde.overlap sampling.spread model.raters"),
    ("sde.weighting", ("sigmoid",), "sde.sigmoid_shift"),
    ("training.optimizer", ("adamw",), "training.weight_decay"),
    ("training.ema.kind", ("constant",), "training.ema.decay"),
    ("training.ema.kind", ("power",), "training.ema.gamma"),
    ("sampling.sampler", ("pc",), "sampling.corrector_steps sampling.r sampling.denoise_last"),
    ("sampling.sampler", ("ddim",), "sampling.eta"),
    ("sampling.sampler", ("ancestral",), "sampling.variance sampling.rater"),
    ("sampling.sampler", ("dpm_solver",), "sampling.order sampling.stochastic"),
    ("sampling.sampler", ("adaptive",), "sampling.tolerance"),
    ("sampling.sampler", ("ensemble", *FROM_NOISE, "adaptive", "logits"), "sampling.members"),
    ("sampling.sampler", FROM_NOISE, "sampling.steps"),
    ("sampling.sampler", (*FROM_NOISE, *ONE_PASS, "logits"), "sampling.max_batch"),
    ("sampling.sampler", (*FROM_NOISE, "adaptive"), "sampling.noise"),
    ("sampling.sampler", (*FROM_NOISE, "adaptive", "mc_dropout", "logits"), "sampling.draws"),
    ("sampling.sampler", ON_A_GRID, "sampling.grid"),
    ("sampling.steps", (1,), "sampling.spread"),
    ("sampling.used_grid", ("rho",), "sampling.rho"),
    ("sampling.draws", ("auto",), "sampling.standard_error sampling.most_draws"),
)
DECIDED_BY = {"sampling.used_grid": ("sampling.sampler", "sampling.grid")}  # all others by the key itself

# Which values of a key need which values of another.
NEEDS: tuple[tuple[str, tuple[object, ...], str, tuple[object, ...]], ...] = (
    ("sampling.sampler", ("flowsdf_released",), "sde.process", ("flow",)),
    ("sde.objective", ("distribution",), "sampling.sampler", ("ancestral", *ONE_PASS)),
    ("sde.objective", ("distribution",), "sampling.variance", ("small",)),
    ("sde.prediction", ("velocity",), "sde.process", ("ve", "vp", "flow")),  # the others stand still at t = 0
    ("data.raters", ("all",), "model.kind", ("conditional",)),
    ("data.raters", ("all",), "sde.prior_share", (1,)),  # z_t at other times is one rater's, who is to be scored alone
    ("model.kind", ("joint",), "sampling.members", ((),)),
    ("model.kind", ("joint",), "sde.prediction", tuple(name for name in PREDICTIONS if name != "both")),
    ("sampling.sampler", ("logits",), "model.kind", STOCHASTIC),
    ("model.kind", STOCHASTIC, "sampling.sampler", (*ONE_PASS, "logits")),
    ("model.kind", BASELINES, "sampling.sampler", ONE_PASS),
    ("model.kind", (*BASELINES, *STOCHASTIC), "data.representation", ("binary",)),
    ("model.kind", ("fcn",), "model.backbone", (None, "resnet50", "resnet101")),
)


def _value(sections: Mapping[str, Any], key: str) -> Any:
    first, *rest = key.split(".")
    return reduce(getattr, rest, sections[first])


def _one_of(values: Sequence[object]) -> str:
    *most, last = map(yaml_text, values)
    return f"{', '.join(most)} or {last}" if most else last


def _changed(section: BaseModel, prefix: str) -> Iterator[tuple[str, object]]:
    """Keys that differ from their defaults, and their values."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _changed(value, f"{prefix}.{name}")
        elif value != field.default:
            yield f"{prefix}.{name}", value


def idle_keys(sections: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Keys that differ from their defaults without effect; the keys that decide on that; and a sentence."""
    changed = [pair for name, part in sections.items() if isinstance(part, BaseModel) for pair in _changed(part, name)]
    for owner, values, keys in RULES:
        actual = _value(sections, owner)
        if actual in values:
            continue
        section, _, name = owner.rpartition(".")
        for key, value in changed:
            if any(f"{key}.".startswith(f"{each}.") for each in keys.split()):
                place = ("" if key.startswith(f"{section}.") else f"{section}.") + name.removeprefix("used_")
                refusal = f"{key}: {yaml_text(value)} is for {place}: {_one_of(values)}, not {yaml_text(actual)}"
                yield key, DECIDED_BY.get(owner, (owner,)), refusal


def check_sections(sections: Mapping[str, Any]) -> None:
    """Raises ValueError, one sentence, for sections that cannot work together. Keys without effect play no part."""
    idle = {key for key, _, _ in idle_keys(sections)}
    for key, values, other, allowed in NEEDS:
        value, actual = _value(sections, key), _value(sections, other)
        if value in values and actual not in allowed and not idle & {key, other}:
            raise ValueError(
                f"{other}: {yaml_text(actual)} does not go with {key}: {value}, which needs {_one_of(allowed)}"
            )
    encoder = sections["model"].encoder
    kind, sampler, direct = sections["model"].kind, sections["sampling"].sampler, sections["sde"].prior_share
    draws = sections["sde"].objective == "distribution" and "sde.objective" not in idle
    message, untrained = "", "needs the direct mean, which sde.prior_share: 0 does not train"
    if sampler == "mc_dropout" and sections["model"].dropout == 0:
        message = "sampling.sampler: mc_dropout drops units at the rate of model.dropout, which is 0; train with more"
    elif kind in (*LIBRARIES, "fcn") and sections["training"].batch < 2:
        message = f"training.batch: 1 is too small for the batch norms of model.kind: {kind}"
    elif encoder.kind == "timm" and not encoder.frozen and sections["training"].batch < 2:
        message = "training.batch: 1 is too small for batch norms of model.encoder.kind: timm; use encoder.frozen: true"
    elif kind in LIBRARIES and not 3 <= len(sections["model"].multipliers) <= 5:
        message = f"model.multipliers: must be 3 to 5 values for model.kind: {kind}"
    elif kind in DENOISERS and direct == 0 and sampler in ("mc_dropout", "ensemble"):
        message = f"sampling.sampler: {sampler} {untrained}"
    elif kind == "conditional" and direct == 0 and sections["model"].second_moment:
        message = f"model.second_moment: {untrained}"
    elif draws and direct == 0:
        message = f"sde.objective: distribution {untrained}"
    elif draws and direct == 1 and sampler == "ancestral" and sections["sampling"].steps > 1:
        message = f"sampling.steps: {sections['sampling'].steps} must be 1, as sde.prior_share: 1 trains draws in one"
    elif kind == "conditional" and direct == 1 and not draws and sampler not in ONE_PASS:
        message = f"sde.prior_share: 1 trains the direct mean only; use sampling.sampler: {_one_of(ONE_PASS)}"
    elif (raters := sections["model"].raters) and sections["data"].raters == "all":
        message = f"data.raters: all does not go with model.raters: {raters}, as whose mask is which must be told"
    elif (rater := sections["sampling"].rater) is not None and rater >= raters:
        message = f"sampling.rater: {rater} must be below model.raters: {raters}, those that the network tells apart"
    elif sections["sampling"].noise == "antithetic" and (sections["sampling"].members or sections["sampling"].augment):
        message = "sampling.noise: antithetic does not go with sampling.members or sampling.augment, "
        message += "where the two of a pair would be of different networks or views"
    elif sections["sampling"].augment and not (sections["data"].flips or sections["data"].rotations):
        message = "sampling.augment: shows images as data.flips and data.rotations do in training, and both are off"
    if message:
        raise ValueError(message)
