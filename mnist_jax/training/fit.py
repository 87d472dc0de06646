"""``fit`` trains the model of a config, or your own, and writes a run directory.

    run = fit(TrainConfig(epochs=3))
    run = fit(TrainConfig(epochs=3), model=MyNet(rngs=nnx.Rngs(0)), tx=optax.lion(1e-4), callbacks=[MyCallback()])
    run.summary["test_accuracy"], run.state, run.workdir

Its stages are: prepare and compile (``prepare.py``), restore a run to resume (``resume.py``), train epoch by epoch,
evaluate the test split. Callbacks write the files of the run and report progress (``callbacks.py``).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mnist_jax.config import TrainConfig
from mnist_jax.data import Dataset
from mnist_jax.errors import NonFiniteLossError
from mnist_jax.training import processes
from mnist_jax.training.callbacks import Callback
from mnist_jax.training.kept import write_kept
from mnist_jax.training.prepare import Programs, compile_run, prepare_run
from mnist_jax.training.resume import restore_run
from mnist_jax.training.run import Run, Training, describe_data, summarise
from mnist_jax.training.signals import Stopped

if TYPE_CHECKING:
    import optax

    from mnist_jax.core.evaluation import Evaluation
    from mnist_jax.core.state import TrainState
    from mnist_jax.training.epochs import ChunkedEpoch


def fit(
    config: TrainConfig,
    *,
    dataset: Dataset | None = None,
    model: Any = None,
    tx: optax.GradientTransformation | None = None,
    state: TrainState | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Trains and evaluates a model, and writes the run directory.

    ``config.json`` is written first, then a line of ``metrics.jsonl`` and a checkpoint per epoch, and ``summary.json``
    and the figures at the end. The test split is evaluated once, after the last step.

    If ``jax.distributed.initialize`` has connected several processes, call it in each, with the same arguments: they
    train one run, and the first of them writes it.

    Args:
        config: the run. Without MNIST, a config with defaults for data and training trains ``preset("digits")``.
        dataset: replaces the one that ``config`` names.
        model: replaces the one that ``config`` describes; anything that :func:`mnist_jax.create_train_state` takes.
        tx: replaces the optimizer that ``config`` describes.
        state: replaces model, optimizer, loss and gradient, for a recipe of your own; it is copied.
        callbacks: called in addition to the library's own, see :class:`mnist_jax.Callback`.

    Returns:
        The run. Its training loss and accuracy are measured during the last epoch, with dropout on.
        ``summary["seconds"]`` holds wall seconds, added up over resumes: ``import``, ``data`` (overlaps ``import``),
        ``compile`` (including initialisation and imports for writing the run), ``train``, ``evaluate`` (including
        validation) and ``total``.

    Raises:
        InputError: the config, the data or the workdir cannot be used, and nothing was written; or the device ran out
            of memory.
        NonFiniteLossError: the loss became NaN or infinite; earlier checkpoints remain.
        LostProcessError: another process of the run has ended; earlier checkpoints remain.
        KeyboardInterrupt: Ctrl-C or SIGTERM was received; a checkpoint was saved first.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
        >>> run.summary["steps"]
        11
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.explain_lost_process())
        training = prepare_run(config, dataset, (model, tx, state), callbacks, stack)
        from mnist_jax.training.memory import explain_run_memory  # loads JAX

        stack.enter_context(explain_run_memory(training, model, tx, state))
        programs = compile_run(training, model, tx, state)
        restore_run(training)
        training.directory.create(training.config, describe_data(training), training.model)
        if training.kept is not None:
            write_kept(training.directory.path, training.kept)
        stack.callback(training.call, "on_close")
        training.call("on_begin")
        for epoch in range(len(training.history) + 1, training.config.epochs + 1):
            if training.stop_requested and training.history:  # resumed after its last epoch
                break
            training.epoch = epoch
            _train_epoch(training, programs.epochs)
            _end_epoch(training, programs.evaluate_validation)
            if training.is_stopping:
                break
        _check_signal(training)
        return _finish(training, programs)


def _train_epoch(training: Training, epochs: ChunkedEpoch) -> None:
    """Trains an epoch, or the rest of one; after a signal it stops at the end of the chunk."""
    training.call("on_epoch_begin")
    for chunk in epochs.run(training.state, training.step, total=training.metrics, examples=training.examples):
        training.state, training.step, training.examples = chunk.state, chunk.step, chunk.examples
        training.metrics, training.chunk_metrics = chunk.total, chunk.metrics
        training.epoch_seconds += chunk.seconds
        training.seconds["train"] += chunk.seconds
        training.call("on_chunk")
        training.poll()
        if training.signals.requested:
            break
    if training.step < training.epoch * training.steps_per_epoch:
        training.call("on_interrupt")
        raise Stopped(training.signals.requested, training.step, training.directory.path)


def _end_epoch(training: Training, evaluate_validation: Callable[[TrainState], Evaluation]) -> None:
    """Evaluates the validation split and adds an entry to the history."""
    start = time.perf_counter()
    validation, total = evaluate_validation(training.state), training.metrics
    training.seconds["evaluate"] += time.perf_counter() - start
    if not math.isfinite(validation.loss):
        raise NonFiniteLossError(training.epoch, training.step, validation.loss)
    training.validation = validation
    line = {
        "epoch": training.epoch,
        "step": training.step,
        "num_examples": int(total.count),
        "train_loss": float(total.loss),
        "train_accuracy": float(total.accuracy),
        "validation_loss": validation.loss,
        "validation_accuracy": validation.accuracy,
        "seconds": training.epoch_seconds,
        "examples_per_second": int(total.count) / training.epoch_seconds,
    }
    if training.schedule is not None:
        line["learning_rate"] = float(training.schedule(training.step - 1))
    if training.privacy is not None:
        line["epsilon"] = training.privacy.epsilon(training.step)
    training.history.append(line)
    training.call("on_epoch_end")
    training.set_epoch_sums()


def _check_signal(training: Training) -> None:
    """Raises ``Stopped`` if a signal ended the run before its last epoch."""
    if training.signals.requested and training.epoch < training.config.epochs and not training.stop_requested:
        raise Stopped(training.signals.requested, training.step, training.directory.path)


def _finish(training: Training, programs: Programs) -> Run:
    """Evaluates the test split and writes the confidence, the summary and the figures."""
    from mnist_jax.core.calibration import Confidence

    start = time.perf_counter()
    if training.validation is None:  # the run had finished before
        training.validation = programs.evaluate_validation(training.state)
    training.test = programs.evaluate_test(training.state)
    training.seconds["evaluate"] += time.perf_counter() - start
    confidence = Confidence.fit(training.validation.logits, *training.dataset.validation)
    training.directory.write_confidence(confidence.to_dict())
    training.summary = summarise(training)
    training.call("on_finish")
    training.summary["seconds"]["total"] = training.total_seconds()  # now with the figures
    training.directory.write_summary(training.summary)
    training.poll()  # waits for the files of the first process
    if training.signals.requested:  # not yet reported
        raise Stopped(training.signals.requested, training.step, training.directory.path, finished=True)
    return Run(
        training.config, training.state, training.history, training.summary, training.test, training.directory.path
    )
