"""``fit``: from a config, or a model of your own, to a finished run directory.

    run = fit(TrainConfig(epochs=3))
    run = fit(TrainConfig(epochs=3), model=MyNet(rngs=nnx.Rngs(0)), tx=optax.lion(1e-4), callbacks=[MyCallback()])
    run.summary["test_accuracy"], run.state, run.workdir

It prepares config, data and directory, compiles, restores a run that goes on, trains epoch by epoch, and finishes with
the test split. All that a run writes or prints is done by callbacks, see ``callbacks.py``.

What needs JAX is imported inside the stages: the data loads while JAX starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_jax.config import MODEL_FIELDS, OPTIMIZER_FIELDS, RECIPE_FIELDS, TrainConfig
from mnist_jax.data import Dataset, Split, is_name, load_dataset
from mnist_jax.errors import InputError, NonFiniteLossError
from mnist_jax.training.callbacks import Callback, arrange_callbacks
from mnist_jax.training.directory import RunDirectory
from mnist_jax.training.run import Run, Training, summarise
from mnist_jax.training.signals import Stopped, StopSignals

if TYPE_CHECKING:
    import optax

    from mnist_jax.core.evaluation import Evaluation
    from mnist_jax.core.metrics import Metrics
    from mnist_jax.core.state import TrainState
    from mnist_jax.training.epochs import ChunkedEpoch

_log = logging.getLogger("mnist_jax")


def fit(
    config: TrainConfig,
    *,
    dataset: Dataset | None = None,
    model: Any = None,
    tx: optax.GradientTransformation | None = None,
    state: TrainState | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Trains, evaluates and writes everything down.

    The run directory gets ``config.json`` first, then a line of ``metrics.jsonl`` and a checkpoint per epoch, and
    ``summary.json`` and the figures at the end. The test split is evaluated once, after the last step.

    Args:
        config: the run.
        dataset: in place of the one that ``config`` names.
        model: in place of the one that ``config`` describes: anything that :func:`mnist_jax.create_train_state` takes.
        tx: in place of the optimizer that ``config`` describes.
        state: in place of all that makes a step, for a loss, a gradient or a recipe of your own; it is copied.
        callbacks: called beside the library's own, see :class:`mnist_jax.Callback`.

    Returns:
        The run. Its training loss and accuracy are measured during the last epoch, with dropout on.
        ``summary["seconds"]`` holds wall seconds, added up over resumes: ``import``, ``data`` (loads at the same time),
        ``compile`` (with initialisation, and the imports of what writes the run), ``train``, ``evaluate`` (validation
        included) and ``total``.

    Raises:
        InputError: the config, the data or the workdir cannot be used; nothing was written then.
        NonFiniteLossError: the loss became NaN or infinite; the checkpoints so far remain.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint was saved first.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
        >>> run.summary["steps"]
        11
    """
    with contextlib.ExitStack() as stack:
        training = _prepare(config, dataset, (model, tx, state), callbacks, stack)
        epochs, evaluate_validation, evaluate_test = _compile(training, model, tx, state)
        _restore(training)
        _open_directory(training)
        stack.callback(training.call, "on_close")
        training.call("on_begin")
        for epoch in range(len(training.history) + 1, training.config.epochs + 1):
            training.epoch = epoch
            _train_epoch(training, epochs)
            _end_epoch(training, evaluate_validation)
            if training.is_stopping:
                break
        _check_signal(training)
        return _finish(training, evaluate_test)


