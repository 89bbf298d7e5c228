"""Validation by a few quick draws, with the averaged weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from data.dataset import Patch
from evaluation.ensemble import Ensemble
from evaluation.metrics import count_classes, mean_f1, mean_iou
from models.denoiser import Denoiser
from sampling.drawer import drawer_of, image_tensor
from sde.grids import logsnr_grid
from sde.samplers import ancestral, posterior_mean
from utils.schema import Config


def validate(config: Config, denoiser: Denoiser, patches: list[Patch]) -> tuple[dict[str, float], Tensor]:
    """Mean F1 and IoU of the MMSE masks and mean F1 of single draws, over evenly chosen validation images.

    Second result: image, truth and MMSE of up to four of them, (3 n, 3, H, W) in [0, 1]. The draws use their own
    generators, so that validating changes nothing in the training.
    """
    settings = config.evaluation
    chosen = [patches[i] for i in np.linspace(0, len(patches) - 1, min(settings.images, len(patches))).astype(int)]
    was_training = denoiser.training
    denoiser.eval()
    regression = config.is_one_pass
    quick = posterior_mean if regression else partial(ancestral, steps=settings.steps, grid=logsnr_grid)
    drawer = drawer_of(config, denoiser, quick)
    f1, iou, single, pictures = [], [], [], []
    for patch in chosen:
        classes = patch.sdf.shape[1]
        ensemble = Ensemble((classes, *patch.labels.shape), drawer.threshold)
        for _, draw in drawer(image_tensor([patch]), [patch.key], 1 if regression else settings.draws):
            single.append(mean_f1(count_classes(ensemble.add(draw.numpy()), patch.labels, classes)))
        counts = count_classes(ensemble.labels, patch.labels, classes)
        f1.append(mean_f1(counts))
        iou.append(mean_iou(counts))
        if len(f1) <= 4:
            pictures.append(_pictures(patch, ensemble.mmse))
    denoiser.train(was_training)
    scores = {"val_f1": np.mean(f1), "val_iou": np.mean(iou), "val_single_f1": np.mean(single)}
    height = min(picture.shape[-2] for picture in pictures)
    width = min(picture.shape[-1] for picture in pictures)
    grid = torch.cat([picture[..., :height, :width] for picture in pictures])
    return {name: float(value) for name, value in scores.items()}, grid


def _pictures(patch: Patch, mmse: np.ndarray) -> Tensor:
    """Image, truth and MMSE SDF, (3, 3, H, W) in [0, 1], dark inside."""
    image = image_tensor([patch])[0].float() / 255.0
    nearest = patch.sdf.mean(axis=0).min(axis=0), mmse.min(axis=0)  # over raters, over classes
    maps = (torch.from_numpy(np.stack(nearest)).clamp(-1, 1) + 1.0) / 2.0
    return torch.cat([image.expand(3, -1, -1)[None], maps[:, None].expand(-1, 3, -1, -1)])
