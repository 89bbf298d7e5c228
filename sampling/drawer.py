"""Draws of many images in batches: features once per image, noise once per draw."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data.batches import network_image
from data.dataset import image_array
from data.rows import Patch
from data.scenes import Scene, Scenes
from evaluation.ensemble import StandardError
from models.build import threshold_of, use_bfloat16
from models.denoiser import Denoiser, Draw
from models.pooled import PIXELS
from sampling.memory import batches
from sampling.sampler import Sampler, max_batch_of, sampler_of
from sde.noise import DrawNoise, draw_seed
from sde.samplers import Callback, Denoise, Noise
from utils.devices import moved
from utils.schema import Config

ROUND = 4  # draws of an image between two looks at its standard error


@dataclass
class Drawer:
    """Everything a draw depends on but the image.

    sdf_scale: draws are divided by it, to SDF units, and are foreground below `threshold`. channels_last, bfloat16: how
    the network runs. max_batch: draws evaluated at once; halved where memory does not suffice, which changes no draw.
    evaluations: of the network, for each draw of the latest batch, besides `denoiser.shared` for each image.
    """

    denoiser: Denoiser
    sampler: Sampler
    seed: int
    max_batch: int
    sdf_scale: float
    threshold: float
    device: torch.device
    channels_last: bool
    bfloat16: bool
    antithetic: bool = False  # the first noise (sde/noise.py)
    pixels: int | None = None  # in a batch at most, if that makes it smaller
    evaluations: float = 0
    _evaluated: int = 0  # elements, in this batch
    before_evaluation: Callable[[], None] | None = None  # may raise, to stop in the middle of a draw

    @torch.no_grad()
    def __call__(
        self, images: Tensor, keys: Sequence[str], draws: int, callback: Callback | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (index of the image, its next draw (K, H, W) on the host in SDF units), image by image.

        images: (N, C, H, W) uint8. keys: names that seed the noise of each image.
        callback: sees the iterates of every batch.
        """
        pairs = [(i, d) for i in range(len(keys)) for d in range(draws)]
        yield from self.draw(self.encode(images), keys, pairs, images.shape[-2:], callback)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the network: in its precision, unless drawing is to stop."""
        if self.before_evaluation is not None:
            self.before_evaluation()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            yield

    @torch.no_grad()
    def encode(self, images: Tensor, *, features_only: bool = False) -> list[Tensor]:
        """What every draw of images (N, C, H, W) uint8 knows of them."""
        encode = self.denoiser.features if features_only else self.denoiser.encode

        def some(part: slice) -> list[Tensor]:
            with self.running():
                return encode(network_image(moved(images[part], self.device), self.channels_last))

        whole: list[Tensor] = []
        for part, features in batches(self, len(images), some):
            if not whole:
                if len(features[0]) == len(images):
                    return features
                # Filled in place: features of a large image's tiles are not to be held twice.
                whole = [f.new_empty((len(images), *f.shape[1:])) for f in features]
            for all_of_them, some_of_them in zip(whole, features, strict=True):
                all_of_them[part] = some_of_them
        return whole

    @torch.no_grad()
    def draw(
        self,
        features: Sequence[Tensor],
        keys: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        size: Sequence[int],
        callback: Callback | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (index of the image, its draw) for each of `pairs` of image and draw index, in their order."""

        at_once = self.at_once(size)
        order = self._by_part(pairs, at_once)

        def some(part: slice) -> Tensor:
            chosen = [pairs[place] for place in order[part]]
            rows = torch.tensor([i for i, _ in chosen])
            owners = [(keys[i], d) for i, d in chosen]
            own = self.denoiser.of_draws(features, rows, [self.identity(*owner) for owner in owners])
            shape = (self.denoiser.mask_channels, *size)
            sdf = self.run(partial(self.denoised, features=own), owners, shape, callback)
            return sdf.float().cpu() / self.sdf_scale

        made: dict[int, Tensor] = {}
        given = 0
        for part, sdf in batches(self, len(pairs), some, at_once):
            made |= zip(order[part], sdf, strict=True)
            while given in made:
                yield pairs[given][0], made.pop(given)
                given += 1

    def _by_part(self, pairs: Sequence[tuple[int, int]], at_once: int | None) -> list[int]:
        """In which order to make them. Small batches are faster of one view, as draws of a view share what it knows."""
        if at_once is None:
            return list(range(len(pairs)))
        most, first, keys = at_once * self.denoiser.means, 0, []  # most: what is held of draws that are made too soon
        for place, (image, number) in enumerate(pairs):
            if place - first == most or (place and number < pairs[place - 1][1]):  # enough, or another image
                first = place
            keys.append((first, image, self.denoiser.part_of(number)))
        return sorted(range(len(pairs)), key=keys.__getitem__)

    def at_once(self, size: Sequence[int]) -> int | None:
        """Draws or tiles (H, W) for one batch, if that many memory holds; None where `max_batch` decides alone."""
        return None if self.pixels is None else max(1, self.pixels // (size[0] * size[1]))

    def standard_error(self) -> StandardError:
        """Of the mean of draws that are yet to be made."""
        return StandardError(group=1 + self.antithetic)

    def identity(self, image_id: str, number: int, top: int = 0, left: int = 0) -> Draw:
        """Of a draw, or of a tile of it."""
        return Draw(draw_seed(self.seed, image_id, number), number, top, left)

    def denoised(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        """E[m | z_t = z, x] of draws z (B, K, H, W) with these features, at a scalar t."""
        known = self.denoiser.known(t, features)
        return self.evaluate(partial(self.denoiser, features=features), z, t) if known is None else known

    def evaluate(self, network: Denoise, z: Tensor, t: Tensor) -> Tensor:
        """network(z, t), counted."""
        with self.running():
            denoised = network(z, t)
        self._evaluated += len(z)
        return denoised

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (N, K, H, W) of m given the images, on the host in SDF units, in one evaluation.

        Raises ValueError unless the denoiser has learned the second moment.
        """

        def some(part: slice) -> tuple[Tensor, Tensor]:
            with self.running():
                # Not `encode`, which would compute the mean as well.
                features = self.denoiser.features(network_image(moved(images[part], self.device), self.channels_last))
                mean, variance = self.denoiser.direct_moments(features, images.shape[-2:])
            if variance is None:
                raise ValueError("this denoiser has not learned the second moment")
            return mean.cpu() / self.sdf_scale, variance.sqrt().cpu() / self.sdf_scale

        means, stds = zip(*(moments for _, moments in batches(self, len(images), some)), strict=True)
        return torch.cat(means), torch.cat(stds)

    @torch.no_grad()
    def run(
        self,
        denoise: Denoise,
        owners: Sequence[tuple[str, int]],
        shape: Sequence[int],
        callback: Callback | None = None,
    ) -> Tensor:
        """One batch of the sampler, (B, *shape), in the units of the process.

        owners: what seeds the noise of each element, a name and a draw index.
        """
        noise = DrawNoise(self.seed, owners, shape, self.device, self.antithetic)
        return self.sample(denoise, noise, len(owners), callback)

    def sample(self, denoise: Denoise, noise: Noise, count: int, callback: Callback | None = None) -> Tensor:
        """One batch of the sampler; count: evaluations of single elements that make one of every draw."""
        self._evaluated = 0
        draws = self.sampler(denoise, self.denoiser.process, noise, callback=callback)
        self.evaluations = self._evaluated / count
        return draws


T = TypeVar("T")


class Timed(Iterator[T]):
    """Items, and the seconds spent on making them: what is done with them does not count."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self.seconds = iter(items), 0.0

    def __next__(self) -> T:
        begin = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - begin


def whole_draws(
    drawer: Drawer,
    scenes: Sequence[Scene],
    draws: int,
    done: Callable[[int], bool] = lambda i: False,
    at_once: int | None = None,
) -> Iterator[tuple[int, np.ndarray, float]]:
    """(index of the scene, its next draw (K, H, W), network evaluations for it) of scenes whose parts are of one size.

    In rounds of `at_once` draws of every scene (all of them by default), without scenes that are done by then. The
    evaluations are a mean over parts; those that draws share (`Denoiser.shared`) are not in them.
    """
    parts = [part for scene in scenes for part in scene.parts]
    images, keys = image_tensor(parts), [part.key for part in parts]
    features = drawer.encode(images)
    ends = np.cumsum([len(scene.parts) for scene in scenes]).tolist()
    owner = [i for i, scene in enumerate(scenes) for _ in scene.parts]
    pieces: list[np.ndarray] = []
    evaluations = 0.0
    at_once = at_once or draws
    for first in range(0, draws, at_once):
        left = [i for i in range(len(scenes)) if not done(i)]
        some = range(first, min(first + at_once, draws))
        pairs = [(p, d) for i in left for d in some for p in range(ends[i] - len(scenes[i].parts), ends[i])]
        for p, draw in drawer.draw(features, keys, pairs, images.shape[-2:]):
            pieces.append(draw.numpy())
            evaluations += drawer.evaluations
            scene = scenes[owner[p]]
            if len(pieces) == len(scene.parts):
                yield owner[p], scene.assemble(pieces), evaluations / len(pieces)
                pieces, evaluations = [], 0.0


def whole_moments(drawer: Drawer, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (K, H, W) of a scene in one evaluation of each part."""
    mean, std = drawer.moments(image_tensor(scene.parts))
    return scene.assemble(list(mean.numpy())), scene.assemble(list(std.numpy()))


def image_tensor(patches: Sequence[Patch]) -> Tensor:
    """(N, C, H, W) uint8 of patches of one size."""
    return torch.from_numpy(image_array(list(patches)))


def drawer_of(config: Config, denoiser: Denoiser, sampler: Sampler | None = None) -> Drawer:
    """On the denoiser's device, with the precision and layout of its training; by the config's sampler or another."""
    device = next(denoiser.parameters()).device
    return Drawer(
        denoiser,
        sampler or sampler_of(config.sampling),
        seed=config.seed,
        max_batch=max_batch_of(config.sampling, device),
        sdf_scale=config.data.sdf_scale,
        threshold=threshold_of(config),
        device=device,
        channels_last=config.training.channels_last,
        bfloat16=use_bfloat16(config.training.precision, device),
        antithetic=config.sampling.noise == "antithetic",
        pixels=PIXELS if device.type == "cpu" and config.sampling.max_batch is None else None,
    )


def groups(items: Iterable[T], most: int, kind: Callable[[T], object], parts: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive items of one kind, at most `most` parts together but at least one item. What is done already plays no
    part in the grouping, so that an interrupted run computes the same batches."""
    group: list[T] = []
    for item in items:
        if group and (sum(map(parts, [*group, item])) > most or kind(item) != kind(group[0])):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def scene_groups(scenes: Sequence[Scene], most: int) -> Iterator[list[int]]:
    """Numbers of images with parts of one size, see `groups`; of `Scenes` none is read for it."""
    known = scenes.outlines if isinstance(scenes, Scenes) else scenes
    numbers = range(len(known))
    return groups(numbers, most, lambda i: known[i].parts[0].image.shape, lambda i: len(known[i].parts))