def _prepare(
    config: TrainConfig, dataset: Dataset | None, own: Sequence[Any], callbacks: Sequence[Callback], stack: Any
) -> Training:
    """Checks the config, claims the directory, and loads the data while JAX is imported."""
    started = time.perf_counter()
    _check_own(config, own, callbacks)
    data = config.data if is_name(config.data) else _absolute(config.data)
    config = dataclasses.replace(config, data=data, data_dir=_absolute(config.data_dir))
    directory = RunDirectory.claim(config)
    stack.callback(directory.close)
    if directory.saved is not None:
        config = dataclasses.replace(
            config,
            data=config.data or directory.saved.data,
            data_dir=config.data_dir or directory.saved.data_dir,
            microbatch_size=config.microbatch_size or directory.saved.microbatch_size,
        )
    loading = _start_loading(config, dataset)
    from mnist_jax.training.build import check_batch_size, choose_microbatch_size

    seconds = {"import": time.perf_counter() - started}
    dataset, seconds["data"] = loading.result()
    config = dataclasses.replace(config, data=config.data or dataset.name)
    check_batch_size(config, dataset)
    if own[0] is None and own[2] is None:
        microbatch_size = choose_microbatch_size(config) or config.batch_size
        config = dataclasses.replace(config, microbatch_size=microbatch_size)
    # From here on a signal waits for the end of a chunk: XLA does not survive an exit while it compiles.
    signals = stack.enter_context(StopSignals())
    steps_per_epoch = -(-dataset.train.num_examples // config.batch_size)
    training = Training(config, dataset, directory, seconds, started, signals, arrange_callbacks(callbacks))
    training.steps_per_epoch = steps_per_epoch
    return training


def _absolute(path: str | None) -> str | None:
    """Returns a path as it is found from everywhere; one that does not exist is left for the message about it."""
    return path if path is None or not Path(path).exists() else str(Path(path).resolve())


def _check_own(config: TrainConfig, own: Sequence[Any], callbacks: Sequence[Callback]) -> None:
    """Checks that callbacks are callbacks, and that nothing is given twice, by the config and as an object."""
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise InputError(f"callbacks must be instances of mnist_jax.Callback, got {callback!r}")
    model, tx, state = own
    if state is not None and (model is not None or tx is not None):
        raise InputError("state must be given without model and tx, which it holds already")
    unused: tuple[str, ...] = ()
    if model is not None or state is not None:
        unused += MODEL_FIELDS
    if tx is not None or state is not None:
        unused += OPTIMIZER_FIELDS
    if state is not None:
        unused += RECIPE_FIELDS
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in unused and value != field.default:
            raise InputError(
                f"{field.name} has no effect on a model, tx or state of your own: leave it out, got {value}"
            )


def _start_loading(config: TrainConfig, dataset: Dataset | None) -> Future[tuple[Dataset, float]]:
    """Loads the data and tells how long it took, in a thread that Ctrl-C need not wait for."""
    future: Future[tuple[Dataset, float]] = Future()

    def load() -> None:
        begun = time.perf_counter()
        try:
            num_validation = config.num_validation
            loaded = dataset or load_dataset(config.data, data_dir=config.data_dir, num_validation=num_validation)
            future.set_result((loaded, time.perf_counter() - begun))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=load, daemon=True).start()
    return future


def _compile(
    training: Training, model: Any, tx: Any, state: TrainState | None
) -> tuple[ChunkedEpoch, Callable[[TrainState], Evaluation], Callable[[TrainState], Evaluation]]:
    """Creates the state, and compiles all programs of the run at the same time."""
    import jax

    from mnist_jax.core.evaluation import Evaluation, choose_batch_size, evaluate_arrays
    from mnist_jax.training.build import build_state
    from mnist_jax.training.compiled import Compiled
    from mnist_jax.training.epochs import ChunkedEpoch
    from mnist_jax.training.optimizer import build_schedule

    begun = time.perf_counter()
    config, dataset = training.config, training.dataset
    train, validation, test = jax.device_put((dataset.train, dataset.validation, dataset.test))
    num_steps = config.epochs * training.steps_per_epoch
    if tx is None and state is None:
        training.schedule = build_schedule(config, num_steps)
    build = functools.partial(build_state, config, num_steps, model=model, tx=tx, num_classes=dataset.num_classes)
    create = build if state is None else lambda: jax.tree.map(jax.numpy.copy, state)
    # On CPU initialisation is mostly compilation, at this level half of it; the values are the same.
    cheaply: dict[str, str | bool] = {"xla_backend_optimization_level": "1"}
    initialise = Compiled(jax.jit(create), options=cheaply if jax.default_backend() == "cpu" else None)
    shapes: TrainState = initialise.out_info
    _check_fits(shapes, dataset)
    epochs = ChunkedEpoch(shapes, train, config.batch_size)

    def compile_evaluation(split: Split) -> tuple[Compiled, Callable[[TrainState], Evaluation]]:
        program = Compiled(evaluate_arrays, shapes, split, batch_size=choose_batch_size(split))

        def evaluate(state: TrainState) -> Evaluation:
            metrics, logits = program(state, split)
            return Evaluation.from_metrics(metrics, logits, split.label)

        return program, evaluate

    validation_program, evaluate_validation = compile_evaluation(validation)
    test_program, evaluate_test = compile_evaluation(test)
    with ThreadPoolExecutor() as pool:  # all that is compiled at the same time, and what is imported meanwhile
        compiling = [pool.submit(part.compile) for part in (epochs, validation_program, test_program)]
        for module in ("tensorboardX", "orbax.checkpoint", "matplotlib.figure"):
            pool.submit(importlib.import_module, module)
        training.state = initialise()
        for part in compiling:
            part.result()
    training.has_own_model = model is not None or state is not None
    training.model = training.state.recipe.model.name if training.has_own_model else config.model
    training.seconds |= {"compile": time.perf_counter() - begun, "train": 0.0, "evaluate": 0.0}
    return epochs, evaluate_validation, evaluate_test


def _check_fits(state: TrainState, dataset: Dataset) -> None:
    """Checks that a model of somebody's own takes these images and knows these classes."""
    recipe, image_shape = state.recipe, tuple(dataset.train.image.shape[1:])
    if recipe.image_shape != image_shape:
        raise InputError(f"model must take the images {image_shape} of {dataset.name}, got {recipe.image_shape}")
    if recipe.num_classes < dataset.num_classes:
        raise InputError(
            f"model must have a logit for each of the {dataset.num_classes} classes of {dataset.name}, "
            f"got {recipe.num_classes}"
        )


