"""From config sections to objects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from data.augment import Augmentation
from data.dataset import Reading
from data.preparation import check_prepared
from data.processing import PrepareOptions
from models.baselines import build_baseline
from models.denoiser import Denoiser, build_denoiser
from models.joint import build_joint
from sde.grids import Grid, logsnr_grid, rho_grid, time_grid
from sde.loss import Weighting
from sde.predictor_corrector import predictor_corrector
from sde.process import SCHEDULES, VE, VP, OTFlow, Process, ScheduledVP
from sde.samplers import (
    Callback,
    Denoise,
    Noise,
    ancestral,
    ddim,
    dpm_solver,
    euler_maruyama,
    flowsdf_released,
    heun,
    posterior_mean,
)
from utils.adaptive import adaptive
from utils.data_schema import DataConfig
from utils.errors import UsageError
from utils.members import each_member
from utils.schema import Config, SamplingConfig, SDEConfig


class Sampler(Protocol):
    """A sampler whose options are settled."""

    def __call__(
        self, denoise: Denoise, process: Process, noise: Noise, *, callback: Callback | None = None
    ) -> Tensor: ...


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
        anchored=model.anchored,
        second_moment=model.second_moment,
    )


def placed(model: Denoiser, device: torch.device, channels_last: bool) -> Denoiser:
    """The model, moved to the device in the memory layout of its convolutions."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device=device, memory_format=layout)  # type: ignore[call-overload]


def weighting_of(sde: SDEConfig) -> Weighting:
    return Weighting(sde.weighting, sde.sigmoid_shift, sde.per_logsnr)


def representation_of(sdf: Tensor, data: DataConfig) -> Tensor:
    """What the process carries: the SDF, or -1 inside and +1 outside, times sdf_scale."""
    if data.representation == "sdf":
        return sdf
    return torch.where(sdf <= 0, -data.sdf_scale, data.sdf_scale)


def reading_of(data: DataConfig, *, instances: bool = False) -> Reading:
    return Reading(rgb=data.color == "rgb", truncation=data.truncation, classes=data.classes, instances=instances)


def prepare_options_of(data: DataConfig, source_options: str = "") -> PrepareOptions:
    """As the config's data section says."""
    default_test = 0.0 if data.has_official_split else 0.2
    return PrepareOptions(
        source=data.source,
        size=data.size,
        color=data.color,
        truncation=data.truncation,
        validation_fraction=data.validation_fraction,
        split_seed=data.split_seed,
        source_options=source_options,
        test_fraction=default_test if data.test_fraction is None else data.test_fraction,
        stain=data.stain,
        stain_target=data.stain_target,
        stretch=data.stretch,
        patch=data.patch,
        stride=data.stride,
        test_patch=data.test_patch,
        crop=data.crop,
        classes=data.classes,
    )


def prepared_root(data: DataConfig, *, training: bool = False) -> Path:
    """data.root. Raises DataError if it was prepared with other options; see `check_prepared`."""
    check_prepared(Path(data.root), prepare_options_of(data), training=training)
    return Path(data.root)


def augmentation_of(data: DataConfig) -> Augmentation:
    return Augmentation(
        flips=data.flips,
        rotations=data.rotations,
        truncation=data.truncation,
        sdf_scale=data.sdf_scale,
        **data.augment.model_dump(),
    )


def check_crop(size: tuple[int, int], config: Config) -> None:
    """Raises UsageError if the prepared images (height, width) are smaller than the crops to train on."""
    crop = config.data.crop
    if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
        raise UsageError(f"data.crop: {list(crop)} is larger than the prepared images, {list(size)}")


def sampler_of(sampling: SamplingConfig) -> Sampler:
    if sampling.sampler == "pc":
        return partial(
            predictor_corrector,
            steps=sampling.steps,
            corrector_steps=sampling.corrector_steps,
            r=sampling.r,
            denoise_last=sampling.denoise_last,
        )
    if sampling.sampler == "adaptive":
        return partial(adaptive, tolerance=sampling.tolerance)
    if sampling.sampler in ("mean", "mc_dropout"):  # dropout is in the network: utils/loading.py
        return posterior_mean
    if sampling.sampler == "ensemble":
        return each_member
    if sampling.sampler == "flowsdf_released":
        return partial(flowsdf_released, steps=sampling.steps)
    samplers: dict[str, tuple[Callable[..., Tensor], str]] = {
        "euler_maruyama": (euler_maruyama, "logsnr"),
        "ancestral": (partial(ancestral, variance=sampling.variance), "logsnr"),
        "ddim": (partial(ddim, eta=sampling.eta), "time"),
        "euler": (ddim, "rho"),
        "heun": (heun, "rho"),
        "dpm_solver": (partial(dpm_solver, order=sampling.order, stochastic=sampling.stochastic), "logsnr"),
    }
    grids: dict[str, Grid] = {"time": time_grid, "logsnr": logsnr_grid, "rho": partial(rho_grid, rho=sampling.rho)}
    sampler, usual = samplers[sampling.sampler]
    return partial(sampler, steps=sampling.steps, grid=grids[sampling.grid or usual])


def threshold_of(config: Config) -> float:
    """Foreground is below this, in SDF units: given, or 3 times the noise that the process leaves (paper, sec. 3.4);
    half-way for binary masks."""
    if config.sampling.threshold is not None:
        return config.sampling.threshold
    if config.data.representation == "binary":
        return 0.0
    return 3.0 * process_of(config.sde).residual_noise() / config.data.sdf_scale


def max_batch_of(sampling: SamplingConfig, device: torch.device) -> int:
    """Draws evaluated at once: on a CPU more of them spend their time on fresh memory (docs/results/speed.md)."""
    if sampling.sampler == "adaptive":
        return 1
    return sampling.max_batch or (16 if device.type == "cpu" else 64)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether networks run under bfloat16 autocast; on CPUs without its instructions it is slower than float32."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"
