"""Computes saliency maps: the pixels that a class score depends on.

maps = saliency(state, dataset.test.image[:10])   # float32[10, 28, 28]

Reference: Simonyan et al., "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency
Maps", https://arxiv.org/abs/1312.6034.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mnist_jax.core.apply import apply_model, scale_image
from mnist_jax.core.checks import check_image, check_values, checked_jit
from mnist_jax.core.state import TrainState


def _check(state: TrainState, image: jax.typing.ArrayLike, label: jax.typing.ArrayLike | None = None) -> None:
    check_values(state.recipe, image, label)


@checked_jit(_check)
def saliency(state: TrainState, image: jax.typing.ArrayLike, label: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Computes the gradient of a class's logit with respect to each pixel.

    The model runs in evaluation mode, with the EMA of the parameters if there is one. The paper shows the absolute
    value; here the sign stays: positive where a brighter pixel raises the logit.

    Args:
        state: supplies model and parameters.
        image: ``uint8`` or float ``[N, 28, 28, 1]``.
        label: ``int[N]`` in [0, K), the classes; default: the predicted ones.

    Returns:
        ``float32[N, 28, 28]``, for pixels in [0, 1], summed over channels.

    Raises:
        ValueError: images or labels have the wrong shape, dtype or, in NumPy arrays, values.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> saliency(state, jnp.zeros((5, 28, 28, 1), jnp.uint8)).shape
        (5, 28, 28)

    Reference: Simonyan et al., https://arxiv.org/abs/1312.6034.
    """
    image = jnp.asarray(image)
    check_image(state.recipe, image)
    if label is not None:
        label = jnp.asarray(label)
        if label.shape != image.shape[:1] or not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(f"label must be int[{image.shape[0]}], got {label.dtype}{list(label.shape)}")

    def score(image: jax.Array, label: jax.Array | None) -> jax.Array:
        logits = apply_model(state, state.eval_params, image[None])[0][0]
        return logits[jnp.argmax(logits) if label is None else label]

    gradient = jax.vmap(jax.grad(score), in_axes=(0, None if label is None else 0))(scale_image(image), label)
    return gradient.sum(axis=-1).astype(jnp.float32)
