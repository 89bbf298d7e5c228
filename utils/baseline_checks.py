"""What a baseline's config may say, and which samplers need the direct mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.schema import Config


def check_baseline(config: Config) -> None:
    """Raises ValueError, one sentence, for settings that a baseline or the samplers of one pass do not have."""
    model, sampler = config.model, config.sampling.sampler
    if sampler == "mc_dropout" and model.dropout == 0:
        raise ValueError("sampling.sampler: mc_dropout leaves out what model.dropout says, which is 0; train with more")
    if not model.is_baseline:
        if model.backbone is not None:
            raise ValueError(f"model.backbone: {model.backbone} is for baselines, not model.kind: {model.kind}")
        if sampler in ("mc_dropout", "ensemble") and config.sde.prior_share == 0:
            raise ValueError(
                f"sampling.sampler: {sampler} draws from the direct mean, which sde.prior_share: 0 does not train"
            )
        return
    if sampler not in ("mean", "mc_dropout", "ensemble"):
        raise ValueError(
            f"sampling.sampler: {sampler} starts from noise, which model.kind: {model.kind} does not know; use mean, "
            "mc_dropout or ensemble"
        )
    if config.data.representation != "binary":
        raise ValueError(
            f"data.representation: {config.data.representation} is not what model.kind: {model.kind} predicts; use "
            "binary, or sde.prior_share: 1 for a regression of the SDF"
        )
    for key, value in (
        ("model.anchored", model.anchored),
        ("model.second_moment", model.second_moment),
        ("sde.prior_share", config.sde.prior_share),
        ("sde.tanh", config.sde.tanh),
        ("training.noises", config.training.noises if config.training.noises > 1 else 0),
    ):
        if value:
            raise ValueError(f"{key}: {str(value).lower()} is for denoisers, not model.kind: {model.kind}")
    _check_network(config)


def _check_network(config: Config) -> None:
    model = config.model
    if model.kind in ("resunet", "attention_unet"):
        if model.backbone is not None:
            raise ValueError(f"model.backbone: model.kind: {model.kind} is not built on one; leave it out")
        return
    if config.training.batch < 2:
        raise ValueError(f"training.batch: 1 is too small for the batch norms of model.kind: {model.kind}")
    if model.kind == "fcn":
        if model.backbone not in (None, "resnet50", "resnet101"):
            raise ValueError(f"model.backbone: {model.backbone} is not for model.kind: fcn; resnet50 or resnet101")
        return
    if not 3 <= len(model.multipliers) <= 5:
        raise ValueError(f"model.multipliers: {list(model.multipliers)} must be 3 to 5 for model.kind: {model.kind}")
    if model.dropout:
        raise ValueError(f"model.dropout: {model.dropout} is not for model.kind: {model.kind}, which has no dropout")
