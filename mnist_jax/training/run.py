"""Defines ``Run``, a finished run, and ``Training``, a run in progress as callbacks see it; describes runs as JSON.

run = fit(config)                       # a Run
class Mine(Callback):
    def on_epoch_end(self, training):   # a Training
        print(training.history[-1])
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_jax.config import TrainConfig
from mnist_jax.data import Dataset
from mnist_jax.training.directory import RunDirectory
from mnist_jax.training.signals import StopSignals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnist_jax.core.evaluation import Evaluation
    from mnist_jax.core.state import TrainState
    from mnist_jax.training.callbacks import Callback
    from mnist_jax.training.privacy import Privacy


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds a finished run. A notebook shows its final numbers and learning curves.

    Attributes:
        config: the config, completed with the values that ``fit`` chose.
        state: the state after the last step.
        history: one entry per epoch, as in ``metrics.jsonl``.
        summary: the final numbers, as in ``summary.json``.
        test: the evaluation of the test split, with its logits.
        workdir: the run directory.

    Example:
        See :func:`fit`.
    """

    config: TrainConfig
    state: TrainState
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    test: Evaluation
    workdir: Path

    def __repr__(self) -> str:
        """Returns one line, without the arrays."""
        return f"<Run {self._title()}, test accuracy {self.summary['test_accuracy']:.2%}>"

    def plot(self) -> Figure:
        """Returns the learning curves as a matplotlib figure, which a notebook shows; pyplot is not used.

        Example:
            >>> import tempfile
            >>> from mnist_jax import fit
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
            >>> run.plot().get_suptitle()
            'mlp on digits'
        """
        from mnist_jax.report.display import add_notebook_display
        from mnist_jax.report.figures import draw_learning_curves

        label = train_label(self.config, self.summary["model"], self.state)
        return add_notebook_display(draw_learning_curves(self.history, self._title(), label))

    def _title(self) -> str:
        return f"{self.summary['model']} on {self.summary['dataset']}"

    def _repr_html_(self) -> str:
        """Returns final numbers and learning curves, for notebooks."""
        from mnist_jax.report.display import run_html

        return run_html(self.summary, self.plot())


