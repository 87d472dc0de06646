"""Gradient functions compute the gradient of the training loss on a batch.

    create_train_state(model, tx, key, gradient_fn=mean_gradient)                             # the default
    create_train_state(model, tx, key, gradient_fn=AccumulatedGradient(microbatch_size=32))

All have the signature ``(loss_fn, state, batch, key) -> (grads, Metrics, model_state)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
    """Computes the gradient of the loss on a whole batch at once.

    Args:
        loss_fn: ``(params, state, batch, key) -> (loss, (Metrics, model_state))``.
        state: supplies the parameters.
        batch: B examples.
        key: PRNG key of the step.

    Returns:
        The gradient with respect to ``state.params``, the metrics and the new model state.

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
    """Accumulates the gradient over microbatches, which takes less memory.

    Each microbatch has its own batch-norm statistics ("ghost batch normalisation") and its own dropout key. Extra keys
    of a batch are split too if their first axis has length B; all others go to every microbatch as they are.

    Attributes:
        microbatch_size: largest number of examples per microbatch, at least 1; the microbatches are of equal size.

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
        num_microbatches = -(-batch_size // self.microbatch_size)
        if num_microbatches <= 1:
            return mean_gradient(loss_fn, state, batch, key)

        padding = -batch_size % num_microbatches

        def split(x: jax.Array, filler: jax.Array | None = None) -> jax.Array:
            """Splits into strided microbatches, so a batch-sharded array stays sharded."""
            if padding:
                x = jnp.concatenate([x, x[:padding] if filler is None else filler])
            return x.reshape(x.shape[0] // num_microbatches, num_microbatches, *x.shape[1:]).swapaxes(0, 1)

        def weighted_loss(params: PyTree, state: TrainState, microbatch: Any, key: jax.Array) -> Any:
            loss, (metrics, model_state) = loss_fn(params, state, microbatch, key)
            return loss * metrics.count.astype(loss.dtype), (metrics, model_state)

        def join(x: jax.Array) -> jax.Array:
            """Joins what was computed for each example of the microbatches."""
            return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:batch_size]

        def body(total: Any, microbatch_and_key: Any) -> tuple[Any, PyTree]:
            (parts, mask), key = microbatch_and_key
            microbatch = {**merge(parts), "mask": mask}
            grads, (metrics, model_state) = jax.grad(weighted_loss, has_aux=True)(state.params, state, microbatch, key)
            grads = jax.tree.map(jnp.add, total[0], grads)
            return (grads, total[1] + metrics), (model_state, metrics.examples)

        examples, merge = split_examples(batch)
        mask = jnp.asarray(batch.get("mask", jnp.ones(batch_size, bool)))
        padded_mask = split(mask, jnp.zeros(padding, mask.dtype))  # the padding is real examples, masked
        microbatches = list(map(split, examples)), padded_mask
        total = jax.tree.map(jnp.zeros_like, state.params), Metrics.zeros()
        keys = jax.random.split(key, num_microbatches)
        (grads, metrics), (model_states, recorded) = lax.scan(body, total, (microbatches, keys))
        count = jnp.maximum(metrics.count, 1)
        grads = jax.tree.map(lambda grad: grad / count.astype(grad.dtype), grads)
        # Each microbatch starts from the same model state, so its running statistics are averaged.
        model_state = jax.tree.map(
            lambda leaf: leaf.mean(axis=0) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf[-1], model_states
        )
        return grads, metrics.replace(examples=jax.tree.map(join, recorded)), model_state


def split_examples(
    batch: Mapping[str, Any],
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], dict[str, Any]]]:
    """Splits a batch into what belongs to its examples and the rest.

    Returns:
        The arrays whose first axis has length B, without the mask; and a function that makes a batch of some of their
        rows and of everything else.
    """
    batch_size = batch["image"].shape[0]
    examples = {name: x for name, x in batch.items() if name != "mask"}
    leaves, treedef = jax.tree.flatten(examples, is_leaf=_is_list_of_numbers)
    leaves = [jnp.asarray(x) for x in leaves]
    is_per_example = [x.ndim > 0 and x.shape[0] == batch_size for x in leaves]

    def merge(parts: Sequence[jax.Array]) -> dict[str, Any]:
        rows = iter(parts)
        merged = [next(rows) if splits else x for x, splits in zip(leaves, is_per_example, strict=True)]
        return jax.tree.unflatten(treedef, merged)

    return [x for x, splits in zip(leaves, is_per_example, strict=True) if splits], merge


def _is_list_of_numbers(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and jax.tree_util.all_leaves(x) and not any(jnp.ndim(leaf) for leaf in x)
