"""Training of baselines that predict the mask."""

from __future__ import annotations

import torch
from torch import Tensor

from models.baselines import Baseline, dice_cross_entropy
from utils.build import use_bfloat16
from utils.draws import network_image
from utils.schema import Config


def baseline_losses(model: Baseline, images: Tensor, m: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Dice and cross entropy of each image, (B,), and their times, all t_max.

    images (B, C, H, W) in [0, 255], m (B, K, H, W).
    """
    with torch.autocast(m.device.type, torch.bfloat16, enabled=use_bfloat16(config.training.precision, m.device)):
        logits = model.logits(network_image(images, config.training.channels_last))
    losses = dice_cross_entropy(logits, m)
    return losses, torch.full_like(losses, model.process.t_max)