@dataclasses.dataclass
class Training:
    """Holds a run in progress, as its callbacks see it.

    Attributes:
        config: the config, completed with the values that ``fit`` chose.
        dataset: the data set, three splits.
        directory: the run directory.
        sharding: sharding of a batch over the devices of the run; None for a single device.
        kept: ``int32[n]``, the training examples that ``config.keep_hardest`` kept; None for all.
        privacy: clipping, noise and accounting of a private run; else None.
        model: name of the model; ``has_own_model`` says whether the user passed it to ``fit``.
        state: the current state.
        step: steps taken.
        epoch: the epoch in progress or just finished, from 1.
        steps_per_epoch: S.
        metrics: sums over the current epoch so far.
        chunk_metrics: sums over the last chunk.
        examples: values of each training example in the current epoch so far, on the device: an
            :class:`mnist_jax.ExampleMetrics`. None unless ``config.record`` or a callback asks for them.
        history: one entry per finished epoch.
        validation: the newest evaluation of the validation split.
        test: the evaluation of the test split, at the end.
        summary: the final numbers, at the end.
        seconds: wall seconds by stage, added up over resumes.
        is_stopping: whether this epoch is the last one, because of a signal or :meth:`stop`.

    Example:
        See :class:`Callback`.
    """

    config: TrainConfig
    dataset: Dataset
    directory: RunDirectory
    seconds: dict[str, float]
    started: float
    signals: StopSignals
    callbacks: Sequence[Callback]
    sharding: Any = None
    kept: Any = None
    privacy: Privacy | None = None
    schedule: Callable[[int], Any] | None = None
    model: str = ""
    has_own_model: bool = False
    state: Any = None
    step: int = 0
    epoch: int = 0
    steps_per_epoch: int = 0
    metrics: Any = None
    chunk_metrics: Any = None
    examples: Any = None
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    validation: Evaluation | None = None
    test: Evaluation | None = None
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds_before: float = 0.0
    epoch_seconds: float = 0.0
    stop_requested: bool = False
    stop_reason: str | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether training ends after this epoch, because of a signal or :meth:`stop`."""
        return self.stop_requested or self.signals.requested is not None

    def stop(self, reason: str | None = None) -> None:
        """Ends training after this epoch; the run is then finished as usual.

        Args:
            reason: shown at the end and saved in the summary as ``stop_reason``.
        """
        self.stop_requested, self.stop_reason = True, reason or self.stop_reason

    def poll(self) -> None:
        """Agrees with the other processes of the run on whether to stop; waits for them."""
        self.stop_requested = self.signals.poll(self.stop_requested)

    def call(self, event: str) -> None:
        """Calls the method named ``event`` of every callback."""
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def total_seconds(self) -> float:
        """Returns the wall seconds of the run so far, over all resumes."""
        return self.seconds_before + time.perf_counter() - self.started

    def set_epoch_sums(self, loss_sum: float = 0.0, correct: int = 0, count: int = 0, seconds: float = 0.0) -> None:
        """Sets metrics and seconds of the epoch so far; by default to 0, for a new epoch. Clears ``examples``."""
        import jax
        import jax.numpy as jnp

        from mnist_jax.core.metrics import Metrics

        # On the host, as the metrics of a chunk are.
        self.metrics = jax.device_get(Metrics(jnp.float32(loss_sum), jnp.int32(correct), jnp.int32(count)))
        self.epoch_seconds, self.examples = seconds, None

    def progress(self) -> dict[str, Any]:
        """Returns what a checkpoint saves beside the state: seconds, and the sums of an unfinished epoch."""
        epoch = {name: getattr(self.metrics, name).item() for name in ("loss_sum", "correct", "count")}
        is_unfinished = self.step < self.epoch * self.steps_per_epoch
        return {
            "seconds": {**self.seconds, "total": self.total_seconds()},
            "epoch": {**epoch, "seconds": self.epoch_seconds} if is_unfinished else None,
        }


def describe_data(training: Training) -> dict[str, Any]:
    """Returns the content of ``data.json``: the data, and whether model or optimizer are the user's own."""
    dataset = training.dataset
    return {
        **dataset.identity(),
        "path": dataset.path,
        "class_names": [*dataset.class_names],
        "model": training.model if training.has_own_model else None,
        "has_own_optimizer": training.schedule is None,
    }


def summarise(training: Training) -> dict[str, Any]:
    """Returns the content of ``summary.json``."""
    from importlib.metadata import version
    from platform import python_version

    import mnist_jax
    from mnist_jax.core.state import count_parameters

    config, dataset, test, privacy = training.config, training.dataset, training.test, training.privacy
    assert test is not None
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    devices = sorted(training.state.step.devices(), key=lambda device: device.id)
    last = training.history[-1]
    return {
        "dataset": dataset.name,
        **({"notice": dataset.notice} if dataset.notice else {}),
        "data_path": dataset.path,
        "streamed": config.stream,
        "class_names": [*dataset.class_names],
        "num_train": dataset.train.num_examples,
        "num_validation": dataset.validation.num_examples,
        "num_test": dataset.test.num_examples,
        "model": training.model,
        "num_parameters": count_parameters(training.state.params),
        "epochs": len(training.history),
        **({"stop_reason": training.stop_reason} if training.stop_reason else {}),
        "steps": training.step,
        "total_steps": config.epochs * training.steps_per_epoch,
        "microbatch_size": config.microbatch_size,
        "seed": config.seed,
        **{name: last[name] for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")},
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        **({"epsilon": privacy.epsilon(training.step), **privacy.describe()} if privacy else {}),
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "versions": {
            "mnist_jax": mnist_jax.__version__,
            "python": python_version(),
            **{package: version(package) for package in packages},
        },
        "seconds": {**training.seconds, "total": training.total_seconds()},
    }


def train_label(config: TrainConfig, model: str, state: TrainState) -> str:
    """Returns the label of the training curve; dropout of a model that is not the config's is not known.

    Args:
        config: config of the run.
        model: name of its model.
        state: its state.
    """
    has_hidden_layers = config.model != "mlp" or config.hidden_sizes != ()
    uses_dropout = model == config.model and has_hidden_layers and config.dropout_rate > 0
    uses_augmentation = state.recipe.augment is not None
    names = " and ".join(["dropout"] * uses_dropout + ["augmentation"] * uses_augmentation)
    return f"train (with {names}, during the epoch)" if names else "train (during the epoch)"
