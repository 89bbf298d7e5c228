"""Losses of a training step: denoisers, joint models, baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from data.batches import Batch, network_image
from data.rows import Patch
from models.baselines import Baseline, dice_cross_entropy
from models.build import use_bfloat16
from models.denoiser import Denoiser
from models.joint import JointDenoiser
from models.latent import random_latent
from models.prob_unet import ProbUNet, evidence_loss
from models.ssn import SSN, mask_likelihood_loss
from sde.loss import (
    Weighting,
    denoising_loss,
    energy_loss,
    mask_loss,
    overlap_loss,
    perturbed,
    sample_times,
    second_moment_loss,
    weight_of,
)
from sde.process import Process
from utils.devices import moved
from utils.sections import SDEConfig, TrainingConfig
from utils.share import WHOLE, Share


class Generators(NamedTuple):
    """Of times, on the host, and of noise, on the network's device; share: the part of a batch that is here."""

    times: Generator
    noise: Generator
    share: Share = WHOLE


Losses = tuple[Tensor, Tensor]  # with their times, (N,) both


def baseline_losses(model: Baseline, batch: Batch, generators: Generators, training: TrainingConfig) -> Losses:
    """Dice and cross entropy of each image, or the likelihood of its mask, or a bound of it, where logits have a
    distribution, (B,), and their times, all t_max."""
    images, m = batch.images, batch.m
    kl: Tensor | None = None
    with torch.autocast(m.device.type, torch.bfloat16, enabled=use_bfloat16(training.precision, m.device)):
        x = network_image(images, training.channels_last)
        if isinstance(model, ProbUNet):
            logits, kl = model.reconstructed(x, m, generators.noise, generators.share)
        else:
            logits = model.logits(x)
    if isinstance(model, ProbUNet) and kl is not None:
        losses = evidence_loss(logits, m, kl, model.beta)
    elif isinstance(model, SSN):
        losses = mask_likelihood_loss(model.normal(logits), m, generators.noise, generators.share)
    else:
        losses = dice_cross_entropy(logits, m)
    return losses, torch.full_like(losses, model.process.t_max)


def rms_of_images(patches: Sequence[Patch]) -> float:
    """Root mean square of the images in [-1, 1]."""
    return float(np.mean([np.mean((patch.image / 127.5 - 1.0) ** 2) for patch in patches]) ** 0.5)


def joint_times(count: int, process: Process, generator: Generator, clean_share: float = 0.0) -> tuple[Tensor, Tensor]:
    """Times (2, count) of masks and images, stratified, independent of each other; and which are clean.

    clean_share: the expected share of pairs whose image is clean, and of those whose mask is; never both. Their time
    is t_min.
    """
    t = torch.stack([sample_times(count, process, generator) for _ in range(2)])
    u = torch.rand(count, generator=generator)
    clean = torch.stack([u < clean_share, u >= 1.0 - clean_share])
    return t.masked_fill(clean, process.t_min), clean


def joint_losses(
    model: JointDenoiser, batch: Batch, generators: Generators, sde: SDEConfig, training: TrainingConfig
) -> Losses:
    """Losses of masks and of images, (N,) together, and their times. What is clean is a condition: it has neither noise
    nor a loss."""
    images, m = batch.images, batch.m
    device, process, weighting, share = m.device, model.process, _weighting(sde), generators.share
    x = network_image(images, training.channels_last)
    pair = [part.repeat_interleave(training.noises, dim=0) for part in (m, x)]
    t, clean = joint_times(len(pair[0]) * share.count, process, generators.times, sde.clean_share)
    t, clean = share.of(t, dim=1), share.of(clean, dim=1)
    scored = moved(torch.nonzero(~clean.flatten())[:, 0], device)  # found on the host, which waits for no device
    t, clean = _moved(t, device), moved(clean, device)
    noisy = []
    for data, times, is_clean in zip(pair, t, clean, strict=True):
        eps = share.normal(data.shape, generators.noise, device)
        noisy.append(perturbed(process, data, times, eps.masked_fill(is_clean.view(-1, 1, 1, 1), 0.0)))
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16(training.precision, device)):
        means = model.joint(noisy[0], t[0], noisy[1], t[1])
    losses = [
        denoising_loss(mean, process, data, times, weighting, sigma)
        for mean, data, times, sigma in zip(means, pair, t, (model.sigma_data, model.sigma_image), strict=True)
    ]
    return torch.cat(losses)[scored], t.flatten()[scored]


