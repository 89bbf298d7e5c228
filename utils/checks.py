"""Which keys of a config go together.

RULES says for every key that depends on a choice with which of its values the key has an effect. `check_sections`
refuses sections that cannot work together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from utils.data_schema import DataConfig, yaml_text
from utils.sections import ONE_PASS, SCHEDULES, ModelConfig, SamplingConfig, SDEConfig, TrainingConfig

DENOISERS = ("conditional", "joint")
TRUNKS = (*DENOISERS, "resunet", "attention_unet")  # kinds of models that are built on one
LIBRARIES = ("unet", "unetplusplus")
FROM_NOISE = ("pc", "euler_maruyama", "ancestral", "ddim", "euler", "heun", "dpm_solver", "flowsdf_released")
ON_A_GRID = ("euler_maruyama", "ancestral", "ddim", "euler", "heun", "dpm_solver")


@dataclass(frozen=True)
class Rule:
    """`keys`, some of them whole sections, have an effect where `owner` is one of `values`.

    by: the keys that decide on the owner, where it is none itself.
    """

    owner: str
    values: tuple[object, ...]
    keys: str
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Idle:
    """A key without effect that has another value than its default; `by`: the keys that leave it without effect."""

    key: tuple[str, ...]
    by: tuple[str, ...]
    refusal: str


RULES = (
    Rule("data.source", ("phantom",), "data.phantom"),
    Rule("data.source", ("glas", "monuseg", "lidc", "dsb2018", "folder"), "data.raw"),
    Rule("data.source", ("glas", "monuseg"), "data.allow_partial"),
    Rule("data.source", ("folder",), "data.foreground data.instances data.window data.group_column"),
    Rule("data.source", ("lidc", "dsb2018", "folder"), "data.test_fraction"),
    Rule("data.source", ("glas", "monuseg", "lidc", "dsb2018", "folder", "prepared"), "data.validation_fraction"),
    Rule("data.stain", ("macenko", "vahadane"), "data.stain_target"),
    Rule("data.color", ("rgb",), "data.augment.stain"),
    Rule("model.kind", DENOISERS, "sde data.sdf_scale training.noises"),
    Rule("model.kind", ("conditional",), "model.encoder model.second_moment sde.prior_share sde.tanh"),
    Rule("model.kind", ("joint",), "sde.clean_share"),
    Rule("model.kind", TRUNKS, "model.blocks model.attention"),
    Rule("model.kind", (*TRUNKS, *LIBRARIES), "model.channels model.multipliers"),
    Rule("model.kind", (*TRUNKS, "fcn"), "model.dropout"),
    Rule("model.kind", (*LIBRARIES, "fcn"), "model.backbone"),
    Rule("model.encoder.kind", ("unet",), "model.encoder.multipliers model.encoder.attention"),
    Rule("sde.process", ("ve", "flow"), "sde.sigma_min"),
    Rule("sde.process", ("ve",), "sde.sigma_max"),
    Rule("sde.process", ("vp",), "sde.beta_min sde.beta_max"),
    Rule("sde.process", SCHEDULES, "sde.input_scale"),
    Rule("sde.prediction", ("x", "both"), "sde.tanh"),
    Rule("sde.weighting", ("sigmoid",), "sde.sigmoid_shift"),
    Rule("training.optimizer", ("adamw",), "training.weight_decay"),
    Rule("training.ema.kind", ("constant",), "training.ema.decay"),
    Rule("training.ema.kind", ("power",), "training.ema.gamma"),
    Rule("sampling.sampler", ("pc",), "sampling.corrector_steps sampling.r sampling.denoise_last"),
    Rule("sampling.sampler", ("ddim",), "sampling.eta"),
    Rule("sampling.sampler", ("ancestral",), "sampling.variance"),
    Rule("sampling.sampler", ("dpm_solver",), "sampling.order sampling.stochastic"),
    Rule("sampling.sampler", ("adaptive",), "sampling.tolerance"),
    Rule("sampling.sampler", ("ensemble",), "sampling.members"),
    Rule("sampling.sampler", FROM_NOISE, "sampling.steps"),
    Rule("sampling.sampler", (*FROM_NOISE, *ONE_PASS), "sampling.max_batch"),
    Rule("sampling.sampler", (*FROM_NOISE, "adaptive"), "sampling.noise"),
    Rule("sampling.sampler", (*FROM_NOISE, "adaptive", "mc_dropout"), "sampling.draws"),
    Rule("sampling.sampler", ON_A_GRID, "sampling.grid"),
    Rule("sampling.used_grid", ("rho",), "sampling.rho", by=("sampling.sampler", "sampling.grid")),
    Rule("sampling.draws", ("auto",), "sampling.standard_error sampling.most_draws"),
)


def _changed(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Keys that differ from their defaults, and their values."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _changed(value, f"{prefix}{name}.")
        elif value != field.default:
            yield prefix + name, value


def idle_keys(config: BaseModel) -> Iterator[Idle]:
    """Keys of a whole config that RULES leave without effect."""
    changed = dict(_changed(config))
    for rule in RULES:
        actual: object = config
        for part in rule.owner.split("."):
            actual = getattr(actual, part)
        if actual in rule.values:
            continue
        section, _, owner = rule.owner.rpartition(".")
        *most, last = map(yaml_text, rule.values)
        allowed = f"{', '.join(most)} or {last}" if most else last
        for key, value in changed.items():
            if any(f"{key}.".startswith(f"{name}.") for name in rule.keys.split()):
                place = "" if key.startswith(f"{section}.") else f"{section}."
                place += owner.removeprefix("used_")
                refusal = f"{key}: {yaml_text(value)} is for {place}: {allowed}, not {yaml_text(actual)}"
                yield Idle(tuple(key.split(".")), rule.by or (rule.owner,), refusal)


def check_sections(
    data: DataConfig, model: ModelConfig, sde: SDEConfig, training: TrainingConfig, sampling: SamplingConfig
) -> None:
    """Raises ValueError, one sentence, for sections that cannot work together."""
    sampler = sampling.sampler
    if sampler == "flowsdf_released" and sde.process != "flow":
        raise ValueError(f"sampling.sampler: flowsdf_released is for sde.process: flow, not {sde.process}")
    if sampler == "mc_dropout" and model.dropout == 0:
        raise ValueError(
            "sampling.sampler: mc_dropout drops units at the rate of model.dropout, which is 0; train with more"
        )
    if model.is_baseline:
        check_baseline(data, model, training, sampler)
        return
    if model.kind == "joint" and sde.prediction == "both":
        raise ValueError("sde.prediction: both is for model.kind: conditional, not joint; use edm")
    if sde.prior_share == 0:
        if sampler in ("mc_dropout", "ensemble"):
            raise ValueError(
                f"sampling.sampler: {sampler} draws from the direct mean, which sde.prior_share: 0 does not train"
            )
        if model.second_moment:
            raise ValueError("model.second_moment: needs the direct mean, which sde.prior_share: 0 does not train")
    if sde.prior_share == 1 and sampler not in ONE_PASS:
        raise ValueError(
            f"sde.prior_share: 1 trains the direct mean only; it goes with sampling.sampler: {', '.join(ONE_PASS)}"
        )


def check_baseline(data: DataConfig, model: ModelConfig, training: TrainingConfig, sampler: str) -> None:
    """What a baseline needs; see `check_sections`."""
    if sampler not in ONE_PASS:
        raise ValueError(
            f"sampling.sampler: {sampler} starts from noise, which model.kind: {model.kind} does not know; use mean, "
            "mc_dropout or ensemble"
        )
    if data.representation != "binary":
        raise ValueError(
            f"data.representation: {data.representation} is not what model.kind: {model.kind} predicts; use "
            "binary, or sde.prior_share: 1 for a regression of the SDF"
        )
    if model.kind in TRUNKS:
        return
    if training.batch < 2:
        raise ValueError(f"training.batch: 1 is too small for the batch norms of model.kind: {model.kind}")
    if model.kind == "fcn":
        if model.backbone not in (None, "resnet50", "resnet101"):
            raise ValueError(f"model.backbone: {model.backbone} is not for model.kind: fcn; resnet50 or resnet101")
    elif not 3 <= len(model.multipliers) <= 5:
        raise ValueError(
            f"model.multipliers: {list(model.multipliers)} must be 3 to 5 values for model.kind: {model.kind}"
        )
