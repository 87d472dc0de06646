"""Gradient functions: how the gradient of a training loss is made from a batch.

    create_train_state(model, tx, key, gradient_fn=mean_gradient)                             # the default
    create_train_state(model, tx, key, gradient_fn=AccumulatedGradient(microbatch_size=32))

All have the one signature ``(loss_fn, state, batch, key) -> (grads, Metrics, model_state)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.core.metrics import Metrics

if TYPE_CHECKING:
    from mnist_jax.core.state import LossFn, PyTree, TrainState


def mean_gradient(
    loss_fn: LossFn, state: TrainState, batch: Mapping[str, Any], key: jax.Array
) -> tuple[PyTree, Metrics, PyTree]:
    """Computes the gradient of the loss of a whole batch.

    Args:
        loss_fn: ``(params, state, batch, key) -> (loss, (Metrics, model_state))``.
        state: supplies the parameters.
        batch: B examples.
        key: randomness of the step.

    Returns:
        The gradient by ``state.params``, the metrics and the new model state.

    Example:
        >>> import numpy as np, optax
        >>> from mnist_jax import MLP, create_train_state, loss_fn
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0))
        >>> batch = {"image": np.zeros((4, 28, 28, 1), np.uint8), "label": np.arange(4)}
        >>> grads, metrics, _ = mean_gradient(loss_fn, state, batch, jax.random.key(1))
        >>> grads["Dense_0"]["bias"].shape, int(metrics.count)
        ((8,), 4)
    """
    grads, (metrics, model_state) = jax.grad(loss_fn, has_aux=True)(state.params, state, batch, key)
    return grads, metrics, model_state


@dataclasses.dataclass(frozen=True)
class AccumulatedGradient:
    """The same gradient from less memory: of a few examples at a time, added up.

    Batch statistics are those of the parts ("ghost batch normalisation"), and dropout draws for each.

    Attributes:
        microbatch_size: examples at a time, at least 1.

    Raises:
        ValueError: ``microbatch_size`` is below 1.

    Example:
        >>> AccumulatedGradient(microbatch_size=0)
        Traceback (most recent call last):
        ValueError: microbatch_size must be at least 1, got 0
    """

    microbatch_size: int

    def __post_init__(self) -> None:
        if self.microbatch_size < 1:
            raise ValueError(f"microbatch_size must be at least 1, got {self.microbatch_size}")

    def __call__(
        self, loss_fn: LossFn, state: TrainState, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[PyTree, Metrics, PyTree]:
        """Computes the gradient: see :func:`mean_gradient`."""
        batch_size = batch["image"].shape[0]
        num_parts = -(-batch_size // self.microbatch_size)
        if num_parts <= 1:
            return mean_gradient(loss_fn, state, batch, key)

        def split(x: jax.Array, **filling: Any) -> jax.Array:
            """Splits into equal parts, strided, so that a batch-sharded array stays sharded."""
            x = jnp.pad(x, [(0, -batch_size % num_parts)] + [(0, 0)] * (x.ndim - 1), **filling)
            return x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1)

        def weighted_loss(params: PyTree, state: TrainState, part: Any, key: jax.Array) -> Any:
            loss, (metrics, model_state) = loss_fn(params, state, part, key)
            return loss * metrics.count.astype(loss.dtype), (metrics, model_state)

        def body(total: Any, part_and_key: Any) -> tuple[Any, PyTree]:
            part, key = part_and_key
            part = {**whole, **part}
            grads, (metrics, model_state) = jax.grad(weighted_loss, has_aux=True)(state.params, state, part, key)
            return jax.tree.map(jnp.add, total, (grads, metrics)), model_state

        arrays = {name: jnp.asarray(x) for name, x in batch.items() if name != "mask"}
        per_example = {name for name, x in arrays.items() if x.ndim and x.shape[0] == batch_size}
        whole = {name: x for name, x in arrays.items() if name not in per_example}
        parts = {name: split(arrays[name], mode="wrap") for name in per_example}  # filled up with real examples
        parts["mask"] = split(jnp.asarray(batch.get("mask", jnp.ones(batch_size, bool))))  # that do not count
        total = jax.tree.map(jnp.zeros_like, state.params), Metrics.zeros()
        (grads, metrics), model_states = lax.scan(body, total, (parts, jax.random.split(key, num_parts)))
        count = jnp.maximum(metrics.count, 1)
        grads = jax.tree.map(lambda grad: grad / count.astype(grad.dtype), grads)
        # All parts begin with the same model state; running statistics move on once a step, by the mean of the parts.
        model_state = jax.tree.map(
            lambda leaf: leaf.mean(axis=0) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf[-1], model_states
        )
        return grads, metrics, model_state
