"""From a ``TrainConfig`` to the state that a run starts from, and from a run directory to the state it ended with.

state = build_state(config, num_steps=config.epochs * steps_per_epoch)
config, state = load_run("runs/mine")
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp

from mnist_jax.config import TrainConfig
from mnist_jax.core.augment import Augmentation
from mnist_jax.core.state import TrainState, create_train_state
from mnist_jax.data import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.cnn import CNN
from mnist_jax.models.mlp import MLP
from mnist_jax.training.directory import read_config
from mnist_jax.training.optimizer import build_optimizer


def build_state(config: TrainConfig, num_steps: int = 1, key: jax.Array | None = None) -> TrainState:
    """The state before the first step of the run that a config describes.

    Args:
        config: the run.
        num_steps: steps of the whole run, for the schedule; any number will do where the state is only evaluated.
        key: where all randomness comes from; default ``jax.random.key(config.seed)``.

    Example:
        >>> state = build_state(TrainConfig(hidden_sizes=(8,), augment_shift=2))
        >>> state.augment.shift
        2.0
    """
    return create_train_state(
        build_model(config),
        build_optimizer(config, num_steps),
        jax.random.key(config.seed) if key is None else key,
        ema_decay=config.ema_decay,
        label_smoothing=config.label_smoothing,
        microbatch_size=choose_microbatch_size(config),
        augment=build_augmentation(config),
        adversarial_radius=config.adversarial_radius,
    )


def load_run(directory: str | os.PathLike[str]) -> tuple[TrainConfig, TrainState]:
    """The config of a run, and its newest state, to be evaluated.

    To go on training, use ``--resume``: the schedule of this state has one step.

    Args:
        directory: of the run.

    Raises:
        InputError: it holds no run, or no checkpoint that can be read.

    Example:
        >>> import tempfile
        >>> from mnist_jax import fit
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
        ...     config, state = load_run(run.workdir)
        >>> int(state.step)
        11
    """
    from mnist_jax.training.checkpoint import restore_checkpoint  # loads Orbax

    path = Path(directory) / "config.json"
    if not path.is_file():
        raise InputError(f"{directory}: a run with a config.json wanted, found none")
    config = read_config(path)
    return config, restore_checkpoint(directory, like=build_state(config))


def check_batch_size(config: TrainConfig, dataset: Dataset) -> None:
    """Checks that a batch is not larger than the training split.

    Raises:
        InputError: it is.
    """
    num_train = dataset.train.num_examples
    if config.batch_size > num_train:
        raise InputError(
            f"batch_size must be at most the {num_train} training examples of {dataset.name}, got {config.batch_size}"
        )


def build_augmentation(config: TrainConfig) -> Augmentation | None:
    """What the ``augment_`` fields of a config describe; None if they are all 0.

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
    """Examples whose gradient is computed at a time: what the config says, or else what is fastest here.

    That is the whole batch (None), but 32 for the CNN on CPU, whose activations then stay in the cache. With
    ``batch_norm`` it is more than speed: name it in the config where a run on GPU is to equal one on CPU.

    Example:
        >>> choose_microbatch_size(TrainConfig(microbatch_size=16))
        16
    """
    if config.microbatch_size is None and config.model == "cnn" and jax.default_backend() == "cpu":
        return 32
    return config.microbatch_size


def build_model(config: TrainConfig) -> MLP | CNN:
    """The model that a config describes.

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
        return MLP(config.hidden_sizes, config.batch_norm, config.dropout_rate, dtype=dtype)
    return CNN(
        channels=config.channels,
        kernel_sizes=config.kernel_sizes,
        pool_sizes=config.pool_sizes,
        padding=config.padding,
        dense_size=config.dense_size,
        batch_norm=config.batch_norm,
        dropout_rate=config.dropout_rate,
        dtype=dtype,
    )
