"""Metrics are sums and counts over examples, merged by addition and divided once.

metrics = compute_metrics(logits, label, losses, mask)
total = total + metrics
total.loss, total.accuracy
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp

from mnist_jax.core.checks import check_label


class Metrics(flax.struct.PyTreeNode):
    """Holds sums and counts over examples; ``+`` merges them.

    Attributes:
        loss_sum: ``float32``, sum of the losses.
        correct: ``int32``, number of correct predictions.
        count: ``int32``, number of examples.

    Example:
        >>> one = Metrics(jnp.float32(3.0), jnp.int32(1), jnp.int32(2))
        >>> (one + Metrics.zeros()).loss.item()
        1.5
    """

    loss_sum: jax.Array
    correct: jax.Array
    count: jax.Array

    @classmethod
    def zeros(cls) -> Metrics:
        """Returns the metrics of no examples."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def __add__(self, other: Metrics) -> Metrics:
        return jax.tree.map(jnp.add, self, other)

    @property
    def loss(self) -> jax.Array:
        """Mean loss; NaN for no examples."""
        return self.loss_sum / self.count.astype(self.loss_sum.dtype)

    @property
    def accuracy(self) -> jax.Array:
        """Fraction of correct predictions, in [0, 1]; NaN for no examples."""
        dtype = self.loss_sum.dtype
        return self.correct.astype(dtype) / self.count.astype(dtype)


def compute_metrics(logits: jax.Array, label: jax.Array, losses: jax.Array, mask: jax.Array | None = None) -> Metrics:
    """Computes the metrics of a batch.

    Args:
        logits: ``float32[B, K]``.
        label: ``int[B]``, or class probabilities ``float[B, K]``, whose argmax is the class.
        losses: ``float32[B]``.
        mask: ``bool[B]``, True for examples that count; None counts all.

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
    if mask is None:
        return Metrics(jnp.sum(losses), jnp.sum(correct, dtype=jnp.int32), jnp.int32(label.shape[0]))
    return Metrics(
        jnp.sum(losses, where=mask), jnp.sum(correct & mask, dtype=jnp.int32), jnp.sum(mask, dtype=jnp.int32)
    )
