"""Training batches from memory: order, augmentation and position can be saved and restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.augment import random_symmetry


def place(array: np.ndarray, device: torch.device) -> Tensor:
    """On the device if at most half of its free memory is used by that, else on the host."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    return tensor.to(device) if tensor.nbytes < free / 2 else tensor.pin_memory()


class Batches:
    """Endless batches: every image once per epoch, in an order drawn anew for each.

    images (N, C, H, W) uint8, sdfs (N, 1, H, W) float32. Batches come on `device`; one that spans two epochs is
    filled from both.
    """

    def __init__(
        self,
        images: Tensor,
        sdfs: Tensor,
        batch: int,
        seed: int,
        device: torch.device,
        *,
        flips: bool,
        rotations: bool,
    ) -> None:
        self.images, self.sdfs, self.batch, self.device = images, sdfs, batch, device
        self.flips, self.rotations = flips, rotations
        self.generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    def _next_indices(self) -> Tensor:
        while len(self._order) < self.batch:
            self._order = torch.cat([self._order, torch.randperm(len(self.images), generator=self.generator)])
        indices, self._order = self._order[: self.batch], self._order[self.batch :]
        return indices

    def next(self) -> tuple[Tensor, Tensor, list[int]]:
        """Images (B, C, H, W) uint8, SDFs (B, 1, H, W), and which images they are."""
        indices = self._next_indices()
        where = indices.to(self.images.device)
        image = self.images[where].to(self.device, non_blocking=True)
        sdf = self.sdfs[where].to(self.device, non_blocking=True)
        image, sdf = random_symmetry(image, sdf, self.generator, flips=self.flips, rotations=self.rotations)
        return image, sdf, indices.tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order = state["order"]
        self.generator.set_state(state["generator"])
