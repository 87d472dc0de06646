"""Metrics are sums and counts over examples, merged by addition and divided once.

metrics = compute_metrics(logits, label, losses, mask)
total = total + metrics
total.loss, total.accuracy

``ExampleMetrics`` are the values of single examples, for a step or an epoch that records them.
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp

from mnist_jax.core.checks import check_label


class ExampleMetrics(flax.struct.PyTreeNode):
    """Holds values of each example, in training mode and under the parameters of the step that it was part of.

    Attributes:
        loss: ``float32[N]``, the ``example_loss``; NaN if the example was in no step.
        correct: ``bool[N]``, whether the prediction was correct.
        margin: ``float32[N]``, the logit of the true class minus the largest other logit; or NaN.
        confidence: ``float32[N]``, the softmax probability of the true class; or NaN.

    Example:
        >>> ExampleMetrics.empty(3).correct.tolist()
        [False, False, False]
    """

    loss: jax.Array
    correct: jax.Array
    margin: jax.Array
    confidence: jax.Array

    @classmethod
    def empty(cls, num_examples: int) -> ExampleMetrics:
        """Returns the values of N examples that were in no step yet."""
        missing = jnp.full(num_examples, jnp.nan, jnp.float32)
        return cls(missing, jnp.zeros(num_examples, bool), missing, missing)

    def set(self, index: jax.Array, values: ExampleMetrics) -> ExampleMetrics:
        """Replaces the values of the examples ``index``, ``int32[B]``; an index of N or above is skipped."""
        return jax.tree.map(lambda old, new: old.at[index].set(new.astype(old.dtype), mode="drop"), self, values)


class Metrics(flax.struct.PyTreeNode):
    """Holds sums and counts over examples; ``+`` merges them.

    Attributes:
        loss_sum: ``float32``, sum of the losses.
        correct: ``int32``, number of correct predictions.
        count: ``int32``, number of examples.
        examples: the values of each example, if ``recipe.record`` or ``train_epoch(record=True)`` asks for them; else
            None. They are not merged: the result of ``+`` has none.

    Example:
        >>> one = Metrics(jnp.float32(3.0), jnp.int32(1), jnp.int32(2))
        >>> (one + Metrics.zeros()).loss.item()
        1.5
    """

    loss_sum: jax.Array
    correct: jax.Array
    count: jax.Array
    examples: ExampleMetrics | None = None

    @classmethod
    def zeros(cls) -> Metrics:
        """Returns the metrics of no examples."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def __add__(self, other: Metrics) -> Metrics:
        return jax.tree.map(jnp.add, self.replace(examples=None), other.replace(examples=None))

    @property
    def loss(self) -> jax.Array:
        """Mean loss; NaN for no examples."""
        return self.loss_sum / self.count.astype(self.loss_sum.dtype)

    @property
    def accuracy(self) -> jax.Array:
        """Fraction of correct predictions, in [0, 1]; NaN for no examples."""
        dtype = self.loss_sum.dtype
        return self.correct.astype(dtype) / self.count.astype(dtype)


def compute_metrics(
    logits: jax.Array, label: jax.Array, losses: jax.Array, mask: jax.Array | None = None, record: bool = False
) -> Metrics:
    """Computes the metrics of a batch.

    Args:
        logits: ``float32[B, K]``.
        label: ``int[B]``, or class probabilities ``float[B, K]``, whose argmax is the class.
        losses: ``float32[B]``.
        mask: ``bool[B]``, True for examples that count; None counts all.
        record: whether the result has the values of each example, masked ones included.

    Raises:
        ValueError: the label has the wrong shape or dtype, or the losses have the wrong shape.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
        >>> metrics = compute_metrics(logits, jnp.array([0, 0]), jnp.array([0.1, 1.3]))
        >>> int(metrics.correct), int(metrics.count)
        (1, 2)
    """
    label = jnp.asarray(label)
    check_label(logits, label)
    if losses.shape != logits.shape[:1]:
        raise ValueError(f"losses must be float[{logits.shape[0]}], one per example, got shape {list(losses.shape)}")
    if label.ndim == 2:
        label = jnp.argmax(label, axis=-1)
    correct = jnp.argmax(logits, axis=-1).astype(label.dtype) == label
    examples = _example_metrics(logits, label, losses, correct) if record else None
    if mask is None:
        return Metrics(jnp.sum(losses), jnp.sum(correct, dtype=jnp.int32), jnp.int32(label.shape[0]), examples)
    return Metrics(
        jnp.sum(losses, where=mask), jnp.sum(correct & mask, dtype=jnp.int32), jnp.sum(mask, dtype=jnp.int32), examples
    )


def _example_metrics(logits: jax.Array, label: jax.Array, losses: jax.Array, correct: jax.Array) -> ExampleMetrics:
    confidence = jnp.exp(_true_logits(logits, label) - jax.nn.logsumexp(logits, axis=-1))
    return jax.lax.stop_gradient(ExampleMetrics(losses, correct, compute_margins(logits, label), confidence))


def compute_margins(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Computes the margin of each example: the logit of the true class minus the largest other logit.

    Args:
        logits: ``float[B, K]``.
        label: ``int[B]``, in [0, K).

    Example:
        >>> compute_margins(jnp.array([[2.0, 0.5], [0.0, 1.0]]), jnp.array([0, 0])).tolist()
        [1.5, -1.0]
    """
    is_true = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    return _true_logits(logits, label) - jnp.where(is_true, -jnp.inf, logits).max(axis=-1)


def _true_logits(logits: jax.Array, label: jax.Array) -> jax.Array:
    is_true = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    return jnp.where(is_true, logits, 0).sum(axis=-1)
