"""From config sections to networks and processes."""

from __future__ import annotations

from typing import Any

import torch

from models.baselines import build_baseline
from models.denoiser import Denoiser, build_denoiser
from models.joint import build_joint
from sde.process import SCHEDULES, VE, VP, OTFlow, Process, ScheduledVP
from utils.data_schema import DataConfig
from utils.errors import UsageError
from utils.schema import Config
from utils.sections import SDEConfig


def process_of(sde: SDEConfig) -> Process:
    if sde.process in SCHEDULES:
        return ScheduledVP(sde.process, sde.input_scale)
    processes: dict[str, Process] = {
        "ve": VE(sde.sigma_min, sde.sigma_max),
        "vp": VP(sde.beta_min, sde.beta_max),
        "flow": OTFlow(sde.sigma_min),
    }
    return processes[sde.process]


def image_channels_of(data: DataConfig) -> int:
    return 3 if data.color == "rgb" else 1


def _sizes(config: Config) -> dict[str, Any]:
    """What every network is built from."""
    model = config.model
    return {
        "image_channels": image_channels_of(config.data),
        "mask_channels": config.data.channels,
        "channels": model.channels,
        "multipliers": model.multipliers,
        "blocks": model.blocks,
        "attention": model.attention,
        "dropout": model.dropout,
    }


def baseline_of(config: Config, sigma_data: float) -> Denoiser:
    """Raises UsageError where its library is absent."""
    model = config.model
    backbone = model.backbone or model.usual_backbone
    try:
        return build_baseline(
            process_of(config.sde), model.kind, **_sizes(config), backbone=backbone, sigma_data=sigma_data
        )
    except ImportError as error:
        raise UsageError(f"model.kind: {model.kind} {error}") from None


def denoiser_of(config: Config, sigma_data: float = 0.5, sigma_image: float = 0.5) -> Denoiser:
    """sigma_data, sigma_image: root mean square of m and, for a joint model, of images in [-1, 1]."""
    model, encoder, process = config.model, config.model.encoder, process_of(config.sde)
    if model.is_baseline:
        return baseline_of(config, sigma_data)
    if model.kind == "joint":
        return build_joint(
            process, config.sde.prediction, **_sizes(config), sigma_data=sigma_data, sigma_image=sigma_image
        )
    return build_denoiser(
        process,
        config.sde.prediction,
        **_sizes(config),
        encoder_kind=encoder.kind,
        encoder_channels=encoder.channels,
        encoder_multipliers=encoder.multipliers,
        encoder_blocks=encoder.blocks,
        encoder_attention=encoder.attention,
        sigma_data=sigma_data,
        limit=config.data.sdf_scale if config.sde.tanh else None,
        direct=config.sde.prior_share > 0,
        second_moment=model.second_moment,
    )


def placed(model: Denoiser, device: torch.device, channels_last: bool) -> Denoiser:
    """The model, moved to the device in the memory layout of its convolutions."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device=device, memory_format=layout)  # type: ignore[call-overload]


def threshold_of(config: Config) -> float:
    """Foreground is below this, in SDF units: given, or 3 times the noise that the process leaves (paper, sec. 3.4);
    half-way for binary masks."""
    if config.sampling.threshold is not None:
        return config.sampling.threshold
    if config.data.representation == "binary":
        return 0.0
    return 3.0 * process_of(config.sde).residual_noise() / config.data.sdf_scale


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether networks run under bfloat16 autocast; on CPUs without its instructions it is slower than float32."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"
