"""Compares the confidence of a model with its accuracy.

calibration = Calibration.compute(probabilities, label)
calibration.expected_error   # 0.004: they differ by 0.4 percentage points on average
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Holds confidence, the probability of the predicted class, and accuracy in B bins of equal width.

    Attributes:
        edges: ``float64[B + 1]``, edges of the bins; a bin includes its upper edge, not its lower one.
        count: ``int[B]``, number of examples.
        confidence: ``float64[B]``, mean confidence; NaN in an empty bin.
        accuracy: ``float64[B]``, fraction of correct predictions; NaN in an empty bin.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @classmethod
    def compute(cls, probabilities: np.ndarray, label: np.ndarray, num_bins: int = 15) -> Calibration:
        """Bins examples by confidence.

        Args:
            probabilities: ``float[N, K]``.
            label: ``int[N]``, true classes.
            num_bins: B.

        Example:
            >>> calibration = Calibration.compute(np.array([[0.6, 0.4], [0.3, 0.7]]), np.array([0, 0]), num_bins=2)
            >>> calibration.count.tolist(), round(calibration.expected_error, 3)
            ([0, 2], 0.15)
        """
        probabilities = np.asarray(probabilities, np.float64)
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == label
        edges = np.linspace(0, 1, num_bins + 1)
        index = np.clip(np.searchsorted(edges, confidence) - 1, 0, num_bins - 1)
        count = np.bincount(index, minlength=num_bins)
        with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
            return cls(
                edges,
                count,
                np.bincount(index, confidence, num_bins) / count,
                np.bincount(index, right, num_bins) / count,
            )

    @property
    def expected_error(self) -> float:
        """Expected calibration error (ECE): mean of |accuracy - confidence|, weighted by count, in [0, 1]."""
        gap = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gap * self.count) / self.count.sum())
