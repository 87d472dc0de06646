"""Defines the callbacks of ``fit``, which write the files of a run and report progress; add your own.

class StopEarly(Callback):
    def on_epoch_end(self, training):
        if training.history[-1]["validation_accuracy"] > 0.99:
            training.stop()

fit(config, callbacks=[StopEarly()])
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mnist_jax.training import processes
from mnist_jax.training.progress import Progress
from mnist_jax.training.run import train_label

if TYPE_CHECKING:
    from mnist_jax.training.run import Training

_METRICS = ("loss", "accuracy")
_log = logging.getLogger("mnist_jax")


class Callback:
    """Handles the events of ``fit``: subclass it, and override the methods that you need.

    Each method gets the :class:`Training`, with the current ``state``, ``metrics``, ``history`` and ``validation``. The
    buffers of the state are donated to the next chunk: copy what you want to keep. Each of several processes calls your
    callbacks: write files in one of them, where ``jax.process_index() == 0``.

    Attributes:
        needs_examples: whether training records the values of each example in ``training.examples``; see
            :class:`mnist_jax.RecordDynamics`.

    Example:
        >>> class CountChunks(Callback):
        ...     count = 0
        ...
        ...     def on_chunk(self, training):
        ...         self.count += 1
        >>> from mnist_jax import TrainConfig, fit
        >>> import tempfile
        >>> counter = CountChunks()
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     config = TrainConfig(data="digits", hidden_sizes=(8,), epochs=1, workdir=directory + "/run", quiet=True)
        ...     _ = fit(config, callbacks=[counter])
        >>> counter.count > 0
        True
    """

    needs_examples: bool = False

    def on_begin(self, training: Training) -> None:
        """Called before the first step of this call of ``fit``."""

    def on_epoch_begin(self, training: Training) -> None:
        """Called before an epoch, or before the rest of an interrupted one."""

    def on_chunk(self, training: Training) -> None:
        """Called after each chunk of an epoch, about twice a second."""

    def on_epoch_end(self, training: Training) -> None:
        """Called after an epoch and its evaluation of the validation split."""

    def on_interrupt(self, training: Training) -> None:
        """Called when a signal ends training in the middle of an epoch."""

    def on_finish(self, training: Training) -> None:
        """Called after the evaluation of the test split; ``training.summary`` and ``training.test`` are set."""

    def on_close(self, training: Training) -> None:
        """Called at the very end, also after an error."""


class MetricsFile(Callback):
    """Writes ``metrics.jsonl``."""

    def on_epoch_end(self, training: Training) -> None:
        """Writes the lines of all epochs so far."""
        training.directory.write_history(training.history)


class Checkpoints(Callback):
    """Saves checkpoints, with the sums of an unfinished epoch and the seconds so far."""

    def on_epoch_end(self, training: Training) -> None:
        """Saves every ``checkpoint_every`` epochs, and after the last one."""
        training.poll()  # a callback before this one may have asked to stop, in one process
        config, epoch = training.config, training.epoch
        if epoch % config.checkpoint_every == 0 or epoch == config.epochs or training.is_stopping:
            self._save(training, {"validation_accuracy": training.history[-1]["validation_accuracy"]})

    def on_interrupt(self, training: Training) -> None:
        """Saves in the middle of an epoch."""
        self._save(training, {})

    def _save(self, training: Training, metrics: dict[str, float]) -> None:
        from mnist_jax.training.checkpoint import save_checkpoint

        save_checkpoint(
            training.directory.checkpoints,
            training.state,
            metrics=metrics,
            progress=training.progress(),
            keep=training.config.keep_checkpoints,
        )


class TensorBoard(Callback):
    """Writes loss, accuracy, learning rate, epsilon and the learning curves as TensorBoard events."""

    def __init__(self) -> None:
        self._events: Any = None

    def on_begin(self, training: Training) -> None:
        """Begins an event file, and purges events later than the checkpoint of a resumed run."""
        from mnist_jax.report.tensorboard import EventFile

        self._events = EventFile(training.directory.path, purge_step=training.step + 1)

    def on_epoch_end(self, training: Training) -> None:
        """Adds the numbers of the epoch."""
        line = training.history[-1]
        values = {f"{name}/{split}": line[f"{split}_{name}"] for name in _METRICS for split in ("train", "validation")}
        values |= {name: line[name] for name in ("learning_rate", "epsilon") if name in line}
        self._events.add_scalars(values, training.step)

    def on_finish(self, training: Training) -> None:
        """Adds the numbers of the test split and the learning curves."""
        self._events.add_scalars({f"{name}/test": training.summary[f"test_{name}"] for name in _METRICS}, training.step)
        curves = training.directory.path / "figures" / "learning_curves.png"
        if curves.exists():
            self._events.add_image(curves, training.step)


class ModelTable(Callback):
    """Prints the layers of the model on stderr; not one of the callbacks that ``fit`` adds."""

    def on_begin(self, training: Training) -> None:
        """Prints the table and an empty line."""
        from mnist_jax.training.describe import model_table

        print(f"{model_table(training.state)}\n", file=sys.stderr)


class ProgressReport(Callback):
    """Reports on stderr: a progress bar on a terminal or in a notebook, and a line per epoch."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def on_epoch_begin(self, training: Training) -> None:
        """Opens the bar of the epoch."""
        config = training.config
        if self._progress is None:
            num_train = training.dataset.train.num_examples
            self._progress = Progress(config.epochs, num_train, config.quiet, config.progress)
        self._progress.begin_epoch(training.epoch, int(training.metrics.count))

    def on_chunk(self, training: Training) -> None:
        """Moves the bar."""
        assert self._progress is not None
        total = training.metrics
        self._progress.update(int(training.chunk_metrics.count), float(total.loss), float(total.accuracy))

    def on_epoch_end(self, training: Training) -> None:
        """Prints the line of the epoch."""
        assert self._progress is not None
        self._progress.end_epoch(training.history[-1])

    def on_close(self, training: Training) -> None:
        """Removes the bar."""
        del training
        if self._progress is not None:
            self._progress.close()


