"""Images of any size: draws by overlapping tiles, in bands of bounded memory from the top of the image down.

Blending draws that were made tile by tile would shrink their spread where tiles overlap. Here a draw is one: its noise
is a field of the whole image, its state is that of a whole band, and at every evaluation it is the denoiser's output
that is computed by tiles and blended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from data.patches import Window
from evaluation.ensemble import Ensemble, Moments, classify
from models.build import threshold_of
from sampling.drawer import ROUND, Drawer
from sampling.memory import batches
from sampling.tiling import Tiling, ramp, split_rows, tiling_of
from sde.field import FieldNoise
from utils.schema import Config

Read = Callable[[Window], np.ndarray]
Watch = Callable[[np.ndarray], None]
MEMORY = 3 * 2**29  # bytes for the features and the state of a band
STATE = 128  # bytes for a pixel and channel of a draw: a sampler's float64 iterates, noise, statistics


@dataclass(frozen=True)
class Band:
    """Finished rows of an image, from row `top` on.

    mmse, std: (K, rows, W) float32 in SDF units. probability: (rows, W) float32, of the foreground. labels: (rows, W)
    uint8, classes of the MMSE, 0 for background.
    """

    top: int
    mmse: np.ndarray
    std: np.ndarray
    probability: np.ndarray
    labels: np.ndarray


class TiledDenoise:
    """E[m | z_t = z, x] of draws z (D, K, H, W) at a scalar t, by tiles: what samplers call `denoise`.

    images: (T, C, h, w) uint8, one for each tile. cached: whether their features are kept, or computed anew at every
    evaluation. At most drawer.max_batch tiles are evaluated at once; the outputs are blended in a fixed order, so that
    a draw depends on neither.
    """

    def __init__(self, drawer: Drawer, tiling: Tiling, images: Tensor, cached: bool = True) -> None:
        self.drawer, self.tiling, self.images = drawer, tiling, images
        self.features = drawer.encode(images) if cached else None
        self.weights = tiling.weights.to(drawer.device)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        self.drawer.evaluations += 1
        windows, draws = self.tiling.windows, len(z)

        def some(part: slice) -> Tensor:
            # Draws of a tile side by side: they share its features.
            pairs = [divmod(i, draws) for i in range(part.start, part.stop)]
            crops = torch.stack([z[(d, slice(None), *windows[tile].slices)] for tile, d in pairs])
            features = self._features([tile for tile, _ in pairs])
            return self.drawer.evaluate(lambda z, t: self.drawer.denoiser(z, t, features), crops, t)

        blended = torch.zeros_like(z)
        for part, denoised in batches(self.drawer, len(windows) * draws, some):
            for i, output in zip(range(part.start, part.stop), denoised, strict=True):
                tile, d = divmod(i, draws)
                blended[(d, slice(None), *windows[tile].slices)] += self.weights[tile] * output
        return blended

    def _features(self, tiles: Sequence[int]) -> list[Tensor]:
        """For consecutive tiles, with repetitions."""
        features, first = self.features, 0
        if features is None:
            first = tiles[0]
            features = self.drawer.encode(self.images[first : tiles[-1] + 1])
        return self.drawer.select(features, torch.tensor(tiles, device=self.drawer.device) - first)


@dataclass
class TiledDrawer:
    """Maps of whole images, band by band.

    tile: side of a tile in pixels, best that of the training images. overlap: see `tiling_of`. draws: of every image,
    0 for mean and standard deviation from one evaluation without noise (`Drawer.moments`). threshold: in SDF units.
    standard_error: draws end where a band's is below this. memory: bytes to plan for; more makes fewer bands.
    """

    drawer: Drawer
    tile: int
    overlap: float
    draws: int
    threshold: float
    standard_error: float | None = None
    memory: int = MEMORY

    @torch.no_grad()
    def __call__(self, read: Read, shape: tuple[int, int], key: str, watch: Watch | None = None) -> Iterator[Band]:
        """Yield the bands of one image (H, W) from the top; together they cover every row once.

        read: gives (C, height, width) uint8 of a window of the image. key: seeds the noise, with the draw's number.
        watch: sees every draw (K, H, W), if the image is drawn in one band.

        Bands are tile rows, full width. Neighbours have one row of tiles in common, in the middle of which the maps of
        one pass into those of the next; their draws have the same noise there. A draw is the same as in one band but
        near the ends of its band, where its neighbours are missing, and for pc, whose step sizes are norms over the
        band.
        """
        tiling = tiling_of(shape, self.tile, self.overlap)
        most, at_once, cached = self._plan(tiling, read)
        # In a shared row of tiles: about its middle, and clear of the next shared row's.
        fade = max(1, min([tiling.size[0] // 2, *(b - a for a, b in pairwise(tiling.tops))]))
        start, held = 0, np.empty(0)
        groups = split_rows(len(tiling.tops), most)
        for i, (first, last) in enumerate(groups):
            part, top = tiling.rows(first, last), tiling.tops[first]
            seen_by = watch if len(groups) == 1 else None
            maps = self._maps(part, top, read, key, at_once, cached, seen_by)[:, start - top :]
            if i > 0:
                share = ramp(fade).float().numpy()[:, None]
                maps[:, :fade] = held + share * (maps[:, :fade] - held)
            end = shape[0] if i + 1 == len(groups) else tiling.tops[last] + (tiling.size[0] - fade) // 2
            yield self._band(start, maps[:, : end - start])
            held = maps[:, end - start : end - start + fade].copy()
            start = end

    def _plan(self, tiling: Tiling, read: Read) -> tuple[int, int, bool]:
        """Tile rows of a band, draws at once, and whether features are kept.

        As many rows as memory allows; at least two, so that bands can overlap.
        """
        image = torch.from_numpy(read(Window(0, 0, *tiling.size)))
        features = sum(f.nbytes for f in self.drawer.encode(image[None])) * len(tiling.lefts)
        state = STATE * self.drawer.denoiser.mask_channels * tiling.shape[1]

        def needed(rows: int, kept: bool) -> int:
            rows = min(rows, len(tiling.tops))
            return rows * features * kept + tiling.rows(0, rows - 1).shape[0] * state

        cached = self.draws > 0 and needed(2, True) <= self.memory
        most = 2
        while most < len(tiling.tops) and needed(most + 1, cached) <= self.memory:
            most += 1
        spare = self.memory - needed(most, cached)
        return most, 1 + max(0, spare) // needed(most, False), cached

    def _maps(self, tiling: Tiling, top: int, read: Read, key: str, at_once: int, cached: bool,
              watch: Watch | None) -> np.ndarray:  # fmt: skip
        """MMSE, standard deviation and probability of one band, (K + K + 1, H, W) float32."""
        images = tiling.cut(torch.from_numpy(read(Window(top, 0, *tiling.shape))))
        maps: Ensemble | Moments
        if self.draws:
            maps = self._ensemble(TiledDenoise(self.drawer, tiling, images, cached), top, key, at_once, watch)
        else:
            mean, std = self.drawer.moments(images)
            std = tiling.blend(std.square()).sqrt()
            maps = Moments(tiling.blend(mean).numpy(), std.numpy(), self.threshold)
        return np.concatenate([maps.mmse, maps.std, maps.probability[None]])

    def _ensemble(self, denoise: TiledDenoise, top: int, key: str, at_once: int, watch: Watch | None) -> Ensemble:
        """All draws of one band."""
        drawer, (height, width) = self.drawer, denoise.tiling.shape
        classes, process = drawer.denoiser.mask_channels, drawer.denoiser.process
        ensemble = Ensemble((classes, height, width), self.threshold)
        error = drawer.standard_error()

        def some(part: slice) -> np.ndarray:
            drawer.evaluations = 0
            owners = [(key, d) for d in range(part.start, part.stop)]
            window = (top, 0, height, width)
            noise = FieldNoise(drawer.seed, owners, classes, window, drawer.device, drawer.antithetic)
            return drawer.sampler(denoise, process, noise).float().cpu().numpy() / drawer.sdf_scale

        for _, draws in batches(drawer, self.draws, some, at_once):
            for sdf in draws:
                ensemble.add(sdf)
                if watch is not None:
                    watch(sdf)
                if self.standard_error is not None:
                    error.add(sdf)
                    if ensemble.draws % ROUND == 0 and error.value <= self.standard_error:
                        return ensemble
        return ensemble

    def _band(self, top: int, maps: np.ndarray) -> Band:
        classes = self.drawer.denoiser.mask_channels
        mmse, std, probability = maps[:classes], maps[classes : 2 * classes], maps[2 * classes]
        return Band(top, mmse, std, probability, classify(mmse, self.threshold))


def tiled_of(config: Config, drawer: Drawer, trained: int) -> TiledDrawer:
    """As the config's sampling section says; trained: side of the images or crops the denoiser was trained on."""
    sampling = config.sampling
    moments = sampling.sampler == "mean" and drawer.denoiser.second_moment
    return TiledDrawer(
        drawer,
        sampling.tile or trained,
        sampling.tile_overlap,
        0 if moments else sampling.draws_per_image,
        threshold_of(config),
        sampling.standard_error if sampling.draws == "auto" else None,
    )
