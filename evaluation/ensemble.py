"""Mean, standard deviation and foreground probability of draws, one draw at a time."""

from __future__ import annotations

import numpy as np


def classify(sdf: np.ndarray, threshold: float) -> np.ndarray:
    """Labels (H, W) uint8 of SDFs (K, H, W): the class whose SDF is least, counted from 1, and 0 where none is below
    the threshold."""
    return np.where(sdf.min(axis=0) < threshold, sdf.argmin(axis=0) + 1, 0).astype(np.uint8)


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

    @property
    def mask_std(self) -> np.ndarray:
        """Standard deviation of the thresholded draws, sqrt(p (1 - p)); (H, W) float32 in [0, 0.5]."""
        p = self.probability
        return np.sqrt(p * (1 - p))
