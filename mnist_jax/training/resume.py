"""``restore_run`` continues a run from the newest checkpoint in its directory.

``RunDirectory.claim`` has already checked the settings that must not change.
"""

from __future__ import annotations

import logging
import math

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.training import processes
from mnist_jax.training.run import Training, describe_data

_log = logging.getLogger("mnist_jax")


def restore_run(training: Training) -> None:
    """Restores state, history and seconds of a run to resume; does nothing to a new run.

    Raises:
        InputError: the data or the model differs, fewer epochs are requested than are trained already, or the files of
            the run cannot be read.
    """
    from mnist_jax.training.checkpoint import (
        clear_unfinished,
        delete_old,
        read_progress,
        restore_checkpoint,
        saved_steps,
    )

    directory, config = training.directory, training.config
    if directory.saved is None:
        return
    directory.check_data(describe_data(training))
    processes.first(lambda: clear_unfinished(directory.checkpoints))
    if not processes.first(lambda: saved_steps(directory.checkpoints)):
        _log.warning("%s holds no checkpoint: the run starts again", directory.checkpoints)
        return
    training.state = restore_checkpoint(directory.checkpoints, training.state, set_aside=True)
    training.step = int(training.state.step)
    num_epochs = training.step // training.steps_per_epoch
    training.history = directory.read_history(num_epochs)
    _check_epochs(config, directory.saved, num_epochs)
    progress = read_progress(directory.checkpoints, training.step)
    trained = math.fsum(line["seconds"] for line in training.history)
    before = progress.get("seconds") or {"train": trained, "total": trained}
    for name in training.seconds:
        training.seconds[name] += before.get(name, 0.0)
    training.seconds_before = before["total"]
    if epoch := progress.get("epoch"):
        training.set_epoch_sums(epoch["loss_sum"], epoch["correct"], epoch["count"], epoch["seconds"])
    # A killed process may have saved without deleting.
    processes.first(lambda: delete_old(directory.checkpoints, config.keep_checkpoints))


def _check_epochs(config: TrainConfig, saved: TrainConfig, num_epochs: int) -> None:
    if config.epochs < num_epochs:
        raise InputError(f"epochs must be at least the {num_epochs} trained already, got {config.epochs}")
    if config.epochs != saved.epochs and config.schedule != "constant":
        _log.warning(
            "the %s schedule now spans %d epochs instead of %d: an uninterrupted run would differ",
            config.schedule,
            config.epochs,
            saved.epochs,
        )
