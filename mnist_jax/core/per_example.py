"""Computes losses, margins and gradients of single examples: one-example functions, vmapped over a split.

    losses = per_example_losses(state, dataset.test)            # float32[N]
    norms = per_example_gradient_norms(state, dataset.train)    # float32[N]

    # In your own experiment: the parameters are shared, the examples mapped over.
    grads = jax.vmap(jax.grad(one_example_loss(state)), in_axes=(None, 0, 0))(state.params, image, label)

The model runs in evaluation mode. The ``per_example_*`` functions use the EMA of the parameters if there is one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from mnist_jax.core.apply import apply_model
from mnist_jax.core.state import PyTree, TrainState
from mnist_jax.data.dataset import Split
from mnist_jax.models.adapters import LinenAdapter

Path = tuple[str, ...]
ExampleFunction = Callable[[PyTree, jax.Array, jax.Array], jax.Array]


def one_example_loss(state: TrainState) -> ExampleFunction:
    """Returns the recipe's ``example_loss`` as a scalar function of ``(params, image[H, W, C], label[])``.

    Example:
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
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> function = one_example_margin(state)
        >>> function(state.params, jnp.zeros((28, 28, 1)), jnp.int32(3)).shape
        ()
    """

    def margin(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        logits = apply_model(state, params, image[None])[0][0]
        others = jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
        return logits[label] - jnp.max(others)

    return margin


def one_example_gradient_norm(state: TrainState) -> ExampleFunction:
    """Returns the L2 norm of the loss gradient as a function of ``(params, image[H, W, C], label[])``.

    For one example, the gradient of a dense kernel is the outer product of the layer's input and the gradient of its
    output, so its norm is the product of their norms. Not forming it is 20 times faster for an MLP. This applies to
    ``nn.Dense`` layers of Linen modules that are called once; the gradients of all other parameters are formed.

    Reference: Goodfellow, "Efficient Per-Example Gradient Computations", https://arxiv.org/abs/1510.01799.

    Example:
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> function = one_example_gradient_norm(state)
        >>> function(state.params, jnp.zeros((28, 28, 1)), jnp.int32(3)).shape
        ()
    """

    def norm(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        layers = _dense_layers(state, params, image)
        dense, others = _partition(params, layers)
        shifts = {path: jnp.zeros_like(output) for path, (_, output) in layers.items()}

        def loss(shifts: Mapping[Path, jax.Array], others: PyTree) -> jax.Array:
            with _intercept_dense(lambda path, _, output: output + shifts[path] if path in shifts else output):
                return one_example_loss(state)(_merge(dense, others), image, label)

        output_grads, other_grads = jax.grad(loss, argnums=(0, 1))(shifts, others)
        square = optax.tree.norm(other_grads, squared=True)
        for path, (inputs, _) in layers.items():
            bias_input = 1 if (*path, "bias") in dense else 0
            square += jnp.sum(output_grads[path] ** 2) * (jnp.sum(inputs**2) + bias_input)
        return jnp.sqrt(square)

    return norm


def _partition(params: PyTree, layers: Collection[Path]) -> tuple[dict[Path, Any], PyTree]:
    """Splits parameters into dense layers and others, both by path; without layers, the tree is not flattened."""
    if not layers:
        return {}, params
    flat = flax.traverse_util.flatten_dict(params)
    dense = {path: leaf for path, leaf in flat.items() if path[:-1] in layers}
    return dense, {path: leaf for path, leaf in flat.items() if path not in dense}


def _merge(dense: Mapping[Path, Any], others: PyTree) -> PyTree:
    return flax.traverse_util.unflatten_dict({**dense, **others}) if dense else others


def _dense_layers(state: TrainState, params: PyTree, image: jax.Array) -> dict[Path, tuple[jax.Array, jax.Array]]:
    """Returns, by path, inputs and outputs of the dense layers whose gradient is one outer product.

    These are the ``nn.Dense`` layers of a Linen module that are called once, on ``[1, features]``, and whose parameters
    nothing else reads (no tied weights).
    """
    if not isinstance(state.recipe.model, LinenAdapter):
        return {}
    calls: dict[Path, list[tuple[jax.Array, jax.Array]]] = {}

    def record(path: Path, inputs: jax.Array, output: jax.Array) -> jax.Array:
        calls.setdefault(path, []).append((inputs, output))
        return output

    with _intercept_dense(record):
        apply_model(state, params, image[None])
    layers = {path: found[0] for path, found in calls.items() if len(found) == 1 and found[0][0].ndim == 2}

    def without_layers(dense: PyTree, others: PyTree) -> Any:
        """Runs the model with the recorded output of each of these layers, without reading its parameters."""
        with _intercept_dense(lambda path, _, output: layers[path][1] if path in layers else output, skipped=layers):
            return apply_model(state, _merge(dense, others), image[None])

    dense, others = _partition(params, layers)
    jaxpr = jax.make_jaxpr(without_layers)(dense, others).jaxpr
    read = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
    leaves = jax.tree_util.tree_leaves_with_path(dense)
    tied = {path[0].key[:-1] for (path, _), var in zip(leaves, jaxpr.invars, strict=False) if id(var) in read}
    return {path: found for path, found in layers.items() if path not in tied}


def _intercept_dense(
    function: Callable[[Path, jax.Array, Any], jax.Array], skipped: Collection[Path] = ()
) -> contextlib.AbstractContextManager[None]:
    """Replaces each dense layer's output by ``function(path, inputs, output)``; does not call ``skipped`` layers."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if type(module) is not nn.Dense or context.method_name != "__call__":
            return call(*args, **kwargs)
        output = None if module.path in skipped else call(*args, **kwargs)
        return function(module.path, args[0], output)

    return nn.intercept_methods(intercept)


@functools.partial(jax.jit, static_argnames=("one_example", "batch_size"))
def _map_examples(
    one_example: Callable[[TrainState], ExampleFunction], state: TrainState, split: Split, batch_size: int
) -> jax.Array:
    function = functools.partial(one_example(state), state.eval_params)
    pairs = (jnp.asarray(split.image), jnp.asarray(split.label))
    return lax.map(lambda pair: function(*pair), pairs, batch_size=min(batch_size, split.num_examples))


def per_example_losses(state: TrainState, split: Split, batch_size: int = 1000) -> jax.Array:
    """Computes the loss of each example.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples in memory at a time.

    Returns:
        ``float32[N]``; their mean is ``evaluate_dataset(state, split).loss``.

    Example:
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_losses(state, load_dataset("digits").test).shape
        (297,)
    """
    return _map_examples(one_example_loss, state, split, batch_size)


def per_example_margins(state: TrainState, split: Split, batch_size: int = 1000) -> jax.Array:
    """Computes the margin of each example, see :func:`one_example_margin`.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples in memory at a time.

    Returns:
        ``float32[N]``.

    Example:
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_margins(state, load_dataset("digits").test).shape
        (297,)
    """
    return _map_examples(one_example_margin, state, split, batch_size)


def per_example_gradient_norms(state: TrainState, split: Split, batch_size: int = 50) -> jax.Array:
    """Computes the L2 norm of the loss gradient of each example, see :func:`one_example_gradient_norm`.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples in memory at a time, with their gradients except those of dense layers.

    Returns:
        ``float32[N]``.

    Example:
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_gradient_norms(state, load_dataset("digits").test).shape
        (297,)
    """
    return _map_examples(one_example_gradient_norm, state, split, batch_size)
