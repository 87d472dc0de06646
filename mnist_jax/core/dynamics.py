"""``Dynamics`` holds what training did with each example, epoch by epoch, and scores the examples by it.

    state, metrics = train_epoch(state, split, 128, record=True)   # metrics.examples: one epoch
    dynamics = Dynamics.stack([...])                               # of each epoch
    dynamics.forgetting_events(), dynamics.area_under_margin(), dynamics.data_map()

The values are those of training itself, with dropout and augmentation, so they cost no extra pass. Shape letters:
E epochs, N examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mnist_jax.core.metrics import ExampleMetrics


class DataMap(NamedTuple):
    """Holds the coordinates of each example in a data map.

    Attributes:
        confidence: ``float32[N]``, mean over the epochs of the probability of the true class.
        variability: ``float32[N]``, its standard deviation.
        correctness: ``float32[N]``, share of the epochs with a correct prediction.

    Example:
        See :class:`Dynamics`.
    """

    confidence: np.ndarray
    variability: np.ndarray
    correctness: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dynamics:
    """Holds the values of each example in each epoch, under the parameters of the step that it was part of.

    Attributes:
        loss: ``float32[E, N]``, see :class:`mnist_jax.ExampleMetrics`, also for the others.
        correct: ``bool[E, N]``.
        margin: ``float32[E, N]``.
        confidence: ``float32[E, N]``.

    Example:
        >>> correct = np.array([[True, False], [False, False], [True, False]])
        >>> values = np.where(correct, 0.9, 0.2)
        >>> dynamics = Dynamics(-np.log(values), correct, values - 0.5, values)
        >>> dynamics.forgetting_events()
        array([1, 3], dtype=int32)
        >>> dynamics.data_map().correctness.tolist()
        [0.6666666865348816, 0.0]
    """

    loss: np.ndarray
    correct: np.ndarray
    margin: np.ndarray
    confidence: np.ndarray

    @classmethod
    def stack(cls, epochs: Sequence[ExampleMetrics]) -> Dynamics:
        """Stacks the values of epochs in which every example was trained on.

        Raises:
            ValueError: there is no epoch, or an epoch has examples without values.
        """
        if not epochs:
            raise ValueError("epochs must have at least one epoch, got none")
        for number, epoch in enumerate(epochs, start=1):
            if missing := int(np.isnan(epoch.loss).sum()):
                raise ValueError(f"epochs must have a value for each example, got {missing} without in epoch {number}")
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.stack([np.asarray(getattr(epoch, name)) for epoch in epochs]) for name in names))

    def forgetting_events(self) -> np.ndarray:
        """Counts how often each example went from correct in one epoch to wrong in the next.

        Returns:
            ``int32[N]``; E, which is more than any count, for an example that was never correct.

        Reference: Toneva et al., "An Empirical Study of Example Forgetting", https://arxiv.org/abs/1812.05159.
        """
        events = np.sum(self.correct[:-1] & ~self.correct[1:], axis=0)
        return np.where(self.correct.any(axis=0), events, len(self.correct)).astype(np.int32)

    def area_under_margin(self) -> np.ndarray:
        """Returns the mean margin of each example, ``float32[N]``; it is low for wrong labels.

        Reference: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking",
        https://arxiv.org/abs/2001.10528.
        """
        return self.margin.mean(axis=0, dtype=np.float64).astype(np.float32)

    def data_map(self) -> DataMap:
        """Returns the coordinates of each example: easy, ambiguous and hard examples lie apart.

        Reference: Swayamdipta et al., "Dataset Cartography", https://arxiv.org/abs/2009.10795.
        """
        values = (self.confidence.mean(axis=0, dtype=np.float64), self.confidence.std(axis=0, dtype=np.float64))
        return DataMap(*(value.astype(np.float32) for value in (*values, self.correct.mean(axis=0))))

    def score(self) -> np.ndarray:
        """Returns the difficulty of each example, ``float32[N]`` in [0, 1]: the mean probability of a wrong class."""
        return 1 - self.data_map().confidence
