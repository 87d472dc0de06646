"""``TrainState`` is a frozen pytree of all that training changes; its static ``Recipe`` defines a step.

state = create_train_state(model, optax.adam(1e-3), jax.random.key(0))
states = jax.vmap(lambda key: create_train_state(model, tx, key))(keys)   # a population
logits, _ = apply_model(state, state.eval_params, image)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import optax

from mnist_jax.core.gradients import mean_gradient
from mnist_jax.core.losses import MeanLoss, cross_entropy
from mnist_jax.models.adapters import Adapter, Shape, Variables, adapt_model

if TYPE_CHECKING:
    from mnist_jax.core.metrics import Metrics

PyTree = Any
Batch = Mapping[str, Any]
Augment = Callable[[jax.Array, jax.Array], jax.Array]
ExampleLoss = Callable[[jax.Array, jax.Array], jax.Array]
LossFn = Callable[[PyTree, "TrainState", Batch, jax.Array | None], tuple[jax.Array, tuple["Metrics", PyTree]]]
GradientFn = Callable[[LossFn, "TrainState", Batch, jax.Array], tuple[PyTree, "Metrics", PyTree]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Defines a step by functions and constants; hashable, so it is static under ``jit``.

    Recipes are equal if their fields are. Define your own functions once: a new lambda for each state compiles again.

    Attributes:
        model: adapter of the model, see :mod:`mnist_jax.models.adapters`.
        tx: optax transformation.
        loss_fn: training loss of a batch, ``(params, state, batch, key) -> (loss, (Metrics, model_state))``.
        gradient_fn: its gradient, ``(loss_fn, state, batch, key) -> (grads, Metrics, model_state)``.
        example_loss: loss of each example for evaluation, ``(logits, label) -> float[B]``.
        augment: distorts training images, ``(image, key) -> image``; None for no augmentation.
        ema_decay: largest decay of the exponential moving average (EMA) of the parameters; step k uses
            ``min(ema_decay, (1 + k) / (10 + k))``. None for no EMA.
        image_shape: ``(H, W, C)`` of one image.
        num_classes: K.
        record: whether the metrics of a step have the values of each example, :class:`mnist_jax.ExampleMetrics`. A
            ``loss_fn`` of your own gets them from ``compute_metrics(..., record=state.recipe.record)``.

    Example:
        >>> from mnist_jax import MLP
        >>> create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0)).recipe.num_classes
        10
    """

    model: Adapter
    tx: optax.GradientTransformation
    loss_fn: LossFn
    gradient_fn: GradientFn
    example_loss: ExampleLoss
    augment: Augment | None = None
    ema_decay: float | None = None
    image_shape: Shape = (28, 28, 1)
    num_classes: int = 10
    record: bool = False


