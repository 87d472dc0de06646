"""``load_run``: from a run directory back to its config and its state.

config, state = load_run("runs/mine")
load_class_names("runs/mine")   # K names
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import optax

from mnist_jax.config import TrainConfig
from mnist_jax.core.state import TrainState
from mnist_jax.data import class_names_of
from mnist_jax.errors import InputError
from mnist_jax.training.build import build_state
from mnist_jax.training.directory import describe_model, read_config, read_data


def load_run(
    directory: str | os.PathLike[str],
    *,
    model: Any = None,
    tx: optax.GradientTransformation | None = None,
    state: TrainState | None = None,
) -> tuple[TrainConfig, TrainState]:
    """Loads the config of a run and its newest state, to be evaluated or trained further.

    Nothing in the directory is changed, so a run can be loaded while it is trained.

    Args:
        directory: of the run.
        model: the model of a run that was trained with one of your own, as it was passed to ``fit``.
        tx: the optimizer of such a run, likewise.
        state: a state like that of a run that was trained with ``fit(state=...)``, in place of both.

    Returns:
        The config, and the state with the schedule that it was trained with.

    Raises:
        InputError: it holds no run, or no checkpoint that can be read, or its model is not the one given.

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

    directory = Path(directory)
    config = _read_run(directory)
    data = read_data(directory) or {}
    if state is not None:
        return config, restore_checkpoint(directory, state)
    if model is None and data.get("model") is not None:
        raise InputError(f"{directory}: the run has {describe_model(data['model'])}: in Python, pass it as model=")
    if tx is None and data.get("has_own_optimizer"):
        raise InputError(f"{directory}: the run has an optimizer of its own: in Python, pass it as tx=")
    num_steps = config.epochs * -(-data.get("num_train", 1) // config.batch_size)
    like = build_state(config, num_steps, model=model, tx=tx, num_classes=len(load_class_names(directory)))
    if model is not None and data.get("model") != like.recipe.model.name:
        given = describe_model(like.recipe.model.name)
        raise InputError(f"{directory}: the run has {describe_model(data.get('model'))}, got {given}")
    return config, restore_checkpoint(directory, like)


def load_class_names(directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """Loads the names of the K classes that a run was trained on.

    Raises:
        InputError: it holds no run.
    """
    directory = Path(directory)
    config, data = _read_run(directory), read_data(directory) or {}
    return tuple(data.get("class_names") or class_names_of(config.data))


def _read_run(directory: Path) -> TrainConfig:
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory}: expected a run with a config.json, found none")
    return read_config(path)
