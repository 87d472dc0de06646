"""Defines the training step and the evaluation step, pure functions of a state and a batch.

    state, metrics = train_step(state, batch)    # one step, in your own loop
    metrics = eval_step(state, batch, mask)

A batch is ``{"image": uint8 or float[B, H, W, C], "label": int[B]}``, optionally with ``"mask": bool[B]``, True for
the examples that count. Labels may also be class probabilities ``float[B, K]`` (distillation). Extra keys, such as
``id`` or ``weight``, are passed on unchanged to a ``loss_fn`` or ``gradient_fn``; text in them becomes None, as JAX
cannot trace it. The same ``train_step`` runs by itself, inside ``lax.scan`` and under ``jax.vmap``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mnist_jax.core.apply import apply_model
from mnist_jax.core.checks import check_extra_keys, check_values, checked_jit
from mnist_jax.core.losses import loss_fn
from mnist_jax.core.metrics import Metrics, compute_metrics
from mnist_jax.core.state import TrainState


def _check_batch(state: TrainState, batch: Mapping[str, Any], mask: Any = None) -> dict[str, Any]:
    has_mask = mask is not None or "mask" in batch  # which may hide any image
    check_values(state.recipe, None if has_mask else batch["image"], batch["label"])
    return {"batch": check_extra_keys(batch)}


@checked_jit(_check_batch)
def train_step(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on a batch.

    Args:
        state: from :func:`mnist_jax.create_train_state`, or from the last step. It is not donated.
        batch: ``{"image": uint8 or float[B, H, W, C], "label": int[B] or float[B, K]}``, optionally ``"mask":
            bool[B]`` and extra keys. If every example is masked, the gradient is 0.

    Returns:
        The next state, and the metrics of the batch with the parameters before the step, in training mode.

    Raises:
        ValueError: images or labels have the wrong shape or dtype, a NumPy image is not finite, a NumPy label lies
            outside [0, K) (in a JAX array these make the loss NaN), or an extra key holds neither numbers nor text.

    Example:
        >>> import numpy as np
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> batch = {"image": np.zeros((4, 28, 28, 1), np.uint8), "label": np.arange(4)}
        >>> state, metrics = train_step(state, batch)
        >>> int(state.step), int(metrics.count)
        (1, 4)
    """
    recipe = state.recipe
    key = jax.random.fold_in(state.key, state.step)
    grads, metrics, model_state = recipe.gradient_fn(loss_fn, state, batch, key)
    updates, opt_state = recipe.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    next_state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, model_state=model_state)
    if recipe.ema_decay is not None:
        # Lower at first, so that the average forgets the initial parameters.
        decay = jnp.minimum(recipe.ema_decay, (1 + state.step) / (10 + state.step))
        next_state = next_state.replace(ema_params=_update_ema(state.ema_params, params, decay))
        if state.ema_model_state is not None:
            average = _update_ema(state.ema_model_state, model_state, decay)
            next_state = next_state.replace(ema_model_state=average)
    return next_state, metrics


def _update_ema(average: Any, new: Any, decay: jax.Array) -> Any:
    """Updates an EMA; leaves that are not floating point take the new value."""

    def update(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        return optax.incremental_update(new, old, 1 - decay).astype(old.dtype)

    return jax.tree.map(update, average, new)


@checked_jit(_check_batch)
def eval_step(state: TrainState, batch: Mapping[str, Any], mask: jax.Array | None = None) -> Metrics:
    """Computes the metrics of a batch in evaluation mode, with the EMA of the parameters if there is one.

    Args:
        state: the state to evaluate.
        batch: as for :func:`train_step`.
        mask: ``bool[B]``, True for examples that count; default ``batch["mask"]``, or all.

    Raises:
        ValueError: as for :func:`train_step`.

    Example:
        >>> import numpy as np
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> batch = {"image": np.zeros((4, 28, 28, 1), np.uint8), "label": np.arange(4)}
        >>> int(eval_step(state, batch, np.array([True, True, True, False])).count)
        3
    """
    logits, _ = apply_model(state, state.eval_params, batch["image"])
    losses = state.recipe.example_loss(logits, batch["label"])
    return compute_metrics(logits, batch["label"], losses, batch.get("mask") if mask is None else mask)
