"""Losses: ``example_loss``, which most people replace, and ``loss_fn``, the general form.

    create_train_state(model, tx, key, example_loss=my_loss)                             # (logits, label) -> float[B]
    create_train_state(model, tx, key, example_loss=CrossEntropy(label_smoothing=0.1))
    create_train_state(model, tx, key, loss_fn=VirtualAdversarialLoss(radius=2.0))

A ``loss_fn`` is any function ``(params, state, batch, key) -> (loss, (Metrics, model_state))``; ``MeanLoss`` makes one
from an ``example_loss``. The losses here are frozen dataclasses rather than closures: two with the same attributes are
equal, and share one compiled program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from mnist_jax.core.apply import apply_model, scale_image
from mnist_jax.core.checks import check_image, check_label
from mnist_jax.core.metrics import Metrics, compute_metrics

if TYPE_CHECKING:
    from mnist_jax.core.state import ExampleLoss, PyTree, TrainState

# Folded into the key of a step; Flax folds in hashes of layer names.
_AUGMENT, _PERTURBATION = 1, 2
# L2 length of the random perturbation at which virtual adversarial training takes the gradient.
_PROBE = 1e-1


def cross_entropy(logits: jax.Array, label: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Computes the softmax cross-entropy of each example.

    Args:
        logits: ``float32[B, K]``.
        label: ``int[B]`` in [0, K), or class probabilities ``float[B, K]``.
        label_smoothing: share of the target to spread over all classes, in [0, 1).

    Returns:
        ``float32[B]``, in nats; NaN where an integer label lies outside [0, K).

    Raises:
        ValueError: the label has the wrong shape or dtype.

    Example:
        >>> [round(loss, 3) for loss in cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 7])).tolist()]
        [2.303, 2.303]
    """
    label = jnp.asarray(label)
    check_label(logits, label)
    if label.ndim == 2:
        return optax.losses.softmax_cross_entropy(logits, optax.smooth_labels(label, label_smoothing))
    if label_smoothing:
        target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), label_smoothing)
        losses = optax.losses.softmax_cross_entropy(logits, target)
    else:
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
    return jnp.where((label >= 0) & (label < logits.shape[-1]), losses, jnp.nan)


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Applies :func:`cross_entropy` with label smoothing, as an ``example_loss``.

    Attributes:
        label_smoothing: share of the target to spread over all classes, in [0, 1).

    Raises:
        ValueError: ``label_smoothing`` lies outside [0, 1).

    Example:
        >>> CrossEntropy(label_smoothing=0.1)(jnp.zeros((1, 10)), jnp.array([3])).shape
        (1,)
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def __call__(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Computes the loss of each example."""
        return cross_entropy(logits, label, self.label_smoothing)


def _mean_loss(
    losses: jax.Array, logits: jax.Array, state: TrainState, batch: Mapping[str, Any], model_state: PyTree
) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
    """Averages losses into the result of a ``loss_fn``; loss and gradient are 0 if every example is masked."""
    metrics = compute_metrics(logits, batch["label"], losses, batch.get("mask"), state.recipe.record)
    loss = metrics.loss_sum / jnp.maximum(metrics.count, 1).astype(metrics.loss_sum.dtype)
    return loss, (metrics, model_state)


@dataclasses.dataclass(frozen=True)
class MeanLoss:
    """Averages an ``example_loss`` over a batch, as a ``loss_fn``.

    Attributes:
        example_loss: ``(logits, label) -> float[B]``.

    Example:
        >>> import numpy as np
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0), loss_fn=MeanLoss())
        >>> batch = {"image": np.zeros((4, 28, 28, 1), np.uint8), "label": np.arange(4)}
        >>> loss, (metrics, _) = state.recipe.loss_fn(state.params, state, batch)
        >>> bool(loss == metrics.loss)
        True
    """

    example_loss: ExampleLoss = cross_entropy

    def __call__(
        self, params: PyTree, state: TrainState, batch: Mapping[str, Any], key: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Computes the loss, the metrics and the new model state of a batch."""
        logits, model_state = apply_model(state, params, batch["image"], key)
        losses = self.example_loss(logits, batch["label"])
        return _mean_loss(losses, logits, state, batch, model_state)


