"""Training batches from memory: order, augmentation and position can be saved and restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.augment import Augmentation
from utils.data_schema import DataConfig


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """There if at most half of its free memory is used by that, else on the host."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    return tensor.to(device) if tensor.nbytes < free / 2 else tensor.pin_memory()


class Batches:
    """Endless batches: every image once per epoch, in an order drawn anew for each.

    images (N, C, H, W) uint8, sdfs (N, R, K, H, W) float32 of R raters and K classes; one rater is drawn for each
    image of a batch, augmented as `data` says, and with data.crop a window. Batches come on `device`; one that spans
    two epochs is filled from both.
    """

    def __init__(
        self, images: Tensor, sdfs: Tensor, batch: int, seed: int, device: torch.device, data: DataConfig
    ) -> None:
        self.images, self.sdfs, self.batch, self.device = images, sdfs, batch, device
        self.augment, self.crop = Augmentation(data), data.crop
        self.generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    def _next_indices(self) -> Tensor:
        while len(self._order) < self.batch:
            self._order = torch.cat([self._order, torch.randperm(len(self.images), generator=self.generator)])
        indices, self._order = self._order[: self.batch], self._order[self.batch :]
        return indices

    def _one_rater(self, where: Tensor) -> Tensor:
        raters = self.sdfs.shape[1]
        if raters == 1:
            return self.sdfs[where, 0]
        chosen = torch.randint(raters, (len(where),), generator=self.generator)
        return self.sdfs[where, chosen.to(where.device)]

    def _crop(self, image: Tensor, sdf: Tensor) -> tuple[Tensor, Tensor]:
        if self.crop is None:
            return image, sdf
        height, width = self.crop
        tops = torch.randint(image.shape[-2] - height + 1, (len(image),), generator=self.generator).tolist()
        lefts = torch.randint(image.shape[-1] - width + 1, (len(image),), generator=self.generator).tolist()

        def cut(x: Tensor) -> Tensor:
            parts = zip(x, tops, lefts, strict=True)
            return torch.stack([part[:, top : top + height, left : left + width] for part, top, left in parts])

        return cut(image), cut(sdf)

    def next(self) -> tuple[Tensor, Tensor, list[int]]:
        """Images (B, C, H, W) in [0, 255], SDFs (B, K, H, W), and which images they are."""
        indices = self._next_indices()
        where = indices.to(self.images.device)
        image = self.images[where].to(self.device, non_blocking=True)
        sdf = self._one_rater(indices.to(self.sdfs.device)).to(self.device, non_blocking=True)
        image, sdf = self._crop(*self.augment(image, sdf, self.generator))
        return image, sdf, indices.tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order = state["order"]
        if self._order.dtype != torch.int64 or not ((self._order >= 0) & (self._order < len(self.images))).all():
            raise ValueError(f"an order of {len(self.images)} images is expected")
        self.generator.set_state(state["generator"])


def representation_of(sdf: Tensor, data: DataConfig) -> Tensor:
    """What the process carries: the SDF, or -1 inside and +1 outside, times sdf_scale."""
    if data.representation == "sdf":
        return sdf
    return torch.where(sdf <= 0, -data.sdf_scale, data.sdf_scale)


def network_image(images: Tensor, channels_last: bool) -> Tensor:
    """(N, C, H, W) uint8 to float32 in [-1, 1]."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return (images.float() / 127.5 - 1.0).contiguous(memory_format=layout)
