"""Mean, standard deviation and foreground probability of draws, one draw at a time."""

from __future__ import annotations

import numpy as np


class Ensemble:
    """Streaming statistics over draws of one image; memory does not grow with their number.

    threshold: a pixel is foreground where the SDF is below it. Maps have the shape of a draw.
    """

    def __init__(self, shape: tuple[int, ...], threshold: float) -> None:
        self.threshold = threshold
        self.draws = 0
        self._mean = np.zeros(shape)
        self._squares = np.zeros(shape)  # sum of squared deviations (Welford)
        self._foreground = np.zeros(shape)

    def add(self, sdf: np.ndarray) -> np.ndarray:
        """Take in one draw; return its mask (bool)."""
        self.draws += 1
        delta = sdf - self._mean
        self._mean += delta / self.draws
        self._squares += delta * (sdf - self._mean)
        mask = sdf < self.threshold
        self._foreground += mask
        return mask

    def _need_draws(self) -> None:
        if self.draws == 0:
            raise ValueError("no draws yet")

    @property
    def mmse(self) -> np.ndarray:
        """The mean of the draws, the minimum mean squared error estimate; float32."""
        self._need_draws()
        return self._mean.astype(np.float32)

    @property
    def mask(self) -> np.ndarray:
        """MMSE below the threshold; bool."""
        return self.mmse < self.threshold

    @property
    def std(self) -> np.ndarray:
        """Standard deviation over draws (n - 1 in the denominator, 0 for a single draw); float32."""
        self._need_draws()
        return np.sqrt(self._squares / max(1, self.draws - 1)).astype(np.float32)

    @property
    def probability(self) -> np.ndarray:
        """Fraction of draws that call the pixel foreground; float32 in [0, 1]."""
        self._need_draws()
        return (self._foreground / self.draws).astype(np.float32)

    @property
    def mask_std(self) -> np.ndarray:
        """Standard deviation of the thresholded draws, sqrt(p (1 - p)); float32 in [0, 0.5]."""
        p = self.probability
        return np.sqrt(p * (1 - p))
