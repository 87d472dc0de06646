"""Compares the confidence of a model with its accuracy, and calibrates it on validation data.

calibration = Calibration.compute(probabilities, label)
calibration.expected_error                # 0.004: they differ by 0.4 percentage points on average
temperature = fit_temperature(logits, label)
confidence = Confidence.fit(logits, image, label)
confidence.probabilities(new_logits)      # calibrated
confidence.refuses(new_logits, new_image) # True for images that are unlike those of training
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

_TEMPERATURES = (0.05, 20.0)  # between which the best one is sought
_MAX_CLASSES = 20  # with Gaussians of their own
_NUM_FOLDS = 5  # the threshold is chosen on distances from Gaussians of other examples
_PRIOR_COUNT = 25  # weight in examples of the shared covariance in that of each class


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Holds confidence, the probability of the predicted class, and accuracy in B bins of equal width.

    Attributes:
        edges: ``float64[B + 1]``, edges of the bins; a bin includes its upper edge, not its lower one.
        count: ``int[B]``, number of examples.
        confidence: ``float64[B]``, mean confidence; NaN in an empty bin.
        accuracy: ``float64[B]``, fraction of correct predictions; NaN in an empty bin.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.

    Example:
        >>> calibration = Calibration.compute(np.array([[0.6, 0.4], [0.3, 0.7]]), np.array([0, 0]), num_bins=2)
        >>> calibration.count.tolist(), round(calibration.expected_error, 3)
        ([0, 2], 0.15)
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


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float:
    """Fits the temperature T by maximum likelihood; ``softmax(logits / T)`` are calibrated probabilities.

    Args:
        logits: ``float[N, K]`` of validation examples.
        label: ``int[N]``, true classes.

    Returns:
        T, in [0.05, 20]: above 1 if the model was too confident.

    Reference: Guo et al., https://arxiv.org/abs/1706.04599.

    Example:
        >>> logits = np.array([[4.0, 0.0]] * 10)  # 98 % sure, but right in 9 of 10 cases
        >>> round(fit_temperature(logits, np.array([0] * 9 + [1])), 2)
        1.82
    """
    logits, label = np.asarray(logits, np.float64), np.asarray(label, np.int64)
    correct = np.take_along_axis(logits, label[:, None], axis=1)[:, 0]
    low, high = np.log(_TEMPERATURES)
    for _ in range(40):  # bisection: the derivative of the loss with respect to 1 / T increases with 1 / T
        middle = (low + high) / 2
        expected = np.sum(_softmax(logits / np.exp(middle)) * logits, axis=1)
        low, high = (middle, high) if np.mean(expected - correct) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


@dataclasses.dataclass(frozen=True, eq=False)
class Confidence:
    """Makes probabilities honest, and says which images are unlike those of training.

    An image is refused if its features are unlike those of every class: their distance is minus twice the largest of
    the log densities of K Gaussians, one for each class, up to a constant. The F = K + 3 features are the logits, the
    sum of the pixels, and the sums of the absolute differences of neighbours along columns and rows. The logits tell
    other shapes from those of the classes, the sums tell longer or shorter strokes, such as a spiral from a 0.

    Attributes:
        temperature: T > 0, which divides the logits.
        threshold: an image at a larger distance is refused.
        mean: ``float64[K, F]``, the mean features of each class; None if nothing is refused.
        precision: ``float64[K, F, F]``, the inverse covariance of the features of each class.
        log_determinant: ``float64[K]``, of the covariances.

    Reference: temperature scaling, Guo et al., https://arxiv.org/abs/1706.04599; Gaussians for each class, Lee et al.,
    "A Simple Unified Framework for Detecting Out-of-Distribution Samples", https://arxiv.org/abs/1807.03888.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> label, image = np.arange(200) % 2, rng.integers(0, 256, (200, 28, 28, 1), dtype=np.uint8)
        >>> logits = 4 * np.eye(2)[label] + rng.normal(size=(200, 2))
        >>> confidence = Confidence.fit(logits, image, label)
        >>> confidence.refuses(np.array([[4.0, 0.0], [20.0, 20.0]]), image[:2]).tolist()
        [False, True]
    """

    temperature: float = 1.0
    threshold: float = np.inf
    mean: np.ndarray | None = None
    precision: np.ndarray | None = None
    log_determinant: np.ndarray | None = None

    @classmethod
    def fit(cls, logits: np.ndarray, image: np.ndarray, label: np.ndarray, refused: float = 0.01) -> Confidence:
        """Fits the temperature by maximum likelihood and the Gaussians to validation data.

        Args:
            logits: ``float[N, K]``.
            image: ``uint8[N, 28, 28, 1]``, the images that they are for.
            label: ``int[N]``, true classes.
            refused: fraction of such examples to refuse. Nothing is refused with more than 20 classes.
        """
        logits, label = np.asarray(logits, np.float64), np.asarray(label, np.int64)
        temperature, num_classes = fit_temperature(logits, label), logits.shape[1]
        if num_classes > _MAX_CLASSES:
            return cls(temperature)
        feature = _features(logits, image)
        fold = np.arange(len(label)) % min(_NUM_FOLDS, len(label))  # else few examples would seem close
        distance = np.empty(len(label))
        for each in range(fold.max() + 1):
            others = _fit_gaussians(feature[fold != each], label[fold != each], num_classes)
            distance[fold == each] = _distance(feature[fold == each], *others)
        threshold = float(np.quantile(distance, 1 - refused, method="lower"))
        return cls(temperature, threshold, *_fit_gaussians(feature, label, num_classes))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns calibrated probabilities ``float32[N, K]``."""
        return _softmax(np.asarray(logits, np.float64) / self.temperature).astype(np.float32)

    def distance(self, logits: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Returns ``float64[N]`` for ``float[N, K]`` and ``uint8[N, 28, 28, 1]``; the temperature plays no part."""
        if self.mean is None or self.precision is None or self.log_determinant is None:
            return np.full(len(logits), -np.inf)
        return _distance(_features(logits, image), self.mean, self.precision, self.log_determinant)

    def refuses(self, logits: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Returns ``bool[N]``: the distance is above the threshold."""
        return self.distance(logits, image) > self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Returns numbers and lists, for JSON."""
        names = ["temperature"] if self.mean is None else [field.name for field in dataclasses.fields(self)]
        return {name: np.asarray(getattr(self, name)).tolist() for name in names}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Confidence:
        """Creates what :meth:`to_dict` describes.

        Raises:
            ValueError: it is incomplete, or a number is not finite.

        Example:
            >>> Confidence.from_dict({"temperature": 2.0}).temperature
            2.0
        """
        arrays = {name: np.asarray(value, np.float64) for name, value in content.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()) or not arrays["temperature"] > 0:
            raise ValueError("expected finite numbers, and a temperature above 0")
        if arrays.keys() == {"temperature"}:
            return cls(float(arrays["temperature"]))
        size = len(arrays["mean"])
        shapes = {"temperature": (), "threshold": (), "mean": (size, size + 3), "log_determinant": (size,)}
        shapes |= {"precision": (size, size + 3, size + 3)}
        if {name: array.shape for name, array in arrays.items()} != shapes:
            raise ValueError("expected a temperature, or a temperature, a threshold and Gaussians")
        fields: dict[str, Any] = {name: array if array.ndim else float(array) for name, array in arrays.items()}
        return cls(**fields)


def _features(logits: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Returns ``float64[N, K + 3]``: logits, sum of the pixels, and their variation along columns and rows."""
    image = np.asarray(image)
    pixels = (np.rint(255 * image) if np.issubdtype(image.dtype, np.floating) else image).astype(np.int16)
    sums = (pixels, *(np.abs(np.diff(pixels, axis=axis)) for axis in (1, 2)))
    totals = np.stack([each.reshape(len(pixels), -1).sum(axis=1) for each in sums], axis=1)
    return np.concatenate([np.asarray(logits, np.float64), totals / 255], axis=1)


def _fit_gaussians(
    feature: np.ndarray, label: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean, precision and log determinant of each class; its covariance is mixed with the shared one."""
    indicator = np.eye(num_classes)[label]
    count = indicator.sum(axis=0)
    mean = indicator.T @ feature / np.maximum(count, 1)[:, None]
    residual = feature - mean[label]
    product = np.einsum("nk,ni,nj->kij", indicator, residual, residual, optimize=True)
    shared = product.sum(axis=0) / max(len(label), 1)
    shared += (1e-6 * np.trace(shared) / len(shared) + 1e-12) * np.eye(len(shared))
    covariance = (product + _PRIOR_COUNT * shared) / (count + _PRIOR_COUNT)[:, None, None]
    return mean, np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1]


def _distance(feature: np.ndarray, mean: np.ndarray, precision: np.ndarray, log_determinant: np.ndarray) -> np.ndarray:
    residual = feature[:, None] - mean
    squares = np.einsum("nki,kij,nkj->nk", residual, precision, residual, optimize=True)
    found: np.ndarray = np.min(squares + log_determinant, axis=1)
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)
