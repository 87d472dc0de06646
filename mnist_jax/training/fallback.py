"""Chooses the training of a run for which MNIST is not available, if the user left it at its defaults.

config = replace_default(config)            # trains as the preset "digits", or as configured
config = complete_resumed(config, saved)    # repeats this choice for a run to resume
"""

from __future__ import annotations

import dataclasses

from mnist_jax.config import TrainConfig
from mnist_jax.presets import preset

_FREE = ("num_validation", "seed")  # the user may set these, and the training is still the default one


def replace_default(config: TrainConfig) -> TrainConfig:
    """Returns a config with the training of the preset ``digits``, or ``config`` if it sets anything about training.

    Seed, size of the validation split, and output stay.

    Example:
        >>> replace_default(TrainConfig(seed=3)).model, replace_default(TrainConfig(epochs=3)).model
        ('cnn', 'mlp')
    """
    default = TrainConfig()
    unset = {name: value for name, value in vars(preset("digits")).items() if vars(config)[name] == vars(default)[name]}
    sets_training = config.training_fields().keys() - unset.keys() - {*_FREE}
    return config if sets_training else dataclasses.replace(config, **unset)


def complete_resumed(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """Returns a config with the training of the run to resume, if that began with :func:`replace_default`.

    Args:
        config: the config of the new process; it may change ``epochs`` and ``early_stopping``.
        saved: the config of the run.
    """
    begun = replace_default(dataclasses.replace(config, epochs=TrainConfig.epochs, early_stopping=None))
    if not {*saved.differences(begun)} <= {"epochs", "early_stopping", *_FREE}:
        return config
    epochs = saved.epochs if config.epochs == TrainConfig.epochs else config.epochs
    return dataclasses.replace(begun, epochs=epochs, early_stopping=config.early_stopping)
