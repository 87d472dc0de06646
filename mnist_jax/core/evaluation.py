"""Evaluates a state on a split: every example counts exactly once.

evaluation = evaluate_dataset(state, dataset.test)
evaluation.accuracy, evaluation.loss, evaluation.predictions
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_jax.core.apply import apply_model, scale_image
from mnist_jax.core.checks import check_split
from mnist_jax.core.metrics import Metrics, compute_metrics
from mnist_jax.core.sharding import on_any_mesh, replicate, shard
from mnist_jax.core.state import Augment, TrainState
from mnist_jax.data.dataset import Split


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Holds the logits of a state on a split, with their loss and accuracy.

    Attributes:
        loss: mean ``example_loss`` of the recipe, by default cross-entropy in nats.
        accuracy: fraction of correct predictions, in [0, 1].
        num_examples: N.
        logits: ``float32[N, K]``.
        label: ``int[N]``, true classes.

    Example:
        >>> logits = np.array([[0.0, 2.0], [1.0, 0.0]], np.float32)
        >>> Evaluation(loss=0.22, accuracy=1.0, num_examples=2, logits=logits, label=np.array([1, 0])).predictions
        array([1, 0])
    """

    loss: float
    accuracy: float
    num_examples: int
    logits: np.ndarray
    label: np.ndarray

    @classmethod
    def from_metrics(cls, metrics: Metrics, logits: jax.typing.ArrayLike, label: jax.typing.ArrayLike) -> Evaluation:
        """Creates an evaluation from the labels and the result of :func:`evaluate_arrays`, which it fetches.

        Example:
            >>> metrics = Metrics(jnp.float32(0.44), jnp.int32(1), jnp.int32(2))
            >>> Evaluation.from_metrics(metrics, jnp.zeros((2, 10)), np.array([0, 1])).accuracy
            0.5
        """
        metrics = jax.device_get(metrics)
        return cls(
            loss=float(metrics.loss_sum) / int(metrics.count),
            accuracy=int(metrics.correct) / int(metrics.count),
            num_examples=int(metrics.count),
            logits=np.asarray(logits),
            label=np.asarray(label),
        )

    @classmethod
    def from_probabilities(cls, probabilities: np.ndarray, label: np.ndarray) -> Evaluation:
        """Evaluates probabilities ``float[N, K]``, for example of an ensemble; ``logits`` are their logarithms.

        Example:
            >>> evaluation = Evaluation.from_probabilities(np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([0, 1]))
            >>> round(evaluation.loss, 3), evaluation.accuracy
            (1.498, 0.5)
        """
        logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float32)
        label = np.asarray(label)
        losses = -np.take_along_axis(logits, label[:, None], axis=1)
        accuracy = (logits.argmax(axis=1) == label).mean()
        return cls(float(losses.mean()), float(accuracy), len(label), logits, label)

    @property
    def predictions(self) -> np.ndarray:
        """``int[N]``, the class with the largest logit."""
        return self.logits.argmax(axis=-1)

    @property
    def probabilities(self) -> np.ndarray:
        """``float32[N, K]``, the softmax of the logits."""
        return np.exp(_log_softmax(self.logits))

    @property
    def losses(self) -> np.ndarray:
        """``float32[N]``, the cross-entropy of each example in nats, whatever the ``example_loss`` of the recipe."""
        return -self._at_label(_log_softmax(self.logits))

    @property
    def margins(self) -> np.ndarray:
        """``float32[N]``, the logit of the true class minus the largest other logit; see ``per_example_margins``."""
        others = self.logits.copy()
        np.put_along_axis(others, self.label[:, None], -np.inf, axis=-1)
        return self._at_label(self.logits) - others.max(axis=-1)

    def _at_label(self, values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, self.label[:, None], axis=-1)[:, 0]


