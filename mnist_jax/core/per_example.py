"""Losses, margins and gradients of single examples: one-example functions, vmapped over a split.

    losses = per_example_losses(state, dataset.test)            # float32[N]
    norms = per_example_gradient_norms(state, dataset.train)    # float32[N]

    # The same in an experiment of your own: parameters are shared, examples are mapped over.
    grads = jax.vmap(jax.grad(one_example_loss(state)), in_axes=(None, 0, 0))(state.params, image, label)

All of these run the model as in evaluation: without dropout, and with the running average of the parameters if there
is one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from mnist_jax.core.state import PyTree, TrainState, apply_model
from mnist_jax.core.steps import example_losses
from mnist_jax.data import Split
from mnist_jax.models.cnn import CNN
from mnist_jax.models.mlp import MLP

ExampleFunction = Callable[[PyTree, jax.Array, jax.Array], jax.Array]


def one_example_loss(state: TrainState) -> ExampleFunction:
    """The loss as a function of ``(params, image[28, 28, 1], label[])``: a scalar, in nats.

    Example:
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> function = one_example_loss(state)
        >>> function(state.params, jnp.zeros((28, 28, 1)), jnp.int32(3)).shape
        ()
    """

    def loss(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        logits, _ = apply_model(state, params, image[None])
        return example_losses(logits, label[None])[0]

    return loss


def one_example_margin(state: TrainState) -> ExampleFunction:
    """The margin as a function of ``(params, image[28, 28, 1], label[])``.

    It is the logit of the true class minus the largest of the others: negative where the prediction is wrong.

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
    """The Euclidean norm of the gradient by all parameters, as a function of ``(params, image, label)``.

    The gradient of one example by a dense layer's kernel is the outer product of the layer's input and the gradient by
    its output, and its norm the product of theirs: so it is never formed, which is 20 times faster for an MLP.

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
        others = {name: leaves for name, leaves in params.items() if name not in layers}
        shifts = {name: jnp.zeros_like(output) for name, (_, output) in layers.items()}

        def loss(shifts: Mapping[str, jax.Array], others: PyTree) -> jax.Array:
            with _intercept_dense(lambda name, _, output: output + shifts[name] if name in shifts else output):
                return one_example_loss(state)({**params, **others}, image, label)

        by_output, by_others = jax.grad(loss, argnums=(0, 1))(shifts, others)
        square = optax.tree.norm(by_others, squared=True)
        for name, (inputs, _) in layers.items():
            ones = 1 if "bias" in params[name] else 0
            square += jnp.sum(by_output[name] ** 2) * (jnp.sum(inputs**2) + ones)
        return jnp.sqrt(square)

    return norm


def _dense_layers(state: TrainState, params: PyTree, image: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Inputs and outputs of the dense layers of an MLP or CNN by name; of a model of somebody else's, none."""
    layers = {}
    if type(state.model) in (MLP, CNN):

        def keep(name: str, inputs: jax.Array, output: jax.Array) -> jax.Array:
            layers[name] = (inputs, output)
            return output

        with _intercept_dense(keep):
            apply_model(state, params, image[None])
    return layers


def _intercept_dense(
    function: Callable[[str, jax.Array, jax.Array], jax.Array],
) -> contextlib.AbstractContextManager[None]:
    """Puts ``function(name, inputs, output)`` in place of the output of each dense layer."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if type(context.module) is nn.Dense and context.method_name == "__call__":
            return function(str(context.module.name), args[0], output)
        return output

    return nn.intercept_methods(intercept)


@functools.partial(jax.jit, static_argnames=("one_example", "batch_size"))
def _map_examples(
    one_example: Callable[[TrainState], ExampleFunction], state: TrainState, split: Split, batch_size: int
) -> jax.Array:
    function = functools.partial(one_example(state), state.eval_params)
    pairs = (jnp.asarray(split.image), jnp.asarray(split.label))
    return lax.map(lambda pair: function(*pair), pairs, batch_size=min(batch_size, split.num_examples))


def per_example_losses(state: TrainState, split: Split, batch_size: int = 1000) -> jax.Array:
    """The loss of each example.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples in memory at a time.

    Returns:
        ``float32[N]``, in nats; their mean is ``evaluate_dataset(state, split).loss``.

    Example:
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_losses(state, load_dataset("digits").test).shape
        (297,)
    """
    return _map_examples(one_example_loss, state, split, batch_size)


def per_example_margins(state: TrainState, split: Split, batch_size: int = 1000) -> jax.Array:
    """The margin of each example, see :func:`one_example_margin`.

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
    """The Euclidean norm of each example's gradient by all parameters.

    Args:
        state: the state to evaluate.
        split: N examples.
        batch_size: examples in memory at a time, and gradients by all but the dense layers of an MLP or CNN.

    Returns:
        ``float32[N]``.

    Example:
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_gradient_norms(state, load_dataset("digits").test).shape
        (297,)
    """
    return _map_examples(one_example_gradient_norm, state, split, batch_size)