@dataclasses.dataclass(frozen=True)
class VirtualAdversarialLoss:
    """Penalises predictions that change close to an image (virtual adversarial training), as a ``loss_fn``.

    Adds the KL divergence between the predictions for an image and for the image under its worst perturbation of a
    given L2 length. This needs no labels, and does not assume which pixels are neighbours.

    Attributes:
        radius: L2 length of the perturbation, for pixels in [0, 1].
        example_loss: ``(logits, label) -> float[B]``, to which the divergence is added.

    Raises:
        ValueError: ``radius`` is negative or not finite.

    Reference: Miyato et al. (2017), https://arxiv.org/abs/1704.03976, with one step of the power method.

    Example:
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(
        ...     MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0), loss_fn=VirtualAdversarialLoss(radius=2.0)
        ... )
        >>> state.recipe.loss_fn.radius
        2.0
    """

    radius: float
    example_loss: ExampleLoss = cross_entropy

    def __post_init__(self) -> None:
        if not 0 <= self.radius < math.inf:
            raise ValueError(f"radius must be a finite number, 0 or above, got {self.radius}")

    def __call__(
        self, params: PyTree, state: TrainState, batch: Mapping[str, Any], key: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Computes the loss, the metrics and the new model state of a batch; without a key it adds no divergence."""
        logits, model_state = apply_model(state, params, batch["image"], key)
        losses = self.example_loss(logits, batch["label"])
        if key is not None:
            image = scale_image(batch["image"])
            losses += adversarial_divergences(state, params, image, logits, key, self.radius)
        return _mean_loss(losses, logits, state, batch, model_state)


def adversarial_divergences(
    state: TrainState, params: PyTree, image: jax.Array, logits: jax.Array, key: jax.Array, radius: float
) -> jax.Array:
    """Computes the KL divergence of the predictions under the worst perturbation of length ``radius``.

    Args:
        state: supplies the model.
        params: parameters of the model.
        image: ``float32[B, H, W, C]``.
        logits: ``float32[B, K]``, of ``image`` with the same key.
        key: PRNG key of training mode; an image and its perturbations share one dropout mask.
        radius: L2 length, for pixels in [0, 1].

    Returns:
        ``float32[B]``, in nats.
    """
    log_target = jax.nn.log_softmax(jax.lax.stop_gradient(logits))

    def divergences(params: PyTree, perturbation: jax.Array) -> jax.Array:
        perturbed, _ = apply_model(state, params, image + perturbation, key)
        return jnp.sum(jnp.exp(log_target) * (log_target - jax.nn.log_softmax(perturbed)), axis=-1)

    start = _PROBE * _unit(jax.random.normal(jax.random.fold_in(key, _PERTURBATION), image.shape, image.dtype))
    fixed = jax.lax.stop_gradient(params)
    direction = jax.grad(lambda perturbation: divergences(fixed, perturbation).sum())(start)
    return divergences(params, radius * _unit(jax.lax.stop_gradient(direction)))


def _unit(x: jax.Array) -> jax.Array:
    """Divides each example by its L2 norm; zero stays zero."""
    # Scale by the largest entry first: where the model is certain, the squares of the gradient underflow.
    largest = jnp.max(jnp.abs(x), axis=(1, 2, 3), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True))
    return x / jnp.where(length > 0, length, 1)


def loss_fn(
    params: PyTree, state: TrainState, batch: Mapping[str, Any], key: jax.Array | None = None
) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
    """Computes the training loss of a batch: the recipe's ``loss_fn`` on images distorted by the recipe's ``augment``.

    Args:
        params: parameters of the model, by which ``jax.grad`` differentiates.
        state: supplies the recipe and the model state.
        batch: ``{"image": uint8 or float[B, H, W, C], "label": int[B] or float[B, K]}``, optionally ``"mask"``.
        key: PRNG key of dropout and augmentation; None runs the model in evaluation mode, without augmentation.

    Returns:
        The scalar loss, and ``(metrics, model_state)``.

    Example:
        >>> import numpy as np
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> batch = {"image": np.zeros((4, 28, 28, 1), np.uint8), "label": np.arange(4)}
        >>> grads, (metrics, _) = jax.grad(loss_fn, has_aux=True)(state.params, state, batch)
        >>> grads["Dense_0"]["kernel"].shape
        (784, 8)
    """
    recipe = state.recipe
    if key is not None and recipe.augment is not None:
        check_image(recipe, batch["image"])
        augment_key = jax.random.fold_in(key, _AUGMENT)
        batch = {**batch, "image": recipe.augment(scale_image(batch["image"]), augment_key)}
    return recipe.loss_fn(params, state, batch, key)