def loss_of(
    model: Denoiser, batch: Batch, generators: Generators, sde: SDEConfig, training: TrainingConfig, step: int = 0
) -> Losses:
    """Losses of eq. 4 at random times, and these times: both (B * noises,); see `joint_losses` and
    `baseline_losses` for other kinds of models.

    step: of the training; with sde.objective: distribution, two draws are scored besides the mean from
    sde.mean_first on. Where the batch has all raters of an image, sde.prior_share must be 1, as z_t at other times is
    made of one; the mean is that of their maps, the draws are scored against each map.
    """
    if isinstance(model, JointDenoiser):
        return joint_losses(model, batch, generators, sde, training)
    if isinstance(model, Baseline):
        return baseline_losses(model, batch, generators, training)
    images, m, shares = batch.images, batch.m.repeat_interleave(training.noises, dim=0), batch.shares
    truths, share = m, generators.share
    if shares is not None:
        shares = shares.repeat_interleave(training.noises, dim=0)
        m = torch.einsum("brkhw,br->bkhw", truths, shares)
    times = sample_times(len(m) * share.count, model.process, generators.times, sde.prior_share)
    t, eps = _moved(share.of(times), m.device), share.normal(m.shape, generators.noise, m.device)
    with torch.autocast(m.device.type, torch.bfloat16, enabled=use_bfloat16(training.precision, m.device)):
        # Several noise levels share the features of an image.
        features = model.encode(network_image(images, training.channels_last))
        features = [f.repeat_interleave(training.noises, dim=0) for f in features]
        z = perturbed(model.process, m, t, eps)
        time = t[0] if sde.prior_share == 1 else t  # one for all is cheaper
        latents, raters = [], None
        if sde.objective == "distribution" and step >= sde.mean_first * training.steps:
            scales, padded = model.network.trunk.scales, model.size_of(features)
            places, noise, _ = generators
            latents = [random_latent(len(m), padded, scales, places, noise, m.device, share) for _ in range(2)]
            raters = batch.raters if model.network.raters else None
            raters = None if raters is None else moved(raters.repeat_interleave(training.noises), m.device)
        mean, variance, logits, draws = model.learned(z, time, features, latents, raters)
    losses = denoising_loss(mean, model.process, m, t, _weighting(sde), model.sigma_data)
    if draws:
        weight = weight_of(model.process, t, _weighting(sde), model.sigma_data).sqrt().to(m.dtype)
        losses = losses + weight * energy_loss(draws, truths, shares)
        if sde.overlap:
            losses = losses + sde.overlap * overlap_loss(draws, truths, shares, batch.pixel)
    if logits is not None:
        losses = losses + sde.mask_weight * mask_loss(logits, draws, truths, shares, batch.pixel)
    if variance is not None:
        if shares is not None:  # the squared residual is that of the raters' mean, and their variance
            variance = variance - torch.einsum("brkhw,br->bkhw", (truths - m[:, None]).square(), shares)
        losses = losses + model.process.at_end(t) * second_moment_loss(variance, mean, m, model.sigma_data)
    return losses, t


def _weighting(sde: SDEConfig) -> Weighting:
    return Weighting(sde.weighting, sde.sigmoid_shift, sde.per_logsnr)


def _moved(t: Tensor, device: torch.device) -> Tensor:
    return moved(t.float() if device.type == "mps" else t, device)  # MPS has no float64
