"""Training batches: order, augmentation and position can be saved and restored."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from data.augment import Augmentation
from data.dataset import mean_square
from data.packed import Packed
from utils.data_schema import DataConfig
from utils.devices import moved, pinned
from utils.errors import UsageError
from utils.share import WHOLE, Share

ORDERS = ("order", "empty")  # what is left of an epoch, in a checkpoint; empty: of images without foreground


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """There if at most half of its free memory is used by that, else on the host."""
    if device.type == "cuda" and tensor.nbytes >= torch.cuda.mem_get_info(device)[0] / 2:
        return tensor
    return tensor.to(device)


class Batch(NamedTuple):
    """What a training step sees.

    images: (B, C, H, W) in [0, 255]. m: (B, K, H, W) of one rater of each, or (B, R, K, H, W) of all. indices: which
    images they are, and those of the batch's other parts. raters: (B,), of whom m is, on the host. shares: (B, R), what
    each of all raters counts in an image, together 1; 0 for those that it lacks. scale: m is in [-scale, scale].
    """

    images: Tensor
    m: Tensor
    indices: Sequence[int] = ()
    raters: Tensor | None = None
    shares: Tensor | None = None
    pixel: float = 1.0


class Source(Protocol):
    """Where batches come from. counts: (N,), how many of the `raters` an image has. ahead: whether the next batch is
    worth fetching while a step runs."""

    counts: Tensor
    raters: int
    ahead: bool

    def marked(self) -> Tensor:
        """(N,) bool, on the host: which images some rater found foreground in."""

    def fetch(self, indices: Tensor, raters: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8, and SDFs (B, K, H, W) of one rater of each, or (B, R, K, H, W) of all."""


class InMemory:
    """A `Source` of images (N, C, H, W) uint8 and sdfs (N, R, K, H, W) float32 of R raters and K classes, on any
    device. counts: None for all R."""

    def __init__(self, images: Tensor, sdfs: Tensor, counts: Tensor | None = None) -> None:
        self.images, self.sdfs, self.raters, self.ahead = images, sdfs, sdfs.shape[1], False
        self.counts = torch.full((len(sdfs),), self.raters) if counts is None else counts

    def placed(self, device: torch.device) -> InMemory:
        """With arrays on the device where they fit; what does not is fetched while a step runs."""
        placed = InMemory(on_device(self.images, device), on_device(self.sdfs, device), self.counts)
        placed.ahead = device.type == "cuda" and "cpu" in (placed.images.device.type, placed.sdfs.device.type)
        return placed

    def mean_square(self) -> float:
        """Of the SDFs."""
        sdfs, known = self.sdfs.cpu().numpy(), (torch.arange(self.raters) < self.counts[:, None]).numpy()
        own = (sdfs if known.all() else sdfs[known]).reshape(-1)
        return mean_square(lambda start, stop: own[start:stop], own.size)

    def marked(self) -> Tensor:
        return (self.sdfs.flatten(1).amin(dim=1) <= 0).cpu()

    def fetch(self, indices: Tensor, raters: Tensor | None) -> tuple[Tensor, Tensor]:
        where = moved(indices, self.sdfs.device)
        sdfs = self.sdfs[where] if raters is None else self.sdfs[where, moved(raters, where.device)]
        return self.images[moved(indices, self.images.device)], sdfs


class Mapped:
    """A `Source` of batches that reads every batch from a packed copy. scale: of the SDFs."""

    def __init__(self, patches: Packed, scale: float) -> None:
        self.patches, self.scale, self.ahead = patches, scale, True
        self.counts = torch.from_numpy(patches.column("raters")).long()
        self.raters = int(self.counts.max())

    def placed(self, device: torch.device) -> Mapped:
        """On the host, wherever the batches go."""
        return self

    def mean_square(self) -> float:
        """Of the SDFs."""
        values = self.patches.flat_values
        return mean_square(lambda start, stop: values(start, stop) * self.scale, self.patches.size_of_maps)

    def marked(self) -> Tensor:
        return torch.from_numpy(self.patches.column("marked"))

    def fetch(self, indices: Tensor, raters: Tensor | None) -> tuple[Tensor, Tensor]:
        own = indices.tolist()
        sdfs = self.patches.sdfs_of(own, None if raters is None else raters.tolist(), self.raters)
        return torch.from_numpy(self.patches.images_of(own)), torch.from_numpy(sdfs * self.scale)


class Drawn(NamedTuple):
    """What a batch is made of, before it is augmented."""

    indices: Tensor
    raters: Tensor | None
    pair: Future[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor]


