"""Which sections of a config go together: every function raises ValueError, one sentence, for those that do not."""

from __future__ import annotations

from utils.data_schema import DataConfig
from utils.sections import ONE_PASS, ImageEncoderConfig, ModelConfig, SamplingConfig, SDEConfig, TrainingConfig


def check_sections(
    data: DataConfig, model: ModelConfig, sde: SDEConfig, training: TrainingConfig, sampling: SamplingConfig
) -> None:
    if sampling.sampler == "flowsdf_released" and sde.process != "flow":
        raise ValueError(f"sampling.sampler: flowsdf_released is for sde.process: flow, not {sde.process}")
    check_joint(model, sde)
    check_baseline(data, model, sde, training, sampling.sampler)
    if model.second_moment and sde.prior_share == 0:
        raise ValueError("model.second_moment: needs the direct mean, which sde.prior_share: 0 does not train")
    if sde.prior_share == 1 and sampling.sampler not in ONE_PASS:
        raise ValueError(
            f"sde.prior_share: 1 trains the direct mean only; it goes with sampling.sampler: {', '.join(ONE_PASS)}"
        )


def check_joint(model: ModelConfig, sde: SDEConfig) -> None:
    """Settings that one of the two kinds of model does not have."""
    if model.kind != "joint":
        if sde.clean_share:
            raise ValueError(f"sde.clean_share: {sde.clean_share} is for model.kind: joint")
        return
    if model.encoder != ImageEncoderConfig():
        raise ValueError("model.encoder: a model of kind: joint has no image encoder; leave it out")
    for key, value in (
        ("model.second_moment", model.second_moment),
        ("sde.prior_share", sde.prior_share),
        ("sde.tanh", sde.tanh),
    ):
        if value:
            raise ValueError(f"{key}: {str(value).lower()} is for model.kind: conditional, not joint")
    if sde.prediction == "both":
        raise ValueError("sde.prediction: both is for model.kind: conditional, not joint; use edm")


def check_baseline(
    data: DataConfig, model: ModelConfig, sde: SDEConfig, training: TrainingConfig, sampler: str
) -> None:
    """Settings that a baseline or the samplers of one pass do not have."""
    if sampler == "mc_dropout" and model.dropout == 0:
        raise ValueError("sampling.sampler: mc_dropout leaves out what model.dropout says, which is 0; train with more")
    if not model.is_baseline:
        if model.backbone is not None:
            raise ValueError(f"model.backbone: {model.backbone} is for baselines, not model.kind: {model.kind}")
        if sampler in ("mc_dropout", "ensemble") and sde.prior_share == 0:
            raise ValueError(
                f"sampling.sampler: {sampler} draws from the direct mean, which sde.prior_share: 0 does not train"
            )
        return
    if sampler not in ("mean", "mc_dropout", "ensemble"):
        raise ValueError(
            f"sampling.sampler: {sampler} starts from noise, which model.kind: {model.kind} does not know; use mean, "
            "mc_dropout or ensemble"
        )
    if data.representation != "binary":
        raise ValueError(
            f"data.representation: {data.representation} is not what model.kind: {model.kind} predicts; use "
            "binary, or sde.prior_share: 1 for a regression of the SDF"
        )
    for key, value in (
        ("model.second_moment", model.second_moment),
        ("sde.prior_share", sde.prior_share),
        ("sde.tanh", sde.tanh),
        ("training.noises", training.noises if training.noises > 1 else 0),
    ):
        if value:
            raise ValueError(f"{key}: {str(value).lower()} is for denoisers, not model.kind: {model.kind}")
    _check_network(model, training)


def _check_network(model: ModelConfig, training: TrainingConfig) -> None:
    if model.kind in ("resunet", "attention_unet"):
        if model.backbone is not None:
            raise ValueError(f"model.backbone: model.kind: {model.kind} is not built on one; leave it out")
        return
    if training.batch < 2:
        raise ValueError(f"training.batch: 1 is too small for the batch norms of model.kind: {model.kind}")
    if model.kind == "fcn":
        if model.backbone not in (None, "resnet50", "resnet101"):
            raise ValueError(f"model.backbone: {model.backbone} is not for model.kind: fcn; resnet50 or resnet101")
        return
    if not 3 <= len(model.multipliers) <= 5:
        raise ValueError(f"model.multipliers: {list(model.multipliers)} must be 3 to 5 for model.kind: {model.kind}")
    if model.dropout:
        raise ValueError(f"model.dropout: {model.dropout} is not for model.kind: {model.kind}, which has no dropout")
