"""Predict on any image: Segmenter.from_run("runs/glas/...")(image) -> Result.

The image needs neither a mask nor a table. It is prepared as the training images were, drawn from in tiles, and
everything comes back in its own resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.images import check_size, stretch
from data.inputs import PreparedPicture
from data.pictures import Picture, open_picture
from data.stain import Stain
from evaluation.ensemble import FirstDraws, classify
from evaluation.instances import DrawObjects, ObjectRecord, objects_of
from sampling.drawer import Drawer, drawer_of
from sampling.loading import loaded
from sampling.tiled import Band, Tick, TiledDrawer, Watch, costs_of, tiled_of
from utils.config import load_config, override_config
from utils.devices import choose_device
from utils.errors import CheckpointError
from utils.runs import checked_run, checkpoint_path
from utils.schema import Config
from utils.shipped import weights_file
from utils.weights import read_header


@dataclass(frozen=True, eq=False)
class Result:
    """What is known of one image (H, W), in its own resolution.

    mask: (H, W) bool. classes: (H, W) uint8, 0 = background, 1 .. K. mmse, std: (K, H, W) float32 in SDF units:
    mean, negative inside, and standard deviation of the draws. probability: (H, W) float32, the share of draws that
    call a pixel foreground. instances: (H, W) int32, 0 = background; objects: what is known of each. draws: how many,
    nfe_per_draw: network evaluations for each; means over rows where bands took different numbers.
    warning: what was done otherwise than the config says, or None. first_draws: (D, H, W) uint8, the classes of the
    first ten draws, fewer of a large image; None where there are no two draws of the whole.
    """

    classes: np.ndarray
    mmse: np.ndarray
    std: np.ndarray
    probability: np.ndarray
    instances: np.ndarray
    objects: list[ObjectRecord]
    draws: float
    nfe_per_draw: float
    warning: str | None = None
    first_draws: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        return np.asarray(self.classes > 0)


def resized(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, h, w) float32 to (N, H, W), bilinear between pixel centres; SDFs keep their units."""
    if maps.shape[1:] == shape:
        return maps
    return F.interpolate(torch.from_numpy(maps)[None], shape, mode="bilinear", align_corners=False)[0].numpy()


class Segmenter:
    """A trained denoiser, ready for images.

    config: its sampling and evaluation sections may differ from those of the training. drawer, tiles: how draws are
    made.
    """

    def __init__(self, config: Config, drawer: Drawer, tiles: TiledDrawer, stain: Stain | None) -> None:
        self.config, self.drawer, self.tiles, self._stain = config, drawer, tiles, stain

    @classmethod
    def from_run(
        cls, run: str | Path, checkpoint: str = "best", device: str = "auto", overrides: Sequence[str] = ()
    ) -> Segmenter:
        """A run's denoiser with its own settings.

        run: a folder below runs/. checkpoint: best, last or a path. overrides: "section.key=value", as with --set.
        Raises UsageError, ConfigError or CheckpointError, whose texts are a line each.
        """
        run = checked_run(Path(run))
        config = load_config(run / "config.yaml", list(overrides))
        return cls.from_checkpoint(config, checkpoint_path(run, checkpoint), choose_device(device))

    @classmethod
    def from_weights(cls, path: str | Path, device: str = "auto", overrides: Sequence[str] = ()) -> Segmenter:
        """Of a file of weights (`utils.weights`), which has its config with it, or shipped ones by name; otherwise as
        `from_run`."""
        path = weights_file(path)
        config = override_config(read_header(path).config, path, overrides)
        return cls.from_checkpoint(config, path, choose_device(device))

    @classmethod
    def from_checkpoint(cls, config: Config, path: Path, device: torch.device) -> Segmenter:
        """The same from its parts. Raises CheckpointError for checkpoints that do not know their training images."""
        denoiser, images = loaded(config, path, device)
        if "size" not in images:
            raise CheckpointError(f"{path}: does not say what images it was trained on; train again")
        stain = Stain.noted(images.get("stain_target"))
        if config.data.stain != "none" and stain is None:
            raise CheckpointError(f"{path}: does not know the stains of data.stain: {config.data.stain}; train again")
        drawer = drawer_of(config, denoiser)
        return cls(config, drawer, tiled_of(config.sampling, drawer, max(images["size"])), stain)

    def open(self, path: str | Path) -> Picture:
        """A picture file. Raises DataError, a line that names the file."""
        return open_picture(Path(path), self.config.data)

    def prepared(self, picture: Picture) -> PreparedPicture:
        """As the training images were. Raises DataError for pictures too large to be resized."""
        return PreparedPicture(picture, self.config.data, self._stain)

    def bands(
        self, prepared: PreparedPicture, key: str, watch: Watch | None = None, tick: Tick = lambda share: None
    ) -> Iterator[Band]:
        """Maps of an image of any size from the top down, in the resolution of `prepared`; see TiledDrawer."""
        return self.tiles(prepared.planes, prepared.shape, key, watch, tick)

    def __call__(
        self, image: np.ndarray | str | Path | Picture, key: str = "image", tick: Tick = lambda share: None
    ) -> Result:
        """Everything about one image: (H, W) or (H, W, 3) uint8, the path of a picture, or a picture that is open.

        key: seeds the draws, together with the config's seed. tick: see `TiledDrawer`. Raises DataError for files that
        are no picture, ValueError for other arrays.
        """
        if isinstance(image, np.ndarray):
            image, window = image_of(image), self.config.data.window
            image = image if window is None else Picture(stretch(image.whole(), window))  # as of a file
        picture = image if isinstance(image, Picture) else self.open(image)
        check_size(Path(key), *picture.shape, self.config.data.max_pixels)
        prepared = self.prepared(picture)
        threshold, evaluation = self.drawer.threshold, self.config.evaluation
        objects = DrawObjects(threshold, evaluation.object_depth, evaluation.object_area)

        first = FirstDraws()

        def watch(sdf: np.ndarray) -> None:
            whole = resized(sdf, picture.shape)
            objects.add(whole.min(axis=0))
            if first.takes(whole[0].size):
                first.add(classify(whole, threshold))

        bands = list(self.bands(prepared, key, watch, tick))
        mmse, std = (np.concatenate([getattr(b, name) for b in bands], axis=1) for name in ("mmse", "std"))
        mmse, std = resized(mmse, picture.shape), resized(std, picture.shape)
        probability = np.concatenate([b.probability for b in bands])[None]
        if not objects:  # drawn in several bands, or not at all
            objects.add(mmse.min(axis=0))
        labels, records = objects_of(mmse, std, objects)
        return Result(
            classify(mmse, threshold),
            mmse,
            std,
            resized(probability, picture.shape)[0],
            labels,
            records,
            **costs_of([(len(b.labels), b.draws, b.nfe) for b in bands]),
            warning=prepared.warning,
            first_draws=first.labels,
        )


def image_of(pixels: np.ndarray) -> Picture:
    """(H, W) or (H, W, 3) uint8. Raises ValueError for anything else."""
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not shaped or pixels.dtype != np.uint8 or pixels.size == 0:
        raise ValueError(f"(H, W) or (H, W, 3) uint8 is expected, not {pixels.dtype} of shape {pixels.shape}")
    return Picture(pixels)