class Batches:
    """Endless batches: every image once per epoch, in an order drawn anew for each.

    One rater is drawn for each image of a batch, or all are shown (data.raters), augmented as `data` says, and with
    data.crop a window. Batches come on `device`; one that spans two epochs is filled from both. Where the source is
    worth it, a thread fetches the next batch; what is drawn at random does not depend on that.

    With data.foreground_share, images with foreground of some rater and those without have epochs of their own, and
    after any number of batches the images with foreground are that share of all, to less than one.
    part: the part of each batch that is given; what is drawn at random is drawn for the whole.
    Raises UsageError where the images are all of one kind and data.foreground_share asks for both.
    """

    def __init__(
        self, source: Source, batch: int, seed: int, device: torch.device, data: DataConfig, part: Share = WHOLE
    ) -> None:
        self.source, self.batch, self.device, self.part = source, batch, device, part
        self.augment, self.crop, self.every_rater = Augmentation(data), data.crop, data.raters == "all"
        self.generator = torch.Generator().manual_seed(seed)
        self.share = data.foreground_share
        self.kinds = [torch.arange(len(source.counts))] if self.share is None else self._by_foreground(self.share)
        self._orders = [torch.empty(0, dtype=torch.int64) for _ in self.kinds]
        self._given = 0  # batches, of those with a share of foreground
        self._pool = ThreadPoolExecutor(1) if source.ahead else None
        self._ahead: tuple[dict[str, Any], Drawn] | None = None  # the state before the next batch was drawn, and that

    def _by_foreground(self, share: float) -> list[Tensor]:
        """Which images have foreground, and which have none."""
        marked = self.source.marked()
        kinds = [marked.nonzero()[:, 0], (~marked).nonzero()[:, 0]]
        for kind, what, part in zip(kinds, ("has", "lacks"), (share, 1 - share), strict=True):
            if part > 0 and not len(kind):
                raise UsageError(f"data.foreground_share: {share:g}, but no training patch {what} foreground")
        return kinds

    def _next_of(self, kind: int, count: int) -> Tensor:
        images, order = self.kinds[kind], self._orders[kind]
        while len(order) < count:
            order = torch.cat([order, images[torch.randperm(len(images), generator=self.generator)]])
        indices, self._orders[kind] = order[:count], order[count:]
        return indices

    def _next_indices(self) -> Tensor:
        if self.share is None:
            return self._next_of(0, self.batch)
        before, after = (int((self._given + i) * self.batch * self.share + 0.5) for i in (0, 1))
        self._given += 1
        return torch.cat([self._next_of(0, after - before), self._next_of(1, self.batch - (after - before))])

    def _raters(self, indices: Tensor) -> Tensor:
        """One for each image, on the host; each of an image's own alike."""
        raters, counts = self.source.raters, self.source.counts
        if raters == 1:
            return torch.zeros_like(indices)
        if (counts == raters).all():
            return torch.randint(raters, (len(indices),), generator=self.generator)
        return torch.randint(2**62, (len(indices),), generator=self.generator) % counts[indices]

    def _shares(self, indices: Tensor) -> Tensor:
        counts = self.source.counts[indices][:, None]
        return (torch.arange(self.source.raters) < counts) / counts

    def _crop(self, image: Tensor, sdf: Tensor) -> tuple[Tensor, Tensor]:
        if self.crop is None:
            return image, sdf
        height, width = self.crop
        tops = torch.randint(image.shape[-2] - height + 1, (len(image),), generator=self.generator).tolist()
        lefts = torch.randint(image.shape[-1] - width + 1, (len(image),), generator=self.generator).tolist()

        def cut(x: Tensor) -> Tensor:
            parts = zip(x, tops, lefts, strict=True)
            return torch.stack([part[..., top : top + height, left : left + width] for part, top, left in parts])

        return cut(image), cut(sdf)

    def _draw(self) -> Drawn:
        indices = self._next_indices()
        raters = None if self.every_rater else self._raters(indices)
        if self._pool is None:
            return Drawn(indices, raters, self._fetch(indices, raters))
        return Drawn(indices, raters, self._pool.submit(self._fetch, indices, raters))

    def _fetch(self, indices: Tensor, raters: Tensor | None) -> tuple[Tensor, Tensor]:
        image, sdf = self.source.fetch(indices, raters)
        return pinned(image, self.device), pinned(sdf, self.device)

    def next(self) -> Batch:
        indices, raters, pair = self._ahead[1] if self._ahead else self._draw()
        image, sdf = (moved(x, self.device) for x in (pair.result() if isinstance(pair, Future) else pair))
        shares = moved(self._shares(indices), self.device) if self.every_rater else None
        image, sdf = self._crop(*self.augment(image, sdf, self.generator))
        self._ahead = None
        if self._pool is not None:
            self._ahead = self._state(), self._draw()
        raters, shares = (None if x is None else self.part.of(x) for x in (raters, shares))
        return Batch(self.part.of(image), self.part.of(sdf), indices.tolist(), raters, shares)

    def _state(self) -> dict[str, Any]:
        given = {} if self.share is None else {"given": torch.tensor(self._given)}
        return {**dict(zip(ORDERS, self._orders, strict=False)), **given, "generator": self.generator.get_state()}

    def state_dict(self) -> dict[str, Any]:
        state = self._ahead[0] if self._ahead else self._state()
        return {name: value.clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ahead = None
        self._orders = [state[name] for name, _ in zip(ORDERS, self.kinds, strict=False)]
        for order, images in zip(self._orders, self.kinds, strict=True):
            if order.dtype != torch.int64 or not torch.isin(order, images).all():
                raise ValueError(f"an order of {len(images)} images is expected")
        self._given = 0 if self.share is None else int(state["given"])
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
