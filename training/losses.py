"""Losses of a training step: denoisers, joint models, baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.batches import network_image
from data.dataset import Patch
from models.baselines import Baseline, dice_cross_entropy
from models.build import use_bfloat16
from models.denoiser import Denoiser
from models.joint import JointDenoiser
from sde.loss import Weighting, denoising_loss, perturbed, sample_times, second_moment_loss
from sde.process import Process
from training.state import TrainingState
from utils.schema import Config
from utils.sections import SDEConfig


def baseline_losses(model: Baseline, images: Tensor, m: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Dice and cross entropy of each image, (B,), and their times, all t_max.

    images (B, C, H, W) in [0, 255], m (B, K, H, W).
    """
    with torch.autocast(m.device.type, torch.bfloat16, enabled=use_bfloat16(config.training.precision, m.device)):
        logits = model.logits(network_image(images, config.training.channels_last))
    losses = dice_cross_entropy(logits, m)
    return losses, torch.full_like(losses, model.process.t_max)


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


def loss_of(model: Denoiser, images: Tensor, m: Tensor, state: TrainingState, config: Config) -> tuple[Tensor, Tensor]:
    """Losses of eq. 4 at random times, and these times: both (B * noises,); see `joint_losses` and
    `baseline_losses` for other kinds of models."""
    if isinstance(model, JointDenoiser):
        return joint_losses(model, images, m, state, config)
    if isinstance(model, Baseline):
        return baseline_losses(model, images, m, config)
    copies, device = config.training.noises, m.device
    m = m.repeat_interleave(copies, dim=0)
    t = sample_times(len(m), model.process, state.times, config.sde.prior_share)
    eps = torch.randn(m.shape, generator=state.noise, device=device)
    t = t.float().to(device) if device.type == "mps" else t.to(device)  # MPS has no float64
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16(config.training.precision, device)):
        # Several noise levels share the features of an image.
        features = model.encode(network_image(images, config.training.channels_last))
        features = [f.repeat_interleave(copies, dim=0) for f in features]
        mean, variance = model.moments(perturbed(model.process, m, t, eps), t, features)
    losses = denoising_loss(mean, model.process, m, t, weighting_of(config.sde), model.sigma_data)
    if variance is not None:
        losses = losses + model.process.at_end(t) * second_moment_loss(variance, mean, m, model.sigma_data)
    return losses, t


def weighting_of(sde: SDEConfig) -> Weighting:
    return Weighting(sde.weighting, sde.sigmoid_shift, sde.per_logsnr)
