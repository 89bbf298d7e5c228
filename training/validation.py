"""Validation by a few quick draws, with the averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data.rows import Patch
from evaluation.ensemble import Ensemble
from evaluation.metrics import count_classes, mean_f1, mean_iou
from evaluation.proper import energy_score, pooled
from models.denoiser import Denoiser
from sampling.drawer import drawer_of, image_tensor
from sampling.loading import draw_steps, drawing
from sampling.sampler import Sampler
from sde.grids import logsnr_grid
from sde.samplers import ancestral, dpm_solver, posterior_mean
from utils.schema import Config

SPREADS = np.arange(0.0, 4.01, 0.125)  # that are tried


def quick_sampler(config: Config) -> Sampler:
    """Draws in few evaluations whose spread is right, or the direct mean."""
    if config.is_one_pass:
        return posterior_mean
    if config.sde.objective == "distribution":
        return partial(ancestral, steps=draw_steps(config.sampling), grid=logsnr_grid)
    return partial(dpm_solver, steps=config.evaluation.steps, stochastic=True)


def _energy(draws: np.ndarray, truths: np.ndarray) -> float:
    """Fair energy score of draws (n, K, h, w), pooled as the truths (R, K, h, w) are; a mean over raters."""
    return float(np.mean([energy_score(draws, truth) for truth in truths]))


def chosen_of(patches: Sequence[Patch], count: int) -> list[Patch]:
    """At most that many, evenly chosen; of so few, all."""
    return [patches[i] for i in np.linspace(0, len(patches) - 1, min(count, len(patches))).astype(int).tolist()]


def validate(config: Config, denoiser: Denoiser, patches: Sequence[Patch]) -> tuple[dict[str, float], Tensor]:
    """Scores of a few draws of evenly chosen validation images; the spread of one-evaluation draws is chosen by them.

    val_f1, val_iou: of the MMSE masks. val_single_f1: of draws. val_energy: fair energy score (evaluation/proper.py).
    Second result: image, truth and MMSE of up to four images, (3 n, 3, H, W) in [0, 1]. The draws use their own
    generators, so that validating changes nothing in the training.
    """
    settings = config.evaluation
    chosen = chosen_of(patches, settings.images)
    was_training = denoiser.training
    denoiser.eval()
    denoiser.spread.fill_(1.0)
    sampling = config.sampling
    if sampling.sampler == "mc_dropout":  # the network without it
        sampling = sampling.model_copy(update={"sampler": "mean"})
    drawer = drawer_of(
        config, drawing(config.data, sampling, [denoiser], chosen[0].labels.shape), quick_sampler(config)
    )
    drawer.antithetic = False  # fair scores need draws that do not depend on each other
    count = settings.draws if config.has_draws else 1
    spreads = denoiser.distribution and draw_steps(config.sampling) == 1 and count > 1  # of one, none would be best
    drawn, means, truths = [], [], [pooled(patch.target(config.data.representation)) for patch in chosen]
    for patch in chosen:
        features = drawer.encode(image_tensor([patch]))
        pairs = [(0, d) for d in range(count)]
        own = drawer.draw(features, [patch.key], pairs, patch.labels.shape)
        drawn.append(np.stack([sdf.numpy() for _, sdf in own]))
        if spreads:  # about the direct mean, which does not depend on the draws: about their own they would be coupled
            means.append(drawer.denoiser.centre(features).float().cpu().numpy() / drawer.sdf_scale)
    if spreads:
        energies = [
            [_energy(pooled(c) + s * pooled(draws - c), truth) for s in SPREADS]
            for draws, c, truth in zip(drawn, means, truths, strict=True)
        ]
        spread = float(SPREADS[np.sum(energies, axis=0).argmin()])
        drawn = [c + spread * (draws - c) for draws, c in zip(drawn, means, strict=True)]
        denoiser.spread.fill_(spread)
    f1, iou, single, energy, pictures = [], [], [], [], []
    for patch, draws, truth in zip(chosen, drawn, truths, strict=True):
        classes = patch.sdf.shape[1]
        ensemble = Ensemble((classes, *patch.labels.shape), drawer.threshold)
        for draw in draws:
            single.append(mean_f1(count_classes(ensemble.add(draw), patch.labels, classes)))
        counts = count_classes(ensemble.labels, patch.labels, classes)
        f1.append(mean_f1(counts))
        iou.append(mean_iou(counts))
        energy.append(_energy(pooled(draws), truth))
        if len(f1) <= 4:
            pictures.append(_pictures(patch, ensemble.mmse))
    denoiser.train(was_training)
    scores = {"val_f1": f1, "val_iou": iou, "val_single_f1": single, "val_energy": energy}
    height = min(picture.shape[-2] for picture in pictures)
    width = min(picture.shape[-1] for picture in pictures)
    grid = torch.cat([picture[..., :height, :width] for picture in pictures])
    return {name: float(np.mean(values)) for name, values in scores.items()}, grid


def _pictures(patch: Patch, mmse: np.ndarray) -> Tensor:
    """Image, truth and MMSE SDF, (3, 3, H, W) in [0, 1], dark inside."""
    image = image_tensor([patch])[0].float() / 255.0
    nearest = patch.sdf.mean(axis=0).min(axis=0), mmse.min(axis=0)  # over raters, over classes
    maps = (torch.from_numpy(np.stack(nearest)).clamp(-1, 1) + 1.0) / 2.0
    return torch.cat([image.expand(3, -1, -1)[None], maps[:, None].expand(-1, 3, -1, -1)])