def _restore(training: Training) -> None:
    """Takes up the run in the directory, if it goes on."""
    from mnist_jax.training.checkpoint import read_progress, restore_checkpoint, saved_steps

    training.metrics = _to_metrics(0.0, 0, 0)
    directory, config = training.directory, training.config
    if directory.saved is None:
        return
    directory.check_data(_describe_data(training))
    if not saved_steps(directory.checkpoints):
        _log.warning("%s holds no checkpoint: the run starts again", directory.checkpoints)
        return
    training.state = restore_checkpoint(directory.checkpoints, training.state, set_aside=True)
    training.step = int(training.state.step)
    num_epochs = training.step // training.steps_per_epoch
    training.history = directory.read_history(num_epochs)
    _check_continuation(config, directory.saved, num_epochs)
    progress = read_progress(directory.checkpoints, training.step)
    trained = math.fsum(line["seconds"] for line in training.history)
    before = progress.get("seconds") or {"train": trained, "total": trained}
    for name in training.seconds:
        training.seconds[name] += before.get(name, 0.0)
    training.seconds_before = before["total"]
    if epoch := progress.get("epoch"):
        training.epoch_seconds = epoch["seconds"]
        training.metrics = _to_metrics(epoch["loss_sum"], epoch["correct"], epoch["count"])


def _to_metrics(loss_sum: float, correct: int, count: int) -> Metrics:
    """Returns metrics on the host, as those of a chunk are."""
    import jax
    import jax.numpy as jnp

    from mnist_jax.core.metrics import Metrics

    metrics: Metrics = jax.device_get(Metrics(jnp.float32(loss_sum), jnp.int32(correct), jnp.int32(count)))
    return metrics


def _check_continuation(config: TrainConfig, saved: TrainConfig, num_epochs: int) -> None:
    if config.epochs < num_epochs:
        raise InputError(f"epochs must be at least the {num_epochs} trained already, got {config.epochs}")
    if config.epochs != saved.epochs and config.schedule != "constant":
        _log.warning(
            "the %s schedule now spans %d epochs instead of %d: the run differs from one that began so",
            config.schedule,
            config.epochs,
            saved.epochs,
        )


def _open_directory(training: Training) -> None:
    """Makes the directory, or takes it over, and writes what the run is trained on."""
    training.directory.create(training.config, _describe_data(training), training.model)


def _describe_data(training: Training) -> dict[str, Any]:
    """Returns what ``data.json`` says: the data, and a model or an optimizer that is not that of the config."""
    dataset = training.dataset
    own_model = training.model if training.has_own_model else None
    return {
        **dataset.identity(),
        "path": dataset.path,
        "class_names": [*dataset.class_names],
        "model": own_model,
        "has_own_optimizer": training.schedule is None,
    }


def _train_epoch(training: Training, epochs: ChunkedEpoch) -> None:
    """Trains an epoch, or the rest of one; a signal ends it between two chunks."""
    training.call("on_epoch_begin")
    for chunk in epochs.run(training.state, training.step):
        training.state, training.step = chunk.state, chunk.step
        training.chunk_metrics = chunk.metrics
        training.metrics = training.metrics + chunk.metrics
        training.epoch_seconds += chunk.seconds
        training.seconds["train"] += chunk.seconds
        training.call("on_chunk")
        if training.signals.requested:
            break
    if training.step < training.epoch * training.steps_per_epoch:
        training.call("on_interrupt")
        raise Stopped(training.signals.requested, training.step, training.directory.path)


def _end_epoch(training: Training, evaluate_validation: Callable[[TrainState], Evaluation]) -> None:
    """Evaluates the validation split, and adds a line to the history."""
    begun = time.perf_counter()
    validation, total = evaluate_validation(training.state), training.metrics
    training.seconds["evaluate"] += time.perf_counter() - begun
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
    training.history.append(line)
    training.call("on_epoch_end")
    training.metrics, training.epoch_seconds = _to_metrics(0.0, 0, 0), 0.0


def _check_signal(training: Training) -> None:
    """Ends a run whose last epoch is still to come."""
    if training.signals.requested and training.epoch < training.config.epochs and not training.stop_requested:
        raise Stopped(training.signals.requested, training.step, training.directory.path)


def _finish(training: Training, evaluate_test: Callable[[TrainState], Evaluation]) -> Run:
    """Evaluates the test split, once, and writes the summary and the figures."""
    begun = time.perf_counter()
    training.test = evaluate_test(training.state)
    training.seconds["evaluate"] += time.perf_counter() - begun
    training.summary = summarise(training)
    training.call("on_finish")
    training.summary["seconds"]["total"] = training.total_seconds()  # with the figures
    training.directory.write_summary(training.summary)
    if training.signals.requested:  # and nobody has heard of it yet
        raise Stopped(training.signals.requested, training.step, training.directory.path, finished=True)
    return Run(
        training.config,
        training.state,
        training.history,
        training.summary,
        training.test,
        training.directory.path,
    )
