"""Images of any size: draws by overlapping tiles, in bands of bounded memory from the top of the image down.

Blending draws that were made tile by tile would shrink their spread where tiles overlap. Here a draw is one: its noise
is a field of the whole image, its state is that of a whole band, and at every evaluation it is the denoiser's output
that is computed by tiles and blended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from data.patches import Window
from data.stain import is_glass
from evaluation.ensemble import Ensemble, Moments, classify
from sampling.drawer import ROUND, Drawer
from sampling.memory import batches
from sampling.sampler import draws_of
from sampling.tiling import Tiling, ramp, split_rows, tiling_of
from sde.field import FieldNoise
from sde.noise import DrawNoise
from sde.samplers import Noise
from utils.sections import SamplingConfig

Read = Callable[[Window], np.ndarray]
Watch = Callable[[np.ndarray], object]
Tick = Callable[[float], object]
MEMORY = 3 * 2**29  # bytes for the features and the state of a band
AT_ONCE = 1024  # draws of a tile between two signs of progress, about
STATE = 128  # bytes for a pixel and channel of a draw: a sampler's float64 iterates, noise, statistics


@dataclass(frozen=True)
class Band:
    """Finished rows of an image, from row `top` on.

    mmse, std: (K, rows, W) float32 in SDF units. probability: (rows, W) float32, of the foreground. labels: (rows, W)
    uint8, classes of the MMSE, 0 for background. draws: that were made. nfe: network evaluations for each of them.
    """

    top: int
    mmse: np.ndarray
    std: np.ndarray
    probability: np.ndarray
    labels: np.ndarray
    draws: int
    nfe: float


class TiledDenoise:
    """E[m | z_t = z, x] of draws z (D, K, H, W) at a scalar t, by tiles: what samplers call `denoise`.

    images: (T, C, h, w) uint8, one for each tile. shown: (T,) bool, others are background without an evaluation. top:
    of the band in the image. cached: whether features are kept, or computed anew at every evaluation. At most
    drawer.max_batch tiles are evaluated at once; the outputs are blended in a fixed order, so that a draw depends on
    neither.
    """

    def __init__(self, drawer: Drawer, tiling: Tiling, images: Tensor, shown: Tensor, top: int, cached: bool) -> None:
        self.drawer, self.tiling, self.images, self.top = drawer, tiling, images[shown], top
        self.windows = [window for window, some in zip(tiling.windows, shown.tolist(), strict=True) if some]
        self.features = drawer.encode(self.images) if cached and self.windows else None
        self.weights = tiling.weights[shown].to(drawer.device)
        empty = (~shown).float()[:, None, None].expand(-1, *tiling.size)
        self.background = (tiling.blend(empty) * drawer.sdf_scale).to(drawer.device)

    def __call__(self, z: Tensor, t: Tensor, owners: Sequence[tuple[str, int]]) -> Tensor:
        """owners: image and number of each draw."""
        windows, draws = self.windows, len(z)

        def some(part: slice) -> Tensor:
            # Draws of a tile side by side: they share its features.
            pairs = [divmod(i, draws) for i in range(part.start, part.stop)]
            crops = torch.stack([z[(d, slice(None), *windows[tile].slices)] for tile, d in pairs])
            places = [(self.top + windows[tile].top, windows[tile].left) for tile, _ in pairs]
            identities = [self.drawer.identity(*owners[d], *place) for (_, d), place in zip(pairs, places, strict=True)]
            features, rows = self._features([tile for tile, _ in pairs])
            return self.drawer.denoised(crops, t, self.drawer.denoiser.of_draws(features, rows, identities))

        blended = self.background.to(z).expand_as(z).clone()
        for part, denoised in batches(self.drawer, len(windows) * draws, some, self.drawer.at_once(self.tiling.size)):
            for i, output in zip(range(part.start, part.stop), denoised, strict=True):
                tile, d = divmod(i, draws)
                blended[(d, slice(None), *windows[tile].slices)] += self.weights[tile] * output
        return blended

    def _features(self, tiles: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """And the rows in them of consecutive tiles, with repetitions."""
        features, first = self.features, 0
        if features is None:
            first = tiles[0]
            features = self.drawer.encode(self.images[first : tiles[-1] + 1], features_only=True)
        return features, torch.tensor(tiles) - first


@dataclass
class TiledDrawer:
    """Maps of whole images, band by band.

    tile: side of a tile in pixels, best that of the training images. overlap: see `tiling_of`. draws: of every image,
    0 for mean and standard deviation from one evaluation without noise (`Drawer.moments`).
    standard_error: draws end where a band's is below this. skip_glass: tiles that `is_glass` are background.
    memory: bytes to plan for; more makes fewer bands.
    """

    drawer: Drawer
    tile: int
    overlap: float
    draws: int
    standard_error: float | None = None
    skip_glass: bool = False
    memory: int = MEMORY

    @torch.no_grad()
    def __call__(
        self, read: Read, shape: tuple[int, int], key: str, watch: Watch | None = None, tick: Tick = lambda share: None
    ) -> Iterator[Band]:
        """Yield the bands of one image (H, W) from the top; together they cover every row once.

        read: gives (C, height, width) uint8 of a window of the image. key: seeds the noise, with the draw's number.
        watch: sees every draw (K, H, W), if the image is drawn in one band. tick: is told of every share of the work
        that is done, 1 together.

        Bands are tile rows, full width. Neighbours have one row of tiles in common, in the middle of which the maps of
        one pass into those of the next; their draws have the same noise there. A draw is the same as in one band but
        near the ends of its band, where its neighbours are missing, and for pc, whose step sizes are norms over the
        band.
        """
        tiling = tiling_of(shape, self.tile, self.overlap)
        most, at_once, cached = self._plan(tiling)
        # In a shared row of tiles: about its middle, and clear of the next shared row's.
        fade = max(1, min([tiling.size[0] // 2, *(b - a for a, b in pairwise(tiling.tops))]))
        start, held = 0, np.empty(0)
        groups = split_rows(len(tiling.tops), most)
        rows = sum(last - first + 1 for first, last in groups)
        for i, (first, last) in enumerate(groups):
            part, top = tiling.rows(first, last), tiling.tops[first]
            images = part.cut(torch.from_numpy(read(Window(top, 0, *part.shape))))

            def done(of_band: float, share: float = (last - first + 1) / rows) -> None:
                tick(share * of_band)

            seen = watch if len(groups) == 1 else None
            found, nfe = self._found(part, images, top, key, at_once, cached, seen, done)
            maps = np.concatenate([found.mmse, found.std, found.probability[None]])[:, start - top :]
            if i > 0:
                share = ramp(fade).float().numpy()[:, None]
                maps[:, :fade] = held + share * (maps[:, :fade] - held)
            end = shape[0] if i + 1 == len(groups) else tiling.tops[last] + (tiling.size[0] - fade) // 2
            mmse, std, (probability,) = np.split(maps[:, : end - start], (len(maps) // 2, len(maps) - 1))
            labels = classify(mmse, self.drawer.threshold)
            draws = found.draws
            del images, found  # whoever takes the band may need the memory
            yield Band(start, mmse, std, probability, labels, draws, nfe)
            held = maps[:, end - start : end - start + fade].copy()
            start = end

    def in_one_band(self, shape: tuple[int, int]) -> bool:
        """Whether memory allows to draw an image (H, W) at once, so that `watch` sees its draws."""
        tiling = tiling_of(shape, self.tile, self.overlap)
        return self._plan(tiling)[0] >= len(tiling.tops)

    def _plan(self, tiling: Tiling) -> tuple[int, int, bool]:
        """Tile rows of a band, draws at once, and whether features are kept.

        As many rows as memory allows; at least two, so that bands can overlap.
        """
        drawer, pixels = self.drawer, tiling.size[0] * tiling.size[1] * len(tiling.lefts)
        features = math.ceil(pixels * drawer.denoiser.floats_per_pixel * (2 if drawer.bfloat16 else 4))
        state = STATE * drawer.denoiser.mask_channels * tiling.shape[1]

        def needed(rows: int, kept: bool) -> int:
            rows = min(rows, len(tiling.tops))
            return rows * features * kept + tiling.rows(0, rows - 1).shape[0] * state

        cached = self.draws > 0 and needed(2, True) <= self.memory
        most = 2
        while most < len(tiling.tops) and needed(most + 1, cached) <= self.memory:
            most += 1
        spare = self.memory - needed(most, cached)
        return most, 1 + max(0, spare) // needed(most, False), cached

    def _found(
        self,
        tiling: Tiling,
        images: Tensor,
        top: int,
        key: str,
        at_once: int,
        cached: bool,
        watch: Watch | None,
        tick: Tick,
    ) -> tuple[Ensemble | Moments, float]:
        """What is known of one band, and the network evaluations for each draw."""
        shown = self._shown(images)
        if self.draws:
            denoise = TiledDenoise(self.drawer, tiling, images, shown, top, cached)
            return self._ensemble(denoise, key, at_once, watch, tick)
        moments = self._moments(tiling, images, shown)
        tick(1.0)
        return moments, float(shown.float().mean())

    def _shown(self, images: Tensor) -> Tensor:
        """Which tiles (T, C, h, w) are evaluated, (T,) bool."""
        if not self.skip_glass:
            return torch.ones(len(images), dtype=torch.bool)
        return torch.tensor([not is_glass(image) for image in images.permute(0, 2, 3, 1).numpy()])

    def _moments(self, tiling: Tiling, images: Tensor, shown: Tensor) -> Moments:
        mean = torch.ones(len(images), self.drawer.denoiser.mask_channels, *tiling.size)
        std = torch.zeros_like(mean)
        if shown.any():
            mean[shown], std[shown] = self.drawer.moments(images[shown])
        std = tiling.blend(std.square()).sqrt()
        return Moments(tiling.blend(mean).numpy(), std.numpy(), self.drawer.threshold)

    def _ensemble(
        self, denoise: TiledDenoise, key: str, at_once: int, watch: Watch | None, tick: Tick
    ) -> tuple[Ensemble, float]:
        """All draws of one band, and the network evaluations for each."""
        drawer, tiling = self.drawer, denoise.tiling
        classes = drawer.denoiser.mask_channels
        ensemble = Ensemble((classes, *tiling.shape), drawer.threshold)
        error = drawer.standard_error()
        evaluations = 0.0
        if denoise.features or not drawer.denoiser.direct:
            evaluations = drawer.denoiser.shared * len(denoise.windows) / len(tiling.windows)

        def some(part: slice) -> np.ndarray:
            owners = [(key, d) for d in range(part.start, part.stop)]
            window, count = (denoise.top, 0, *tiling.shape), len(owners) * len(tiling.windows)
            noise: Noise = FieldNoise(drawer.seed, owners, classes, window, drawer.device, drawer.antithetic)
            if len(tiling.windows) == 1:  # the draws of a test image
                noise = DrawNoise(drawer.seed, owners, (classes, *tiling.shape), drawer.device, drawer.antithetic)
            return drawer.sample(partial(denoise, owners=owners), noise, count).float().cpu().numpy() / drawer.sdf_scale

        at_once = min(at_once, max(1, AT_ONCE // len(tiling.windows)))
        for part, draws in batches(drawer, self.draws, some, at_once):
            tick((part.stop - part.start) / self.draws)
            for sdf in draws:
                ensemble.add(sdf)
                evaluations += drawer.evaluations
                if watch is not None:
                    watch(sdf)
                if self.standard_error is not None:
                    error.add(sdf)
                    if ensemble.draws % ROUND == 0 and error.value <= self.standard_error:
                        tick(1 - part.stop / self.draws)
                        return ensemble, evaluations / ensemble.draws
        return ensemble, evaluations / ensemble.draws


def costs_of(bands: Sequence[tuple[int, float, float]]) -> dict[str, int | float]:
    """Draws and network evaluations for each, means over the rows of an image, of its bands' (rows, draws, nfe)."""
    rows, draws, nfe = zip(*bands, strict=True)
    means = {"draws": float(np.average(draws, weights=rows)), "nfe_per_draw": float(np.average(nfe, weights=rows))}
    return {name: int(mean) if mean.is_integer() else mean for name, mean in means.items()}


def tiled_of(sampling: SamplingConfig, drawer: Drawer, trained: int) -> TiledDrawer:
    """trained: side of the images or crops the denoiser was trained on."""
    moments = sampling.sampler == "mean" and drawer.denoiser.second_moment
    return TiledDrawer(
        drawer,
        sampling.tile or trained,
        sampling.tile_overlap,
        0 if moments else draws_of(sampling, drawer.denoiser),
        sampling.standard_error if sampling.draws == "auto" else None,
        sampling.skip_glass,
    )
