"""``RecordDynamics`` records the values of each training example, epoch by epoch; ``load_dynamics`` reads them.

fit(config, callbacks=[RecordDynamics()])     # or TrainConfig(record=True)
load_dynamics("runs/mine").margin             # float32[E, N]

dynamics/epoch_0001.npz   loss, correct, margin and confidence of the N training examples, in their order
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.atomic import atomic_write
from mnist_jax.errors import InputError
from mnist_jax.training import processes
from mnist_jax.training.callbacks import Callback

if TYPE_CHECKING:
    from mnist_jax.core.dynamics import Dynamics
    from mnist_jax.core.metrics import ExampleMetrics
    from mnist_jax.training.run import Training

_NAMES = ("loss", "correct", "margin", "confidence")


class RecordDynamics(Callback):
    """Writes what each epoch records of the training examples into the directory ``dynamics`` of the run.

    Example:
        >>> import tempfile
        >>> from mnist_jax import TrainConfig, fit
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     config = TrainConfig(data="digits", hidden_sizes=(8,), epochs=2, workdir=directory + "/run", quiet=True)
        ...     run = fit(config, callbacks=[RecordDynamics()])
        ...     dynamics = load_dynamics(run.workdir)
        >>> dynamics.margin.shape
        (2, 1350)
    """

    needs_examples = True

    def on_begin(self, training: Training) -> None:
        """Reads the values of the epoch in which a run was interrupted."""
        path = _path(training.directory.path, len(training.history) + 1)
        if training.step % training.steps_per_epoch and path.exists():
            training.examples = _read(path)

    def on_epoch_end(self, training: Training) -> None:
        """Writes the values of the epoch."""
        self._write(training)

    def on_interrupt(self, training: Training) -> None:
        """Writes the values of the epoch so far."""
        self._write(training)

    def _write(self, training: Training) -> None:
        if not processes.is_first():
            return
        path = _path(training.directory.path, training.epoch)
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path, locked=True) as file:
            arrays: dict[str, Any] = {name: np.asarray(getattr(training.examples, name)) for name in _NAMES}
            np.savez(file, **arrays)


def load_dynamics(run: str | os.PathLike[str]) -> Dynamics:
    """Loads what a run recorded of its training examples in the epochs that it finished.

    Args:
        run: the run directory.

    Raises:
        InputError: the run recorded nothing, or a file cannot be read.

    Example:
        See :class:`RecordDynamics`.
    """
    from mnist_jax.core.dynamics import Dynamics

    directory = Path(run)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; train a run with --record first, or name its directory")
    epochs: list[ExampleMetrics] = []
    for path in sorted(directory.glob("dynamics/epoch_*.npz")):
        examples = _read(path)
        if not np.isnan(examples.loss).any():  # else the run was interrupted or resumed in this epoch
            epochs.append(examples)
    if not epochs:
        raise InputError(f"{directory}: expected values of each example, found none; train the run with --record")
    if len({epoch.loss.shape for epoch in epochs}) > 1:
        raise InputError(f"{directory / 'dynamics'}: expected as many examples in each epoch, got different numbers")
    return Dynamics.stack(epochs)


def _path(directory: Path, epoch: int) -> Path:
    return directory / "dynamics" / f"epoch_{epoch:04}.npz"


def _read(path: Path) -> ExampleMetrics:
    from mnist_jax.core.metrics import ExampleMetrics

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in _NAMES}
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected the arrays {', '.join(_NAMES)} ({error})") from None
    kinds = {name: np.bool_ if name == "correct" else np.float32 for name in _NAMES}
    if any(values[name].dtype != kinds[name] or values[name].shape != (len(values["loss"]),) for name in _NAMES):
        raise InputError(f"{path}: expected a float32[N] each, and bool[N] for correct, got something else")
    return ExampleMetrics(**values)
