"""Finds examples whose label is probably wrong: models that were trained without an example predict it.

errors = find_label_errors(split="train")
errors.ranking()[:100]           # indices, the most suspicious first
errors.probabilities             # float32[N, K], as cleanlab takes them

The models are one population: each is trained on all folds of the training examples but one.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np

from mnist_jax.config import TrainConfig
from mnist_jax.core.evaluation import choose_batch_size, evaluate_arrays
from mnist_jax.core.population import ensemble_probabilities, pad_subsets
from mnist_jax.core.state import TrainState
from mnist_jax.data import Dataset, Split, load_dataset
from mnist_jax.errors import InputError
from mnist_jax.presets import CROSS_VALIDATION
from mnist_jax.training.population import train_population

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class LabelErrors:
    """Holds labels, and the probabilities of models that were not trained on these examples.

    Attributes:
        label: ``int32[N]``, the labels in question.
        probabilities: ``float32[N, K]``; each row sums to 1.

    Example:
        >>> errors = LabelErrors(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], np.float32))
        >>> errors.ranking().tolist(), errors.suggested.tolist(), errors.normalised_margin.round(2).tolist()
        ([2, 1, 0], [0, 1, 0], [0.8999999761581421, 0.800000011920929, 0.30000001192092896])
    """

    label: np.ndarray
    probabilities: np.ndarray

    @property
    def suggested(self) -> np.ndarray:
        """``int[N]``, the most probable class."""
        return self.probabilities.argmax(axis=1)

    @property
    def self_confidence(self) -> np.ndarray:
        """``float32[N]``, the probability of the label, in [0, 1]."""
        return np.take_along_axis(self.probabilities, self.label[:, None], axis=1)[:, 0]

    @property
    def normalised_margin(self) -> np.ndarray:
        """``float32[N]``, in [0, 1]: (1 + probability of the label - largest other probability) / 2.

        Reference: Northcutt et al., "Confident Learning", https://arxiv.org/abs/1911.00068.
        """
        others = self.probabilities.copy()
        np.put_along_axis(others, self.label[:, None], -np.inf, axis=1)
        return (1 + self.self_confidence - others.max(axis=1)) / 2

    def ranking(self, by: Literal["self_confidence", "normalised_margin"] = "self_confidence") -> np.ndarray:
        """Returns the indices of all examples, ``int[N]``, lowest score first."""
        scores: np.ndarray = getattr(self, by)
        return scores.argsort(kind="stable")


def find_label_errors(
    config: TrainConfig = CROSS_VALIDATION,
    *,
    split: str = "train",
    folds: int = 5,
    repeats: int = 1,
    dataset: Dataset | None = None,
) -> LabelErrors:
    """Predicts each example by models that were not trained on it, as one program of ``folds * repeats`` models.

    The training examples, those of the validation split included, are divided into folds with equal shares of each
    class, anew for each repeat. Each model is trained on all folds but one.

    Args:
        config: model and training; model i has the seed ``config.seed + i``.
        split: ``train`` predicts each training example by the ``repeats`` models without it; those of the validation
            split come last, which is the order of the original data. ``test`` predicts each test example by all models.
        folds: parts of the training examples.
        repeats: models that predict a training example.
        dataset: default the one that ``config`` names.

    Returns:
        Labels and mean probabilities of the examples.

    Raises:
        InputError: an argument is invalid, the device ran out of memory, or the training diverged.

    Example:
        >>> config = TrainConfig(data="digits", hidden_sizes=(32,), epochs=5)
        >>> errors = find_label_errors(config, folds=3, repeats=1)
        >>> errors.probabilities.shape, bool((errors.suggested == errors.label).mean() > 0.8)
        ((1500, 10), True)
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split}")
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    if config.stream:
        raise InputError("stream has no effect on label errors, whose data is in memory: leave it out")
    if config.keep_hardest is not None:
        raise InputError("keep_hardest has no effect on label errors, which are about all examples: leave it out")
    if dataset is None:
        dataset = load_dataset(config.data, data_dir=config.data_dir, num_validation=config.num_validation)
    train = join_training(dataset)
    if not 2 <= folds <= train.num_examples:
        raise InputError(f"folds must be between 2 and the {train.num_examples} training examples, got {folds}")
    rng = np.random.default_rng(config.seed)
    fold = np.stack([_assign_folds(train.label, folds, rng) for _ in range(repeats)])
    mask = (fold[:, None] != np.arange(folds)[:, None]).reshape(-1, train.num_examples)  # bool[M, N]
    seeds = [(config.seed + member) % 2**32 for member in range(len(mask))]
    population = train_population(config, seeds, dataset=dataclasses.replace(dataset, train=train), examples=mask)
    if not np.isfinite(population.validation_loss).all():
        raise InputError("the training of a model diverged: a lower learning_rate may help")

    if split == "test":
        logits = population.logits(dataset.test)
        return LabelErrors(np.asarray(dataset.test.label), np.asarray(ensemble_probabilities(logits)))
    index = pad_subsets(~mask)
    found = np.asarray(_predict(population.states, train, index, choose_batch_size(train)))
    total = np.zeros((train.num_examples, dataset.num_classes), np.float32)
    for probabilities, own in zip(found, index, strict=True):
        total[own[own >= 0]] += probabilities[own >= 0]
    return LabelErrors(train.label, total / np.float32(repeats))


def join_training(dataset: Dataset) -> Split:
    """Returns the training and the validation split as one, in the order of the original data."""
    pairs = zip(dataset.train, dataset.validation, strict=True)
    return Split(*(np.concatenate([np.asarray(part) for part in pair]) for pair in pairs))


def _assign_folds(label: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the fold of each example, ``int[N]``: random, with equal shares of each class."""
    fold = np.empty(len(label), int)
    fold[np.lexsort((rng.random(len(label)), label))] = np.arange(len(label)) % folds
    return fold


@functools.partial(jax.jit, static_argnames="batch_size")
def _predict(states: TrainState, split: Split, index: jax.Array, batch_size: int) -> jax.Array:
    """Returns the probabilities by each member for examples of its own, ``int[M, n]``: ``float32[M, n, K]``."""

    def predict(state: TrainState, index: jax.Array) -> Any:
        own = jax.tree.map(lambda leaf: leaf[index], split)
        return jax.nn.softmax(evaluate_arrays(state, own, batch_size)[1])

    return jax.vmap(predict)(states, index)
