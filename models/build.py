"""From config sections to networks and processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from models.baselines import build_baseline
from models.denoiser import Denoiser, build_denoiser
from models.joint import JointDenoiser
from models.prob_unet import build_prob_unet
from models.pyramid import Pretrained
from models.ssn import build_ssn
from models.unet import Sizes
from sde.process import SCHEDULES, VE, VP, OTFlow, Process, ScheduledVP, prior_pull
from utils.data_schema import DataConfig
from utils.errors import UsageError
from utils.schema import Config
from utils.sections import EncoderConfig, SDEConfig

MOST_PULL = 2.0  # standard deviations; on residuals of GlaS so much costs the mean of draws two points of F1
MOST_TIMES = 20.0

log = logging.getLogger("process")


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


def denoiser_of(config: Config, sigma_data: float = 0.5, sigma_image: float = 0.5) -> Denoiser:
    """sigma_data, sigma_image: root mean square of m and, for a joint model, of images in [-1, 1].

    Raises UsageError where the library of a baseline or an encoder is absent, or does not know its name.
    """
    data, model, sde = config.data, config.model, config.sde

    def sizes_of(section: EncoderConfig) -> Sizes:
        of_levels = (section.channels, section.multipliers, section.blocks, section.attention)
        return Sizes(*of_levels, dropout=model.dropout, unshuffle=model.unshuffle)

    process, common = process_of(sde), (image_channels_of(data), data.channels, sizes_of(model))
    if model.kind == "ssn":
        return build_ssn(process, *common, model.rank, sigma_data)
    if model.kind == "prob_unet":
        return build_prob_unet(process, *common, model.latent, model.beta, sigma_data)
    if model.is_baseline:
        try:
            return build_baseline(process, model.kind, *common, model.backbone or model.usual_backbone, sigma_data)
        except ImportError as error:
            raise UsageError(f"model.kind: {model.kind} {error}") from None
    if model.kind == "joint":
        return JointDenoiser(process, sde.prediction, *common, sigma_data, sigma_image)
    return build_denoiser(
        process,
        sde.prediction,
        *common,
        sizes_of(model.encoder),
        encoder_kind=model.encoder.kind,
        pretrained=Pretrained(model.encoder.name, model.encoder.pretrained, model.encoder.frozen),
        sigma_data=sigma_data,
        limit=data.sdf_scale if sde.tanh else None,
        direct=sde.prior_share > 0,
        second_moment=model.second_moment,
        masks=sde.mask_weight > 0,
        distribution=sde.objective == "distribution",
        raters=model.raters,
    )


def placed(model: Denoiser, device: torch.device, channels_last: bool) -> Denoiser:
    """The model, moved to the device in the memory layout of its convolutions."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device=device, memory_format=layout)  # type: ignore[call-overload]


def warn_of_prior(model: Denoiser, size: Sequence[int]) -> None:
    """One line in the log where the noise that draws of (H, W) start from is too small to hide the mean of an image.

    A joint model has images to draw as well as masks. A distributional one sees nothing of that noise.
    """
    if model.distribution:
        return
    rms = max(float(model.sigma_data), float(getattr(model, "sigma_image", 0.0)))
    pull = prior_pull(model.process, rms, size)
    if pull > MOST_PULL:
        log.warning(
            "draws start from too little noise for %dx%d pixels of root mean square %.2g: the mean of an image may be "
            "%.1f standard deviations too near to 0; use a smaller data.sdf_scale or a larger sde.sigma_max",
            *size, rms, pull,
        )  # fmt: skip


def warn_of_direct(model: Denoiser) -> None:
    """One line in the log where the direct mean is so many times what the network puts out that it is hard to learn, as
    at t_max eps and the score say nothing of m."""
    if model.direct and (times := abs(float(model.end_scaling().out)) / float(model.sigma_data)) > MOST_TIMES:
        log.warning("sde.prediction: %s has the direct mean as %.0f times its right size of output, which is hard to "
                    "learn; edm, x and v do not, or set sde.prior_share: 0", model.prediction, times)  # fmt: skip


def threshold_of(config: Config) -> float:
    """Foreground is below this, in SDF units: a number as given, 0 for binary masks, half-way.

    null: the border of eq. 1 as built, where the last pixel of an object is 0 and the next 1 / delta; but no less than
    3 times the noise that the process leaves. paper: these 3 times alone (sec. 3.4).
    """
    threshold = config.sampling.threshold
    if threshold is not None and threshold != "paper":
        return threshold
    if config.data.representation == "binary":
        return 0.0
    noise = 3.0 * process_of(config.sde).residual_noise() / config.data.sdf_scale
    return noise if threshold == "paper" else max(noise, 0.5 / config.data.truncation)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether networks run under bfloat16 autocast; on CPUs without its instructions it is slower than float32."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"
