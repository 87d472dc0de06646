"""``load_run`` loads config and state from a run directory.

config, state = load_run("runs/mine")              # the newest state
config, state = load_run("runs/mine", best=True)   # the one with the best validation accuracy
load_run_dataset("runs/mine")   # the data it was trained on
load_class_names("runs/mine")   # K names
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any

import jax
import optax

from mnist_jax.config import TrainConfig
from mnist_jax.core.epoch import count_steps
from mnist_jax.core.state import TrainState
from mnist_jax.data import Dataset, class_names_of, load_dataset
from mnist_jax.errors import InputError
from mnist_jax.training.build import build_state
from mnist_jax.training.devices import check_device
from mnist_jax.training.directory import describe_model, read_data, read_history
from mnist_jax.training.kept import take_kept
from mnist_jax.training.runs import read_run_config

_log = logging.getLogger("mnist_jax")


def load_run(
    directory: str | os.PathLike[str],
    *,
    model: Any = None,
    tx: optax.GradientTransformation | None = None,
    state: TrainState | None = None,
    best: bool = False,
) -> tuple[TrainConfig, TrainState]:
    """Loads the config and the newest or best state of a run, for evaluation or further training.

    The directory is only read, so a run can be loaded while it trains.

    Args:
        directory: the run directory.
        model: the model that was passed to ``fit``, if any.
        tx: the optimizer that was passed to ``fit``, if any.
        state: for a run of ``fit(state=...)``: a state with the same recipe and shapes.
        best: load the checkpoint with the best validation accuracy, instead of the newest.

    Returns:
        The config, and the state with the optimizer and schedule of its training.

    Raises:
        InputError: the directory holds no run or no intact checkpoint, or ``model`` is not the model of the run.

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
    config = read_run_config(directory)
    check_device()
    data = read_data(directory) or {}
    step = _find_best_step(directory) if best else None
    if state is not None:
        return config, restore_checkpoint(directory, state, step=step)
    if model is None and data.get("model") is not None:
        raise InputError(f"{directory}: the run has {describe_model(data['model'])}: in Python, pass it as model=")
    if tx is None and data.get("has_own_optimizer"):
        raise InputError(f"{directory}: the run has a custom optimizer: in Python, pass it as tx=")
    # Without data.json any number will do, see build_state.
    num_train = max(data.get("num_train", 0), config.batch_size)
    num_steps = config.epochs * count_steps(num_train, config.batch_size)
    build = functools.partial(build_state, config, num_steps, num_classes=len(load_class_names(directory)))
    like = jax.eval_shape(functools.partial(build, model=model, tx=tx))  # allocates nothing, whatever the config says
    if model is not None and data.get("model") != like.recipe.model.name:
        given = describe_model(like.recipe.model.name)
        raise InputError(f"{directory}: the run has {describe_model(data.get('model'))}, got {given}")
    return config, restore_checkpoint(directory, like, step=step)


def _find_best_step(directory: Path) -> int:
    """Returns the step of the checkpoint with the best validation accuracy, the newest of equals."""
    from mnist_jax.training.checkpoint import find_checkpoints, saved_steps  # loads Orbax

    history, steps = read_history(directory), saved_steps(find_checkpoints(directory))
    saved = [line for line in history if line.get("step") in steps]
    if not saved:
        raise InputError(f"{directory}: expected a checkpoint of an epoch in metrics.jsonl, found none")

    def rank(line: dict[str, Any]) -> tuple[float, int]:
        return line["validation_accuracy"], line["epoch"]

    line, best = max(saved, key=rank), max(history, key=rank)
    if best["validation_accuracy"] > line["validation_accuracy"]:
        _log.warning(
            "%s: epoch %d has the best validation accuracy, but no checkpoint: taking step %d of epoch %d",
            *(directory, best["epoch"], line["step"], line["epoch"]),
        )
    return int(line["step"])


def load_run_dataset(
    directory: str | os.PathLike[str], *, data_dir: str | None = None, stream: bool = False
) -> Dataset:
    """Loads the data that a run was trained on, with the training examples that it kept.

    Args:
        directory: the run directory.
        data_dir: directory searched first; None for the one that the run used.
        stream: whether the training examples stay on disk.

    Raises:
        InputError: the directory holds no run, or the data cannot be read.

    Example:
        >>> import tempfile
        >>> from mnist_jax import fit
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
        ...     dataset = load_run_dataset(run.workdir)
        >>> dataset.train.num_examples
        1350
    """
    directory = Path(directory)
    config, path = read_run_config(directory), (read_data(directory) or {}).get("path")
    found = path if path is not None and Path(path).is_dir() else None  # where the data was read from
    dataset = load_dataset(
        config.data,
        data_dir=data_dir or config.data_dir or found,
        num_validation=config.num_validation,
        stream=stream,
    )
    return take_kept(dataset, directory)


def load_class_names(directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """Loads the K class names of the data that a run was trained on.

    Raises:
        InputError: the directory holds no run.
    """
    directory = Path(directory)
    config, data = read_run_config(directory), read_data(directory) or {}
    return tuple(data.get("class_names") or class_names_of(config.data))
