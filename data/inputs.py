"""Pictures to predict on, brought into the form of the training images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.images import check_size, stretch, stretch_window
from data.patches import Window
from data.pictures import Picture, ScaledPicture
from data.pixel_size import alike
from data.recipe import normalise_stain, stain_of, transform_image, with_stain
from data.stain import Stain
from utils.data_schema import DataConfig
from utils.errors import DataError

WHOLE = 4_000_000  # pixels up to which statistics of a picture are of all its pixels, as in the preparation
PROBES, PROBE = 8, 256  # of larger ones: windows each way, and their side
ENLARGED = 4.0  # times at most: more would be seen by no objective


def in_pixels_of(picture: Picture, microns: float | None) -> tuple[Picture, str | None]:
    """The picture with pixels of `microns` micrometres, None for any; or as it is and why.

    Raises DataError where it would be enlarged more than ENLARGED times.
    """
    if microns is None:
        return picture, None
    if picture.microns is None:
        return picture, f"does not state the size of its pixels; taken for {microns:g} micrometres"
    if alike(picture.microns, microns):
        return picture, None
    factors = [side / microns for side in picture.microns]
    if max(factors) > ENLARGED:
        raise DataError(
            f"pixels of {max(picture.microns):.4g} micrometres, where the network's (data.microns_per_pixel) have "
            f"{microns:g}; at most {ENLARGED * microns:g} can be enlarged"
        )
    height, width = (max(1, round(n * factor)) for n, factor in zip(picture.shape, factors, strict=True))
    return ScaledPicture(picture, (height, width)), None


class PreparedPicture(Picture):
    """A picture as the preparation of the training images would have made it: pixel size, stain, colour, stretch, size.

    warning: why a step was left out, or None. Raises DataError where it has to be resized to data.size and is above
    data.max_megapixels, and for pixels too coarse for the network.
    """

    def __init__(self, picture: Picture, data: DataConfig, target: Stain | None) -> None:
        picture, self.warning = in_pixels_of(picture, data.microns_per_pixel)
        self._source, self._data, self._target = picture, data, target
        self._stain: Stain | None = None
        self._window: tuple[float, float] | None = None
        self._resized: np.ndarray | None = None
        self.shape, self.microns = data.size or picture.shape, None if data.size else picture.microns
        if picture.shape[0] * picture.shape[1] <= WHOLE or data.size is not None:
            check_size(Path("the picture"), *picture.shape, data.max_pixels)
            image, warning = normalise_stain(picture.whole(), data.stain, target)
            self._warn(warning)
            self._resized = transform_image(image, data)
            return
        probes = np.concatenate([p.reshape(-1, *p.shape[2:]) for p in self._probes()])[:, None]
        if target is not None:
            self._stain, warning = stain_of(probes, data.stain)
            self._warn(warning)
        if data.stretch:
            probes = with_stain(probes, self._stain, target)
            self._window = stretch_window(transform_image(probes, data, stretched=False))

    def _warn(self, warning: str | None) -> None:
        self.warning = "; ".join(filter(None, (self.warning, warning))) or None

    def _probes(self) -> Iterator[np.ndarray]:
        """Windows all over a large picture, for its stain and range."""
        height, width = (min(PROBE, length) for length in self.shape)
        for top in np.linspace(0, self.shape[0] - height, PROBES).astype(int).tolist():
            for left in np.linspace(0, self.shape[1] - width, PROBES).astype(int).tolist():
                yield self._source.read(Window(top, left, height, width))

    def read(self, window: Window) -> np.ndarray:
        if self._resized is not None:
            return self._resized[window.slices]
        pixels = with_stain(self._source.read(window), self._stain, self._target)
        pixels = transform_image(pixels, self._data, stretched=False)
        return stretch(pixels, self._window) if self._window is not None else pixels

    def planes(self, window: Window) -> np.ndarray:
        """(C, h, w) uint8."""
        pixels = self.read(window)
        return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")