def evaluate_dataset(
    state: TrainState,
    split: Split,
    batch_size: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Evaluation:
    """Evaluates a state on a split, without dropout and with the EMA of the parameters if there is one.

    Args:
        state: the state to evaluate.
        split: N examples, on the host or the device.
        batch_size: examples at a time; the last batch is padded and masked. Default 1000 for each device, or 100 on
            CPU, where the activations then stay in the cache.
        sharding: sharding of the batch axis on a mesh, which the state is on; see :mod:`mnist_jax.core.sharding`.

    Raises:
        ValueError: the split is empty, or ``batch_size`` is below 1.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> evaluate_dataset(state, load_dataset("digits").test).num_examples
        297
    """
    check_split(state.recipe, split)
    metrics, logits = evaluate_arrays(state, split, choose_batch_size(split, batch_size, sharding), sharding)
    return Evaluation.from_metrics(metrics, logits, split.label)


def evaluate_views(
    state: TrainState, split: Split, num_views: int, key: jax.Array, augment: Augment | None = None
) -> Evaluation:
    """Evaluates with test-time augmentation: averages probabilities over each image and its distorted copies.

    Args:
        state: the state to evaluate.
        split: N examples.
        num_views: distorted copies of each image, besides the image itself.
        key: PRNG key of the distortions.
        augment: distorts the copies; default ``state.recipe.augment``.

    Raises:
        ValueError: the state has no augmentation and none is given.

    Example:
        >>> from mnist_jax import TrainConfig, build_state, load_dataset
        >>> state = build_state(TrainConfig(hidden_sizes=(8,), augment_shift=1))
        >>> evaluate_views(state, load_dataset("digits").test, 4, jax.random.key(0)).num_examples
        297
    """
    augment = augment or state.recipe.augment
    if augment is None:
        raise ValueError("augment must be given for a state that was trained without augmentation")
    distort = jax.jit(lambda image, key: augment(scale_image(image), key))
    total = jax.nn.softmax(evaluate_dataset(state, split).logits)
    for view in range(num_views):
        image = distort(split.image, jax.random.fold_in(key, view))
        total += jax.nn.softmax(evaluate_dataset(state, Split(image, split.label)).logits)
    return Evaluation.from_probabilities(np.asarray(total) / (1 + num_views), split.label)


def choose_batch_size(
    split: Split, batch_size: int | None = None, sharding: jax.sharding.Sharding | None = None
) -> int:
    """Returns how many examples to evaluate at a time; see :func:`evaluate_dataset`."""
    if not split.num_examples:
        raise ValueError("the split to evaluate must have at least one example, got none")
    if batch_size is None:
        batch_size = 100 if jax.default_backend() == "cpu" else 1000
        batch_size *= 1 if sharding is None else sharding.num_devices
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return min(batch_size, split.num_examples)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@functools.partial(jax.jit, static_argnames=("batch_size", "sharding"))
@on_any_mesh
def evaluate_arrays(
    state: TrainState, split: Split, batch_size: int, sharding: jax.sharding.Sharding | None = None
) -> tuple[Metrics, jax.Array]:
    """Evaluates on the device as :func:`evaluate_dataset` does: returns metrics, and logits ``float32[N, K]``."""
    num_examples = split.num_examples
    num_batches = -(-num_examples // batch_size)
    padding = num_batches * batch_size - num_examples

    def batched(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(num_batches, batch_size, *x.shape[1:])

    def body(total: Metrics, batch: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Metrics, jax.Array]:
        image, label, mask = shard(batch, sharding)
        logits, _ = apply_model(state, state.eval_params, image)
        losses = state.recipe.example_loss(logits, label)
        return total + compute_metrics(logits, label, losses, mask), logits

    batches = (
        batched(jnp.asarray(split.image)),
        batched(jnp.asarray(split.label)),
        batched(jnp.ones(num_examples, bool)),
    )
    metrics, logits = replicate(lax.scan(body, Metrics.zeros(), batches), sharding)
    return metrics, logits.reshape(-1, logits.shape[-1])[:num_examples]
