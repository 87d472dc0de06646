"""``TrainState``: everything that training changes, as one frozen pytree.

state = create_train_state(model, optax.adam(1e-3), jax.random.key(0))
states = jax.vmap(lambda key: create_train_state(model, tx, key))(keys)   # many at once
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

PyTree = Any
Augment = Callable[[jax.Array, jax.Array], jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """Parameters, optimizer state and what decides the steps to come.

    Attributes:
        step: ``int32``, steps taken.
        params: parameters of the model.
        opt_state: state of the optimizer.
        key: the one source of randomness; step k uses it folded with k, so a step depends on nothing before it.
        ema_params: running average of the parameters; None without ``ema_decay``.
        model_state: the model's other collections, for example ``batch_stats``; often empty.
        model: the Flax module.
        tx: the optax transformation.
        ema_decay: decay of the running average per step.
        label_smoothing: share of the training target that is spread over all classes.
        microbatch_size: examples whose gradient is computed at a time; None: the whole batch.
        augment: what distorts training images, a function of images in [0, 1] and a key; None: nothing.
        adversarial_radius: L2 length of the perturbation of virtual adversarial training; 0: none.

    Example:
        >>> from mnist_jax import MLP
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0))
        >>> state.replace(step=state.step + 1).step.item()
        1
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    key: jax.Array
    ema_params: PyTree
    model_state: Mapping[str, PyTree]
    model: nn.Module = flax.struct.field(pytree_node=False)
    tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    ema_decay: float | None = flax.struct.field(pytree_node=False, default=None)
    label_smoothing: float = flax.struct.field(pytree_node=False, default=0.0)
    microbatch_size: int | None = flax.struct.field(pytree_node=False, default=None)
    augment: Augment | None = flax.struct.field(pytree_node=False, default=None)
    adversarial_radius: float = flax.struct.field(pytree_node=False, default=0.0)

    @property
    def eval_params(self) -> PyTree:
        """The parameters to evaluate with: the running average if there is one."""
        return self.params if self.ema_params is None else self.ema_params


def create_train_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema_decay: float | None = None,
    label_smoothing: float = 0.0,
    microbatch_size: int | None = None,
    augment: Augment | None = None,
    adversarial_radius: float = 0.0,
) -> TrainState:
    """Initialises a model and its optimizer, in one compiled program.

    Args:
        model: any Flax module that maps ``float32[B, 28, 28, 1]`` to logits ``float32[B, K]``, with a ``train``
            argument where it behaves differently in training.
        tx: any optax transformation.
        key: a key from ``jax.random.key(seed)``.
        ema_decay: keep a running average of the parameters with this decay per step.
        label_smoothing: share of the training target to spread over all classes.
        microbatch_size: compute the gradient of so many examples at a time, and add up those of a batch: the same
            gradient from less memory. Batch statistics are then those of the parts, and dropout draws for each.
        augment: distorts training images, from ``float32[B, 28, 28, 1]`` in [0, 1] and a key to the same shape; for
            example an :class:`mnist_jax.Augmentation`.
        adversarial_radius: L2 length of the perturbation of virtual adversarial training.

    Returns:
        The state before the first step.

    Raises:
        TypeError: the model has an attribute that is not hashable.
        ValueError: ``microbatch_size`` is below 1.

    Example:
        >>> from mnist_jax import MLP
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> state.params["Dense_0"]["kernel"].shape
        (784, 8)
    """

    try:
        hash(model)
    except TypeError as error:
        raise TypeError(
            f"model must have hashable attributes, tuples rather than lists, got {type(model).__name__}: {error}"
        ) from None
    if microbatch_size is not None and microbatch_size < 1:
        raise ValueError(f"microbatch_size must be at least 1, got {microbatch_size}")
    state = _create(model, tx, key, ema_decay, label_smoothing)
    return state.replace(microbatch_size=microbatch_size, augment=augment, adversarial_radius=adversarial_radius)


@functools.partial(jax.jit, static_argnums=(0, 1, 3, 4))
def _create(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    ema_decay: float | None,
    label_smoothing: float,
) -> TrainState:
    init_key, train_key = jax.random.split(key)
    variables = model.init(init_key, jnp.zeros((1, 28, 28, 1)), **_train_option(model, False))
    model_state, params = flax.core.pop(variables, "params")
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=tx.init(params),
        key=train_key,
        ema_params=None if ema_decay is None else params,
        model_state=model_state,
        model=model,
        tx=tx,
        ema_decay=ema_decay,
        label_smoothing=label_smoothing,
    )


def scale_image(image: jax.Array) -> jax.Array:
    """``uint8`` scaled to ``float32`` in [0, 1]; floats as they are."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def apply_model(
    state: TrainState, params: PyTree, image: jax.Array, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, Mapping[str, PyTree]]:
    """Runs the model of ``state`` with other parameters.

    Args:
        state: supplies the module and its ``model_state``.
        params: parameters to use.
        image: ``uint8`` or float ``[B, 28, 28, 1]``; uint8 is scaled to [0, 1] here, on the device.
        dropout_key: runs the model in training mode, with this randomness; None runs it as in evaluation.

    Returns:
        Logits ``float32[B, K]``, and the model state after the call.

    Raises:
        ValueError: the images have another shape.
    """
    if image.ndim != 4 or image.shape[1:] != (28, 28, 1):
        raise ValueError(f"image must be [B, 28, 28, 1], got {list(image.shape)}")
    image = scale_image(image)
    variables = {"params": params, **state.model_state}
    options: dict[str, Any] = _train_option(state.model, dropout_key is not None)
    if dropout_key is None:
        return state.model.apply(variables, image, **options), state.model_state  # type: ignore[return-value]
    options |= {"rngs": {"dropout": dropout_key}, "mutable": list(state.model_state)}
    logits, changed = state.model.apply(variables, image, **options)
    return logits, {**state.model_state, **changed}


def _train_option(model: nn.Module, train: bool) -> dict[str, Any]:
    """``train`` as a keyword, for the models that take one."""
    takes_train = "train" in inspect.signature(type(model).__call__).parameters
    return {"train": train} if takes_train else {}


def count_parameters(params: Any) -> int:
    """Number of scalars in a parameter tree.

    Example:
        >>> count_parameters({"kernel": jax.numpy.zeros((3, 4)), "bias": jax.numpy.zeros(4)})
        16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
