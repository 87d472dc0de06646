"""Virtual adversarial training: predictions that stay as they are within a small distance of each training image.

    losses += adversarial_losses(state, params, image, logits, dropout_key)

A perturbation is sought that changes the prediction for an image most, of a given L2 length; how far the prediction
then moves is added to the loss. It needs no notion of which pixels are neighbours, and no labels.

Reference: Miyato et al. (2017), https://arxiv.org/abs/1704.03976, with one step of the power method.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mnist_jax.core.state import PyTree, TrainState, apply_model

# Length of the first, random step, from which the gradient says where to go.
_PROBE = 1e-1
# Folded into the key of a step, where Flax folds in hashes of the names of layers.
_PERTURBATION = 2


def adversarial_losses(
    state: TrainState, params: PyTree, image: jax.Array, logits: jax.Array, dropout_key: jax.Array
) -> jax.Array:
    """How far predictions move under the worst perturbation of length ``state.adversarial_radius``.

    Args:
        state: supplies the model and the radius.
        params: parameters to differentiate by.
        image: ``float32[B, 28, 28, 1]``.
        logits: ``float32[B, K]``, what the model makes of ``image`` with the same key.
        dropout_key: randomness of training mode; dropout is the same for all of an image.

    Returns:
        ``float32[B]``, Kullback-Leibler divergences in nats.
    """
    target = jax.nn.log_softmax(jax.lax.stop_gradient(logits))

    def divergences(params: PyTree, perturbation: jax.Array) -> jax.Array:
        moved, _ = apply_model(state, params, image + perturbation, dropout_key)
        return jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(moved)), axis=-1)

    start = _PROBE * _unit(jax.random.normal(jax.random.fold_in(dropout_key, _PERTURBATION), image.shape, image.dtype))
    fixed = jax.lax.stop_gradient(params)
    direction = jax.grad(lambda perturbation: divergences(fixed, perturbation).sum())(start)
    return divergences(params, state.adversarial_radius * _unit(jax.lax.stop_gradient(direction)))


def _unit(x: jax.Array) -> jax.Array:
    """Each example divided by its L2 norm; zero stays zero."""
    # By the largest first: the squares of a gradient as small as where the model is sure would all be 0.
    largest = jnp.max(jnp.abs(x), axis=(1, 2, 3), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True))
    return x / jnp.where(length > 0, length, 1)