class TrainState(flax.struct.PyTreeNode):
    """Holds the state of training. A step changes every array except ``key``; ``recipe`` is static.

    Attributes:
        step: ``int32``, number of steps taken.
        params: parameters of the model.
        opt_state: state of the optimizer.
        key: PRNG key; step k folds k into it, so the randomness of a step does not depend on earlier ones.
        ema_params: EMA of the parameters; None without ``ema_decay``.
        model_state: the model's other arrays, for example ``batch_stats``; often empty.
        ema_model_state: EMA of ``model_state``, used with ``ema_params``; None without either.
        recipe: functions and constants that define a step.

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
    model_state: PyTree
    ema_model_state: PyTree = None
    recipe: Recipe = flax.struct.field(pytree_node=False, kw_only=True)

    @property
    def eval_params(self) -> PyTree:
        """The parameters for evaluation: ``ema_params`` if there are any, else ``params``."""
        return self.params if self.ema_params is None else self.ema_params

    @property
    def eval_model_state(self) -> PyTree:
        """The model state that belongs to ``eval_params``."""
        return self.model_state if self.ema_model_state is None else self.ema_model_state


def create_train_state(
    model: Any,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    example_loss: ExampleLoss = cross_entropy,
    loss_fn: LossFn | None = None,
    gradient_fn: GradientFn = mean_gradient,
    augment: Augment | None = None,
    ema_decay: float | None = None,
    image_shape: Shape = (28, 28, 1),
    train_argument: str | None = None,
) -> TrainState:
    """Initialises a model and its optimizer, in one compiled program.

    Args:
        model: maps ``float32[B, H, W, C]`` to logits ``float32[B, K]``: a Flax Linen module; a Flax NNX module
            instance; an Equinox module, which takes one image ``[H, W, C]``; or a pair of functions
            ``(init(key) -> params, apply(params, image) -> logits)``. NNX and Equinox instances keep their parameters.
        tx: any optax transformation.
        key: PRNG key, ``jax.random.key(seed)``.
        example_loss: maps logits ``float32[B, K]`` and labels to a loss per example, ``float32[B]``. Evaluation uses
            it, and so does training unless ``loss_fn`` is given.
        loss_fn: the general form of the training loss, ``(params, state, batch, key) -> (loss, (Metrics,
            model_state))``; see :mod:`mnist_jax.core.losses`.
        gradient_fn: computes its gradient, ``(loss_fn, state, batch, key) -> (grads, Metrics, model_state)``; see
            :mod:`mnist_jax.core.gradients`.
        augment: distorts training images; maps ``float32[B, H, W, C]`` in [0, 1] and a key to the same shape, for
            example a :class:`mnist_jax.Augmentation`.
        ema_decay: largest decay of an exponential moving average (EMA) of the parameters, used in evaluation; see
            :class:`mnist_jax.Recipe`.
        image_shape: ``(H, W, C)`` of one image.
        train_argument: the argument that switches a Linen module to training mode, if it is not ``train``,
            ``deterministic`` or ``use_running_average``; ``state.recipe.model`` has the one in use.

    Returns:
        The state before the first step.

    Raises:
        TypeError: the model is of an unknown kind, or a field of the recipe is not hashable.
        ValueError: the model does not map images to logits, it has dropout or batch norm but no argument that switches
            to training mode, or ``ema_decay`` lies outside [0, 1).

    Example:
        >>> from mnist_jax import MLP
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> state.params["Dense_0"]["kernel"].shape
        (784, 8)
    """
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), or None for no average, got {ema_decay}")
    init_key, train_key = jax.random.split(key)
    image_shape = tuple(image_shape)
    adapter, initialise = adapt_model(model, image_shape=image_shape, train_argument=train_argument)
    variables = initialise(init_key)
    recipe = Recipe(
        model=adapter,
        tx=tx,
        loss_fn=MeanLoss(example_loss) if loss_fn is None else loss_fn,
        gradient_fn=gradient_fn,
        example_loss=example_loss,
        augment=augment,
        ema_decay=ema_decay,
        image_shape=image_shape,
        num_classes=_count_classes(adapter, variables, image_shape),
    )
    try:
        hash(recipe)
    except TypeError as error:
        raise TypeError(f"the recipe of a state must be hashable, got {error}") from None
    return begin_training(recipe, variables, train_key)


def _count_classes(adapter: Adapter, variables: Variables, image_shape: Shape) -> int:
    image = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    logits, _ = jax.eval_shape(adapter.apply, *variables, image)
    if not hasattr(logits, "shape") or len(logits.shape) != 2 or logits.shape[0] != 2:
        found = list(logits.shape) if hasattr(logits, "shape") else type(logits).__name__
        raise ValueError(f"model must map images {list(image.shape)} to logits [2, K], got {found}")
    return int(logits.shape[1])


@functools.partial(jax.jit, static_argnums=0)
def begin_training(recipe: Recipe, variables: Variables, train_key: jax.Array) -> TrainState:
    """Creates the state before the first step from given parameters and model state."""
    params, model_state = variables
    has_ema = recipe.ema_decay is not None
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=recipe.tx.init(params),
        key=train_key,
        ema_params=params if has_ema else None,
        model_state=model_state,
        ema_model_state=model_state if has_ema and jax.tree.leaves(model_state) else None,
        recipe=recipe,
    )


def count_parameters(params: Any) -> int:
    """Counts the scalars in a parameter tree.

    Example:
        >>> count_parameters({"kernel": jax.numpy.zeros((3, 4)), "bias": jax.numpy.zeros(4)})
        16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
