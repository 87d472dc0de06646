"""Finds the training examples of a run that a prediction rests on.

    explainer = load_explainer("runs/mine")
    explanation = explainer(image, label=9)      # why uint8[28, 28, 1] was read as a 9
    explanation.helpful[0].index                 # the training example that speaks most for it

The scores are dot products of :func:`mnist_jax.influence_features` at the newest checkpoint, those of the training
examples preconditioned, and relative. The latter are computed once and cached in ``$XDG_CACHE_HOME/mnist_jax`` (default
``~/.cache/mnist_jax``), under a hash of the parameters and the data; the run itself is only read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnist_jax.atomic import atomic_write, clear_parts
from mnist_jax.data.dataset import Dataset, Split, StreamedSplit
from mnist_jax.errors import InputError
from mnist_jax.home import find_directory
from mnist_jax.training.directory import read_data
from mnist_jax.training.loading import load_run, load_run_dataset

if TYPE_CHECKING:
    from mnist_jax.core.state import TrainState

_VERSION = 3  # increase when the features change
_SIZE = 512  # numbers for each training example: 2 kB
_SEED = 0  # of the projection
_log = logging.getLogger("mnist_jax")


@dataclasses.dataclass(frozen=True)
class Influence:
    """Holds the influence of a training example.

    Attributes:
        index: index in the training split.
        label: its label.
        score: estimated rise of the loss of the explained class if it were left out of training, relative to what that
            would change in the whole model.
    """

    index: int
    label: int
    score: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Holds the training examples that a prediction rests on.

    Attributes:
        label: the explained class.
        helpful: training examples that speak for this class, strongest first.
        opposing: training examples that speak against it, strongest first.

    Example:
        >>> Explanation(9, [Influence(17, 9, 0.5)], [Influence(3, 4, -0.25)]).helpful[0].index
        17
    """

    label: int
    helpful: list[Influence]
    opposing: list[Influence]


class Explainer:
    """Explains predictions by training examples; :func:`load_explainer` creates that of a run.

    Args:
        state: the trained state.
        split: the N training examples.
        features: ``float32[N, k]``, from :func:`explainer_features`.

    Example:
        >>> from mnist_jax import TrainConfig, build_state, load_dataset
        >>> split, state = load_dataset("digits").train, build_state(TrainConfig(hidden_sizes=(8,)))
        >>> explainer = Explainer(state, split, explainer_features(state, split))
        >>> len(explainer(split.image[0], label=0, num_examples=3).opposing)
        3
    """

    def __init__(self, state: TrainState, split: Split, features: np.ndarray) -> None:
        self._state, self._features, self.split = state, features, split

    def __call__(self, image: np.ndarray, label: int, num_examples: int = 6) -> Explanation:
        """Finds the training examples that speak most for and against a class for an image.

        Args:
            image: ``uint8[28, 28, 1]``, as the network sees it.
            label: the class to explain, in [0, K): the predicted one, or another.
            num_examples: number of examples on each side, at most.
        """
        query = Split(image[None], np.array([label], np.int32))
        scores = self._features @ _features(self._state, query)[0]
        order = np.argsort(-scores, kind="stable")
        helpful, opposing = (
            [Influence(int(row), int(self.split.label[row]), float(scores[row])) for row in rows]
            for rows in (order[:num_examples], order[: -num_examples - 1 : -1])
        )
        return Explanation(
            label, [each for each in helpful if each.score > 0], [each for each in opposing if each.score < 0]
        )


def explainer_features(state: TrainState, split: Split) -> np.ndarray:
    """Computes the features of training examples for an :class:`Explainer`, ``float32[N, 512]``.

    Example:
        >>> from mnist_jax import TrainConfig, build_state, load_dataset
        >>> explainer_features(build_state(TrainConfig(hidden_sizes=(8,))), load_dataset("digits").test).shape
        (297, 512)
    """
    from mnist_jax.core.influence import precondition_features

    return np.asarray(precondition_features(_features(state, split), relative=True))


def _features(state: TrainState, split: Split) -> np.ndarray:
    import jax

    from mnist_jax.core.influence import influence_features

    return np.asarray(influence_features([state], [1.0], split, jax.random.key(_SEED), _SIZE))


def load_explainer(run: str | os.PathLike[str]) -> Explainer:
    """Loads the newest state and the training examples of a run, and the features of the examples.

    The first call for a state computes the features, which takes about as long as an epoch, and logs a notice; later
    ones read them from the cache.

    Raises:
        InputError: the directory holds no run, or its training data is streamed, has changed or cannot be found.

    Example:
        >>> import tempfile
        >>> from mnist_jax import TrainConfig, fit
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
        ...     explainer = load_explainer(run.workdir)
        >>> explainer(explainer.split.image[0], label=0).label
        0
    """
    _, state = load_run(run)
    trained_on = read_data(Path(run)) or {}
    dataset = load_run_dataset(run)
    if isinstance(dataset.train, StreamedSplit):
        raise InputError(f"{run}: expected a run whose training data fits in memory, got streamed data")
    if not dataset.identity().items() <= trained_on.items():
        raise InputError(
            f"{run}: its training data, {trained_on.get('name')}, was not found as it was when the run was trained"
        )
    return Explainer(state, dataset.train, _load_features(state, dataset))


def _load_features(state: TrainState, dataset: Dataset) -> np.ndarray:
    """Reads the features from the cache, or computes and caches them; a damaged file is replaced."""
    import jax

    digest = hashlib.sha256(repr((_VERSION, _SIZE, _SEED, sorted(dataset.identity().items()))).encode())
    for leaf in jax.tree.leaves((state.eval_params, state.eval_model_state)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    name = f"features-{digest.hexdigest()[:32]}.npy"
    path = find_directory("XDG_CACHE_HOME", ".cache") / "mnist_jax" / name
    num_examples = dataset.train.num_examples
    with contextlib.suppress(OSError, ValueError, EOFError):
        found = np.load(path, allow_pickle=False)
        if (found.shape, found.dtype) == ((num_examples, _SIZE), np.float32):
            return found
    _log.warning("computing the gradients of %s training examples, once for this run", f"{num_examples:,}")
    features = explainer_features(state, dataset.train)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(path.parent)
        with atomic_write(path, mode=0o600, durable=False) as file:
            np.save(file, features, allow_pickle=False)
    return features
