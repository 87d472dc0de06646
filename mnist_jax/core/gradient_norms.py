"""Computes the gradient norm of each example, without forming its gradient where the layer allows it.

    norms = per_example_gradient_norms(state, dataset.train)    # float32[N]

For the MLP and the CNN of this package, this takes about as long as a training step on as many examples, or less.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mnist_jax.core.checks import check_split
from mnist_jax.core.factors import Where, example_gradients, select_parameters
from mnist_jax.core.layer_rules import Factors
from mnist_jax.core.per_example import ExampleFunction, Sharding, choose_gradient_batch_size, map_batches
from mnist_jax.core.sharding import on_any_mesh
from mnist_jax.core.state import PyTree, TrainState
from mnist_jax.data.dataset import Split


def _norms(state: TrainState, params: PyTree, image: jax.Array, label: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Returns the gradient norm of each example of a batch, ``float32[B]``."""
    gradients = example_gradients(state, params, image, label, names).values()
    squares = [
        each.squared_norms() if isinstance(each, Factors) else jnp.sum(each.reshape(each.shape[0], -1) ** 2, axis=1)
        for each in gradients
    ]
    return jnp.sqrt(sum(square.astype(jnp.float32) for square in squares))


def one_example_gradient_norm(state: TrainState) -> ExampleFunction:
    """Returns the L2 norm of the loss gradient as a function of ``(params, image[H, W, C], label[])``.

    For one example, the gradient of a dense kernel is the outer product of the layer's input and the gradient of its
    output, so its norm is the product of their norms; :mod:`mnist_jax.core.factors` lists the layers. For many examples
    :func:`per_example_gradient_norms` is faster.

    Reference: Goodfellow, "Efficient Per-Example Gradient Computations", https://arxiv.org/abs/1510.01799.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> function = one_example_gradient_norm(state)
        >>> function(state.params, jnp.zeros((28, 28, 1)), jnp.int32(3)).shape
        ()
    """
    names = select_parameters(state.params, None)

    def norm(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        return _norms(state, params, image[None], label[None], names)[0]

    return norm


def per_example_gradient_norms(
    state: TrainState,
    split: Split,
    batch_size: int | None = None,
    *,
    where: Where = None,
    sharding: Sharding | None = None,
) -> jax.Array:
    """Computes the L2 norm of the loss gradient of each example, in one forward and backward pass per batch.

    Memory for each example of a batch: inputs and output gradients of each layer; for a convolution also the patches
    of its input, rows x columns of the kernel times as large, and one gradient of the kernel. That is 11 kB for the
    default MLP and 0.3 MB for the default CNN. Where a gradient has to be formed (see :mod:`mnist_jax.core.factors`;
    all those of NNX and Equinox modules and of functions), 4 bytes for each parameter.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples at a time; the last batch is padded. Default 256 for each device, or 32 on CPU.
        where: the parameters: the first names of their path, such as ``"Dense_1"`` or ``"Dense_1/kernel"``; a predicate
            of the path; or None for all.
        sharding: sharding of the batch axis on a mesh, as for :func:`mnist_jax.evaluate_dataset`.

    Returns:
        ``float32[N]``.

    Raises:
        ValueError: the split is empty or wrong, ``batch_size`` is below 1, or ``where`` selects no parameter.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_gradient_norms(state, load_dataset("digits").test).shape
        (297,)

    Reference: Goodfellow, https://arxiv.org/abs/1510.01799; Rochette et al., https://arxiv.org/abs/1912.06015.
    """
    check_split(state.recipe, split)
    names = select_parameters(state.params, where)
    return _map_norms(state, split, names, choose_gradient_batch_size(split, batch_size, sharding), sharding)


@functools.partial(jax.jit, static_argnames=("names", "batch_size", "sharding"))
@on_any_mesh
def _map_norms(
    state: TrainState, split: Split, names: tuple[str, ...], batch_size: int, sharding: Sharding | None
) -> jax.Array:
    def of_batch(image: jax.Array, label: jax.Array) -> jax.Array:
        return _norms(state, state.eval_params, image, label, names)

    return map_batches(of_batch, split, batch_size, sharding)
