"""Mean, standard deviation and foreground probability of draws, one draw at a time."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

FIRST = 10  # draws of an image that are kept to be looked at
FIRST_PIXELS = 1 << 25  # of these together, at most; two are kept in any case


def classify(sdf: np.ndarray, threshold: float) -> np.ndarray:
    """Labels (H, W) uint8 of SDFs (K, H, W): the class whose SDF is least, counted from 1, and 0 where none is below
    the threshold."""
    return np.where(sdf.min(axis=0) < threshold, sdf.argmin(axis=0) + 1, 0).astype(np.uint8)


def mask_std(probability: np.ndarray) -> np.ndarray:
    """Standard deviation of masks (H, W) from the probability of foreground, sqrt(p (1 - p)); in [0, 0.5]."""
    return np.sqrt(probability * (1 - probability))


class Ensemble:
    """Streaming statistics over draws of one image; memory does not grow with their number.

    shape: (K, H, W) of a draw, an SDF for each of K classes.
    threshold: a pixel is foreground where the SDF is below it.
    """

    def __init__(self, shape: tuple[int, int, int], threshold: float) -> None:
        self.threshold = threshold
        self.draws = 0
        self._mean = np.zeros(shape)
        self._squares = np.zeros(shape)  # sum of squared deviations (Welford)
        self._foreground = np.zeros(shape[1:])

    def add(self, sdf: np.ndarray) -> np.ndarray:
        """Take in one draw (K, H, W); return its labels (H, W)."""
        self.draws += 1
        delta = sdf - self._mean
        self._mean += delta / self.draws
        self._squares += delta * (sdf - self._mean)
        labels = classify(sdf, self.threshold)
        self._foreground += labels > 0
        return labels

    def _need_draws(self) -> None:
        if self.draws == 0:
            raise ValueError("no draws yet")

    @property
    def mmse(self) -> np.ndarray:
        """The mean of the draws, the minimum mean squared error estimate; (K, H, W) float32."""
        self._need_draws()
        return self._mean.astype(np.float32)

    @property
    def labels(self) -> np.ndarray:
        """Classes of the MMSE; (H, W) uint8."""
        return classify(self.mmse, self.threshold)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation over draws (n - 1 in the denominator, 0 for a single draw); (K, H, W) float32."""
        self._need_draws()
        return np.sqrt(self._squares / max(1, self.draws - 1)).astype(np.float32)

    @property
    def probability(self) -> np.ndarray:
        """Fraction of draws that call the pixel foreground, of any class; (H, W) float32 in [0, 1]."""
        self._need_draws()
        return (self._foreground / self.draws).astype(np.float32)


class Moments:
    """The maps of an `Ensemble` from a mean and a standard deviation alone, by a normal distribution at every pixel.

    mmse, std: (K, H, W) float32 in SDF units. threshold: as in `Ensemble`. labels: classes of the mean; (H, W) uint8.
    probability: that an SDF is below the threshold, classes taken as independent; (H, W) float32 in [0, 1].
    """

    draws = 1  # the mean

    def __init__(self, mmse: np.ndarray, std: np.ndarray, threshold: float) -> None:
        self.mmse, self.std, self.threshold = mmse, std, threshold
        self.labels = classify(mmse, threshold)
        background = ndtr((mmse - threshold) / np.maximum(std, 1e-6))
        self.probability = (1.0 - background.prod(axis=0)).astype(np.float32)


class FirstDraws:
    """Labels of the first draws of one image: FIRST, or fewer of a large image."""

    def __init__(self) -> None:
        self._labels: list[np.ndarray] = []

    def takes(self, pixels: int) -> bool:
        """Whether the next draw, of so many pixels, is kept."""
        return len(self._labels) < min(FIRST, max(2, FIRST_PIXELS // pixels))

    def add(self, labels: np.ndarray) -> None:
        """Take in those of the next draw, (H, W) uint8."""
        if self.takes(labels.size):
            self._labels.append(labels)

    @property
    def labels(self) -> np.ndarray | None:
        """(D, H, W) uint8; None of a single draw, or none, which is nothing to compare."""
        return np.stack(self._labels) if len(self._labels) > 1 else None


class StandardError:
    """Of a mean map, from draws one at a time: how far it is from the mean of infinitely many.

    group: draws that depend on each other come in groups of this size (2 for antithetic pairs); whole groups count.
    """

    def __init__(self, group: int = 1) -> None:
        self.group, self.groups = group, 0
        self._pending: list[np.ndarray] = []
        self._mean: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0  # over groups (Welford)

    def add(self, sdf: np.ndarray) -> None:
        """Take in the next draw, any shape."""
        self._pending.append(sdf)
        if len(self._pending) < self.group:
            return
        value = np.mean(self._pending, axis=0, dtype=np.float64)
        self._pending = []
        self.groups += 1
        delta = value - self._mean
        self._mean = self._mean + delta / self.groups
        self._squares = self._squares + delta * (value - self._mean)

    @property
    def value(self) -> float:
        """Root mean square over pixels, in the draws' units; infinite before the second group."""
        if self.groups < 2:
            return float("inf")
        return float(np.sqrt(np.mean(self._squares) / (self.groups - 1) / self.groups))