class EarlyStopping(Callback):
    """Stops after ``config.early_stopping`` epochs without a lower validation loss.

    It decides from the history alone, so a resumed run stops after the same epoch.
    """

    def on_begin(self, training: Training) -> None:
        """Stops a resumed run whose history says so."""
        self.on_epoch_end(training)

    def on_epoch_end(self, training: Training) -> None:
        """Stops if enough epochs have passed since the best."""
        losses, patience = [line["validation_loss"] for line in training.history], training.config.early_stopping
        if patience is None or not losses or len(losses) >= training.config.epochs:
            return
        best = losses.index(min(losses)) + 1
        if len(losses) - best >= patience:
            training.stop(f"no lower validation loss than {losses[best - 1]:.4f} of epoch {best}")


class PrivacyBudget(Callback):
    """Stops a private run before the epoch that would exceed ``config.dp_epsilon``."""

    def on_begin(self, training: Training) -> None:
        """Stops a resumed run whose budget is spent."""
        self.on_epoch_end(training)

    def on_epoch_end(self, training: Training) -> None:
        """Stops if another epoch does not fit."""
        budget, privacy, epochs = training.config.dp_epsilon, training.privacy, len(training.history)
        if privacy is None or budget is None or not epochs or epochs >= training.config.epochs:
            return
        if (after := privacy.epsilon((epochs + 1) * training.steps_per_epoch)) > budget:
            training.stop(f"another epoch would exceed dp_epsilon {budget:g}, with an epsilon of {after:.3f}")


class SummaryFile(Callback):
    """Writes ``summary.json``, which marks the run as finished."""

    def on_finish(self, training: Training) -> None:
        """Writes the summary."""
        training.directory.write_summary(training.summary)


class LearningCurves(Callback):
    """Draws ``figures/learning_curves.png``."""

    def on_finish(self, training: Training) -> None:
        """Draws the figure; a failure is only logged, as the run is complete without it."""
        from mnist_jax.report.figures import learning_curves

        path = training.directory.path / "figures" / "learning_curves.png"
        try:
            title = f"{training.summary['model']} on {training.dataset.name}"
            learning_curves(training.history, path, title, train_label(training.config, training.model, training.state))
        except Exception as error:
            _log.warning("%s could not be drawn (%s); the run is complete", path, " ".join(str(error).split()))


def arrange_callbacks(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    """Returns the library's callbacks and the user's, in the order in which they are called.

    The summary comes first, so that no failing callback prevents it; checkpoints come last, so that they see a stop. Of
    several processes, only the first writes other files and reports.
    """
    of_first = (SummaryFile(), MetricsFile(), LearningCurves(), TensorBoard(), ProgressReport())
    return (*(of_first if processes.is_first() else ()), EarlyStopping(), PrivacyBudget(), *callbacks, Checkpoints())
