"""Builds model, loss, augmentation and initial state from a ``TrainConfig``.

state = build_state(config, num_steps=config.epochs * steps_per_epoch)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mnist_jax.config import TrainConfig
from mnist_jax.core.augment import Augmentation
from mnist_jax.core.gradients import AccumulatedGradient, mean_gradient
from mnist_jax.core.losses import CrossEntropy, MeanLoss, VirtualAdversarialLoss, cross_entropy
from mnist_jax.core.state import ExampleLoss, GradientFn, LossFn, TrainState, create_train_state
from mnist_jax.data import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.cnn import CNN
from mnist_jax.models.mlp import MLP
from mnist_jax.training.optimizer import build_optimizer
from mnist_jax.training.privacy import PrivateGradient


def build_state(
    config: TrainConfig,
    num_steps: int = 1,
    key: jax.Array | None = None,
    *,
    model: Any = None,
    tx: optax.GradientTransformation | None = None,
    num_classes: int = 10,
) -> TrainState:
    """Builds the initial state of a run.

    Args:
        config: the run.
        num_steps: steps of the whole run, for the schedule; any number will do if the state is only evaluated.
        key: source of all randomness; default ``jax.random.key(config.seed)``.
        model: replaces the one that the config describes; see :func:`mnist_jax.create_train_state`.
        tx: replaces the optimizer that the config describes.
        num_classes: K.

    Example:
        >>> state = build_state(TrainConfig(hidden_sizes=(8,), augment_shift=2))
        >>> state.recipe.augment.shift
        2.0
    """
    return create_train_state(
        build_model(config, num_classes) if model is None else model,
        build_optimizer(config, num_steps) if tx is None else tx,
        jax.random.key(config.seed) if key is None else key,
        loss_fn=build_loss(config),
        gradient_fn=build_gradient(config, has_own_model=model is not None),
        augment=build_augmentation(config),
        ema_decay=config.ema_decay,
    )


def build_loss(config: TrainConfig) -> LossFn:
    """Builds the training loss; evaluation always uses the plain cross-entropy.

    Example:
        >>> build_loss(TrainConfig(label_smoothing=0.1))
        MeanLoss(example_loss=CrossEntropy(label_smoothing=0.1))
    """
    example_loss: ExampleLoss = CrossEntropy(config.label_smoothing) if config.label_smoothing else cross_entropy
    if config.adversarial_radius:
        return VirtualAdversarialLoss(config.adversarial_radius, example_loss)
    return MeanLoss(example_loss)


def build_gradient(config: TrainConfig, has_own_model: bool = False) -> GradientFn:
    """Builds the gradient function: private with ``dp_clip``, else of the whole batch or accumulated.

    Raises:
        InputError: ``dp_clip`` is given without ``dp_noise``, which :func:`mnist_jax.fit` finds from ``dp_epsilon``.

    Example:
        >>> build_gradient(TrainConfig(microbatch_size=16))
        AccumulatedGradient(microbatch_size=16)
    """
    if config.dp_clip is not None:
        if config.dp_noise is None:
            raise InputError("dp_noise must be given to build a private state, got None; fit finds it from dp_epsilon")
        size = choose_microbatch_size(config)
        return PrivateGradient(config.dp_clip, config.dp_noise, config.batch_size, size)
    microbatch_size = config.microbatch_size if has_own_model else choose_microbatch_size(config)
    return mean_gradient if microbatch_size is None else AccumulatedGradient(microbatch_size)


def check_batch_size(config: TrainConfig, dataset: Dataset) -> None:
    """Checks that the batch is not larger than the training split.

    Raises:
        InputError: the batch is larger.
    """
    num_train = dataset.train.num_examples
    if config.batch_size > num_train:
        raise InputError(
            f"batch_size must be at most the {num_train} training examples of {dataset.name}, got {config.batch_size}"
        )


def build_augmentation(config: TrainConfig) -> Augmentation | None:
    """Builds the augmentation; None if all amounts are 0.

    Example:
        >>> build_augmentation(TrainConfig()) is None
        True
    """
    augmentation = Augmentation(
        shift=config.augment_shift,
        rotation=config.augment_rotation,
        scale=config.augment_scale,
        shear=config.augment_shear,
        elastic=config.augment_elastic,
        smoothness=config.augment_smoothness,
        erasing=config.augment_erasing,
    )
    return augmentation if augmentation.changes_something else None


def choose_microbatch_size(config: TrainConfig) -> int | None:
    """Returns the microbatch size of the config or, if it has none, the fastest on this platform.

    The fastest is the whole batch (None), except for the CNN on CPU: 32, so that activations stay in the cache. With
    ``batch_norm`` the size changes the result: set it in the config if runs on GPU and CPU must match. With ``dp_clip``
    it bounds the number of gradients in memory: 16 on CPU, 256 elsewhere.

    Example:
        >>> choose_microbatch_size(TrainConfig(microbatch_size=16))
        16
    """
    if config.microbatch_size is None and config.dp_clip is not None:
        return min(config.batch_size, 16 if jax.default_backend() == "cpu" else 256)
    if config.microbatch_size is None and config.model == "cnn" and jax.default_backend() == "cpu":
        return 32
    return config.microbatch_size


def build_model(config: TrainConfig, num_classes: int = 10) -> MLP | CNN:
    """Builds the network.

    Example:
        >>> build_model(TrainConfig(hidden_sizes=(100,), dropout_rate=0.1))
        MLP(
            # attributes
            hidden_sizes = (100,)
            batch_norm = False
            dropout_rate = 0.1
            num_classes = 10
            dtype = None
        )
    """
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    if config.model == "mlp":
        return MLP(config.hidden_sizes, config.batch_norm, config.dropout_rate, num_classes, dtype)
    return CNN(
        channels=config.channels,
        kernel_sizes=config.kernel_sizes,
        pool_sizes=config.pool_sizes,
        padding=config.padding,
        dense_size=config.dense_size,
        batch_norm=config.batch_norm,
        dropout_rate=config.dropout_rate,
        num_classes=num_classes,
        dtype=dtype,
    )
