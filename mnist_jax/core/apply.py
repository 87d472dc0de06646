"""Applies the model of a state to images, in evaluation or training mode.

logits, _ = apply_model(state, state.eval_params, image)            # evaluation mode
logits, model_state = apply_model(state, state.params, image, key)  # training mode
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from mnist_jax.core.checks import check_image

if TYPE_CHECKING:
    from mnist_jax.core.state import PyTree, TrainState


def scale_image(image: jax.Array) -> jax.Array:
    """Scales ``uint8`` to ``float32`` in [0, 1]; leaves floats as they are."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def apply_model(
    state: TrainState, params: PyTree, image: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, PyTree]:
    """Runs the model of ``state`` with given parameters.

    Args:
        state: supplies the model and its ``model_state``; in evaluation mode its ``eval_model_state``.
        params: parameters of the model.
        image: ``uint8`` or float ``[B, H, W, C]``; uint8 is scaled to [0, 1] here, on the device.
        key: PRNG key of training mode, for dropout; None runs the model in evaluation mode.

    Returns:
        Logits ``float32[B, K]``, and the model state after the call.

    Raises:
        ValueError: the images have the wrong shape or dtype.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> logits, _ = apply_model(state, state.eval_params, jnp.zeros((5, 28, 28, 1), jnp.uint8))
        >>> logits.shape
        (5, 10)
    """
    check_image(state.recipe, image)
    model_state = state.eval_model_state if key is None else state.model_state
    return state.recipe.model.apply(params, model_state, scale_image(image), key)
