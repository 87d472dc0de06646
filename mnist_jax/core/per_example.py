"""Computes losses, margins, logits and gradients of single examples, over a whole split.

    losses = per_example_losses(state, dataset.test)                          # float32[N]
    gradients = per_example_gradients(state, split, where="Dense_1")          # a tree with leaves [N, ...]

    # In your own experiment: the parameters are shared, the examples mapped over.
    grads = jax.vmap(jax.grad(one_example_loss(state)), in_axes=(None, 0, 0))(state.params, image, label)

The model runs in evaluation mode. The ``per_example_*`` functions use the EMA of the parameters if there is one, take
``batch_size`` examples at a time, and run under ``jit`` and, over a population of states, under ``vmap``.
:mod:`mnist_jax.core.gradient_norms` has the norms of gradients, :mod:`mnist_jax.core.projection` their projections and
dot products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.core.apply import apply_model
from mnist_jax.core.checks import check_split
from mnist_jax.core.evaluation import choose_batch_size
from mnist_jax.core.factors import (
    Where,
    combine,
    example_gradients,
    parameter_names,
    select_parameters,
)
from mnist_jax.core.layer_rules import Factors
from mnist_jax.core.metrics import compute_margins
from mnist_jax.core.sharding import on_any_mesh, replicate, shard
from mnist_jax.core.state import PyTree, TrainState
from mnist_jax.data.dataset import Split

ExampleFunction = Callable[[PyTree, jax.Array, jax.Array], jax.Array]
Sharding = jax.sharding.Sharding
T = TypeVar("T")


def one_example_loss(state: TrainState) -> ExampleFunction:
    """Returns the recipe's ``example_loss`` as a scalar function of ``(params, image[H, W, C], label[])``.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> function = one_example_loss(state)
        >>> function(state.params, jnp.zeros((28, 28, 1)), jnp.int32(3)).shape
        ()
    """

    def loss(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        logits, _ = apply_model(state, params, image[None])
        loss: jax.Array = state.recipe.example_loss(logits, label[None])[0]
        return loss

    return loss


def one_example_margin(state: TrainState) -> ExampleFunction:
    """Returns the margin as a function of ``(params, image[H, W, C], label[])``.

    The margin is the logit of the true class minus the largest other logit: negative if the prediction is wrong.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> function = one_example_margin(state)
        >>> function(state.params, jnp.zeros((28, 28, 1)), jnp.int32(3)).shape
        ()
    """

    def margin(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        logits, _ = apply_model(state, params, image[None])
        return compute_margins(logits, label[None])[0]

    return margin


def map_batches(
    function: Callable[[jax.Array, jax.Array], T], split: Split, batch_size: int, sharding: Sharding | None = None
) -> T:
    """Maps ``function(image[B, ...], label[B, ...])`` over a split, a batch at a time; call it under ``jit``.

    Returns:
        The results, arrays with a first axis of B, joined to N. The last batch is padded with zeros, which are cut off.
    """
    pairs = jnp.asarray(split.image), jnp.asarray(split.label)
    num_examples = split.num_examples
    num_batches = -(-num_examples // batch_size)

    def batched(x: jax.Array) -> jax.Array:
        padding = num_batches * batch_size - num_examples
        return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(num_batches, batch_size, *x.shape[1:])

    results = lax.map(lambda batch: function(*shard(batch, sharding)), jax.tree.map(batched, pairs))
    results = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_examples], results)
    return replicate(results, sharding)


def choose_gradient_batch_size(split: Split, batch_size: int | None, sharding: Sharding | None) -> int:
    """Returns the number of examples whose gradients are computed at a time: 256 for each device, or 32 on CPU."""
    if batch_size is None:
        batch_size = 32 if jax.default_backend() == "cpu" else 256
        batch_size *= 1 if sharding is None else sharding.num_devices
    return choose_batch_size(split, batch_size, sharding)


def _losses(state: TrainState, logits: jax.Array, label: jax.Array) -> jax.Array:
    return state.recipe.example_loss(logits, label)


def _margins(state: TrainState, logits: jax.Array, label: jax.Array) -> jax.Array:
    del state
    return compute_margins(logits, label)


def _logits(state: TrainState, logits: jax.Array, label: jax.Array) -> jax.Array:
    del state, label
    return logits


@functools.partial(jax.jit, static_argnames=("function", "batch_size", "sharding"))
@on_any_mesh
def _map_logits(
    function: Callable[[TrainState, jax.Array, jax.Array], jax.Array],
    state: TrainState,
    split: Split,
    batch_size: int,
    sharding: Sharding | None,
) -> jax.Array:
    """Maps ``function(state, logits, label)`` over the examples of a split."""

    def of_batch(image: jax.Array, label: jax.Array) -> jax.Array:
        logits, _ = apply_model(state, state.eval_params, image)
        return function(state, logits, label)

    return map_batches(of_batch, split, batch_size, sharding)


def per_example_losses(
    state: TrainState, split: Split, batch_size: int | None = None, sharding: Sharding | None = None
) -> jax.Array:
    """Computes the loss of each example, the ``example_loss`` of the recipe.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples at a time; the last batch is padded. Default 1000 for each device, or 100 on CPU.
        sharding: sharding of the batch axis on a mesh, as for :func:`mnist_jax.evaluate_dataset`.

    Returns:
        ``float32[N]``; their mean is ``evaluate_dataset(state, split).loss``.

    Raises:
        ValueError: the split is empty or wrong, or ``batch_size`` is below 1.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_losses(state, load_dataset("digits").test).shape
        (297,)
    """
    check_split(state.recipe, split)
    return _map_logits(_losses, state, split, choose_batch_size(split, batch_size, sharding), sharding)


def per_example_margins(
    state: TrainState, split: Split, batch_size: int | None = None, sharding: Sharding | None = None
) -> jax.Array:
    """Computes the margin of each example, see :func:`one_example_margin`.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples at a time; the last batch is padded. Default 1000 for each device, or 100 on CPU.
        sharding: sharding of the batch axis on a mesh, as for :func:`mnist_jax.evaluate_dataset`.

    Returns:
        ``float32[N]``.

    Raises:
        ValueError: the split is empty or wrong, or ``batch_size`` is below 1.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_margins(state, load_dataset("digits").test).shape
        (297,)
    """
    check_split(state.recipe, split)
    return _map_logits(_margins, state, split, choose_batch_size(split, batch_size, sharding), sharding)


def per_example_logits(
    state: TrainState, split: Split, batch_size: int | None = None, sharding: Sharding | None = None
) -> jax.Array:
    """Computes the logits of each example, on the device.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples at a time; the last batch is padded. Default 1000 for each device, or 100 on CPU.
        sharding: sharding of the batch axis on a mesh, as for :func:`mnist_jax.evaluate_dataset`.

    Returns:
        ``float32[N, K]``.

    Raises:
        ValueError: the split is empty or wrong, or ``batch_size`` is below 1.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_logits(state, load_dataset("digits").test).shape
        (297, 10)
    """
    check_split(state.recipe, split)
    return _map_logits(_logits, state, split, choose_batch_size(split, batch_size, sharding), sharding)


def per_example_gradients(
    state: TrainState,
    split: Split,
    batch_size: int | None = None,
    *,
    where: Where = None,
    sharding: Sharding | None = None,
) -> PyTree:
    """Computes the gradient of each example's loss.

    The result takes ``4 * N`` bytes for each parameter, and the computation ``4 * batch_size`` bytes more, besides the
    activations of a batch: choose N or ``where`` accordingly, or use
    :func:`mnist_jax.per_example_projected_gradients`.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples at a time; the last batch is padded. Default 256 for each device, or 32 on CPU.
        where: the parameters: the first names of their path, such as ``"Dense_1"`` or ``"Dense_1/kernel"``; a predicate
            of the path; or None for all.
        sharding: sharding of the batch axis on a mesh, as for :func:`mnist_jax.evaluate_dataset`.

    Returns:
        The tree of the parameters, with leaves ``[N, ...]``, and None for parameters that are not selected. The mean
        over N is the gradient of the mean loss.

    Raises:
        ValueError: the split is empty or wrong, ``batch_size`` is below 1, or ``where`` selects no parameter.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, Split, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> gradients = per_example_gradients(state, load_dataset("digits").test, where="Dense_1")
        >>> gradients["Dense_1"]["kernel"].shape, gradients["Dense_0"]["kernel"]
        ((297, 8, 10), None)
    """
    check_split(state.recipe, split)
    names = select_parameters(state.params, where)
    return _gradients(state, split, names, choose_gradient_batch_size(split, batch_size, sharding), sharding)


@functools.partial(jax.jit, static_argnames=("names", "batch_size", "sharding"))
@on_any_mesh
def _gradients(
    state: TrainState, split: Split, names: tuple[str, ...], batch_size: int, sharding: Sharding | None
) -> PyTree:
    shapes = dict(zip(parameter_names(state.params), jax.tree.leaves(state.eval_params), strict=True))

    def of_batch(image: jax.Array, label: jax.Array) -> PyTree:
        gradients = example_gradients(state, state.eval_params, image, label, names)
        formed = {name: each.form() if isinstance(each, Factors) else each for name, each in gradients.items()}
        return {name: each.reshape(-1, *shapes[name].shape).astype(shapes[name].dtype) for name, each in formed.items()}

    return combine(map_batches(of_batch, split, batch_size, sharding), state.params)
