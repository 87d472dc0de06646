"""Compares the confidence of a model with its accuracy, and calibrates it on validation data.

calibration = Calibration.compute(probabilities, label)
calibration.expected_error                # 0.004: they differ by 0.4 percentage points on average
confidence = Confidence.fit(logits, label)
confidence.probabilities(new_logits)      # calibrated
confidence.refuses(new_logits)            # True for images that are unlike those of training
"""

from __future__ import annotations

import dataclasses

import numpy as np

_TEMPERATURES = (0.05, 20.0)  # between which the best one is sought


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


@dataclasses.dataclass(frozen=True)
class Confidence:
    """Makes probabilities honest, and says which images are unlike those of training.

    Attributes:
        temperature: T > 0, which divides the logits.
        energy_threshold: an image with a larger energy, ``-log(sum(exp(logits)))``, is refused.

    Reference: temperature scaling, Guo et al., https://arxiv.org/abs/1706.04599; energy, Liu et al.,
    "Energy-based Out-of-distribution Detection", https://arxiv.org/abs/2010.03759.

    Example:
        >>> confidence = Confidence(temperature=2.0, energy_threshold=-1.0)
        >>> logits = np.array([[4.0, 0.0], [0.1, 0.0]])
        >>> confidence.probabilities(logits).round(2).tolist(), confidence.refuses(logits).tolist()
        ([[0.88, 0.12], [0.51, 0.49]], [False, True])
    """

    temperature: float = 1.0
    energy_threshold: float = np.inf

    @classmethod
    def fit(cls, logits: np.ndarray, label: np.ndarray, refused: float = 0.01) -> Confidence:
        """Fits the temperature to validation data by maximum likelihood, and the threshold to its energies.

        Args:
            logits: ``float[N, K]``.
            label: ``int[N]``, true classes.
            refused: fraction of the examples to refuse.
        """
        logits = np.asarray(logits, np.float64)
        correct = np.take_along_axis(logits, np.asarray(label, np.int64)[:, None], axis=1)[:, 0]
        low, high = np.log(_TEMPERATURES)
        for _ in range(40):  # bisection: the derivative of the loss with respect to 1 / T increases with 1 / T
            middle = (low + high) / 2
            expected = np.sum(_softmax(logits / np.exp(middle)) * logits, axis=1)
            low, high = (middle, high) if np.mean(expected - correct) > 0 else (low, middle)
        threshold = np.quantile(cls().energy(logits), 1 - refused, method="higher")
        return cls(float(np.exp((low + high) / 2)), float(threshold))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns calibrated probabilities ``float32[N, K]``."""
        return _softmax(np.asarray(logits, np.float64) / self.temperature).astype(np.float32)

    def energy(self, logits: np.ndarray) -> np.ndarray:
        """Returns ``float64[N]``; unusual images have a large energy. The temperature plays no part."""
        return -np.logaddexp.reduce(np.asarray(logits, np.float64), axis=1)

    def refuses(self, logits: np.ndarray) -> np.ndarray:
        """Returns ``bool[N]``: the energy is above the threshold."""
        return self.energy(logits) > self.energy_threshold


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)
