"""Training of a joint model: denoising losses of mask and image at independent times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.dataset import Patch
from models.joint import JointDenoiser
from sde.loss import denoising_loss, perturbed, sample_times
from sde.process import Process
from utils.build import use_bfloat16, weighting_of
from utils.draws import network_image
from utils.schema import Config
from utils.training import TrainingState


def rms_of_images(patches: Sequence[Patch]) -> float:
    """Root mean square of the images in [-1, 1]."""
    return float(np.mean([np.mean((patch.image / 127.5 - 1.0) ** 2) for patch in patches]) ** 0.5)


def joint_times(
    count: int, process: Process, generator: torch.Generator, clean_share: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Times (2, count) of masks and images, stratified, independent of each other; and which are clean.

    clean_share: the expected share of pairs whose image is clean, and of those whose mask is; never both. Their time
    is t_min.
    """
    t = torch.stack([sample_times(count, process, generator) for _ in range(2)])
    u = torch.rand(count, generator=generator)
    clean = torch.stack([u < clean_share, u >= 1.0 - clean_share])
    return t.masked_fill(clean, process.t_min), clean


def joint_losses(
    model: JointDenoiser, images: Tensor, m: Tensor, state: TrainingState, config: Config
) -> tuple[Tensor, Tensor]:
    """Losses of masks and of images, (N,) together, and their times.

    images (B, C, H, W) in [0, 255], m (B, K, H, W). What is clean is a condition: it has neither noise nor a loss.
    """
    copies, device, process = config.training.noises, m.device, model.process
    m = m.repeat_interleave(copies, dim=0)
    x = network_image(images, config.training.channels_last).repeat_interleave(copies, dim=0)
    t, clean = joint_times(len(m), process, state.times, config.sde.clean_share)
    t = t.float().to(device) if device.type == "mps" else t.to(device)  # MPS has no float64
    clean = clean.to(device)
    noisy = []
    for data, times, is_clean in zip((m, x), t, clean, strict=True):
        eps = torch.randn(data.shape, generator=state.noise, device=device)
        noisy.append(perturbed(process, data, times, eps.masked_fill(is_clean.view(-1, 1, 1, 1), 0.0)))
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16(config.training.precision, device)):
        means = model.joint(noisy[0], t[0], noisy[1], t[1])
    weighting = weighting_of(config.sde)
    losses = [
        denoising_loss(mean, process, data, times, weighting, sigma)
        for mean, data, times, sigma in zip(means, (m, x), t, (model.sigma_data, model.sigma_image), strict=True)
    ]
    return torch.stack(losses)[~clean], t[~clean]
