"""Prepares a run: checks and completes its config, loads its data, creates its state and compiles its programs.

    training = prepare_run(config, dataset, (model, tx, state), callbacks, stack)
    programs = compile_run(training, model, tx, state)

JAX is imported inside the functions, so that the data loads at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import operator
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mnist_jax.config import MODEL_FIELDS, OPTIMIZER_FIELDS, RECIPE_FIELDS, TrainConfig
from mnist_jax.data import Dataset, Split, StreamedSplit, is_name, load_dataset
from mnist_jax.data.subset import take_examples
from mnist_jax.errors import InputError
from mnist_jax.home import prepare_matplotlib
from mnist_jax.training import processes
from mnist_jax.training.callbacks import Callback, arrange_callbacks
from mnist_jax.training.directory import RunDirectory
from mnist_jax.training.fallback import complete_resumed, replace_default
from mnist_jax.training.kept import choose_kept
from mnist_jax.training.recording import RecordDynamics
from mnist_jax.training.run import Training
from mnist_jax.training.signals import StopSignals

if TYPE_CHECKING:
    import numpy as np

    from mnist_jax.core.evaluation import Evaluation
    from mnist_jax.core.state import TrainState
    from mnist_jax.training.compiled import Compiled
    from mnist_jax.training.epochs import ChunkedEpoch

_log = logging.getLogger("mnist_jax")


class Programs(NamedTuple):
    """Holds the compiled programs of a run."""

    epochs: ChunkedEpoch
    evaluate_validation: Callable[[TrainState], Evaluation]
    evaluate_test: Callable[[TrainState], Evaluation]


def prepare_run(
    config: TrainConfig,
    dataset: Dataset | None,
    own: tuple[Any, Any, Any],
    callbacks: Sequence[Callback],
    stack: contextlib.ExitStack,
) -> Training:
    """Checks the arguments of ``fit``, locks the directory of a run to resume, and loads data while JAX is imported.

    Args:
        config: the run.
        dataset: replaces the one that ``config`` names.
        own: the user's ``model``, ``tx`` and ``state``; each may be None.
        callbacks: the user's.
        stack: on exit, closes the directory and restores the signal handlers.
    """
    started = time.perf_counter()
    _check_arguments(config, dataset, own, callbacks)
    of_all = dataclasses.replace(config, data_dir=None, progress=False, quiet=False)
    processes.check_same("the flags", of_all.to_json())
    data = config.data if is_name(config.data) else _absolute(config.data)
    config = dataclasses.replace(
        config, data=data, data_dir=_absolute(config.data_dir), scores=_absolute(config.scores)
    )
    directory = RunDirectory.claim(config)
    stack.callback(directory.close)
    if directory.saved is not None:
        config = complete_resumed(config, directory.saved)
        config = dataclasses.replace(
            config,
            data=config.data or directory.saved.data,
            data_dir=config.data_dir or directory.saved.data_dir,
            microbatch_size=config.microbatch_size or directory.saved.microbatch_size,
            dp_noise=config.dp_noise or directory.saved.dp_noise,
            early_stopping=config.early_stopping or directory.saved.early_stopping,
        )
    loading = _start_loading(config, dataset, directory.path if directory.saved is not None else None)
    from mnist_jax.core.epoch import count_steps
    from mnist_jax.training.build import check_batch_size, choose_microbatch_size
    from mnist_jax.training.devices import choose_sharding
    from mnist_jax.training.privacy import prepare_privacy

    seconds = {"import": time.perf_counter() - started}
    is_given = dataset is not None
    dataset, kept, seconds["data"] = processes.together(loading.result)
    processes.check_same("the data", json.dumps(dataset.identity()))
    if dataset.notice and not is_given and directory.saved is None and all(part is None for part in own):
        config = _replace_default(config)
    config = dataclasses.replace(
        config, data=config.data or dataset.name, stream=isinstance(dataset.train, StreamedSplit)
    )
    check_batch_size(config, dataset)
    sharding = choose_sharding(config.num_devices)
    model, _, state = own
    privacy = prepare_privacy(config, dataset.train.num_examples, state)
    if privacy is not None:
        config = dataclasses.replace(config, dp_noise=privacy.noise_multiplier)
    if state is None and (model is None or privacy is not None):
        microbatch_size = choose_microbatch_size(config) or config.batch_size
        config = dataclasses.replace(config, microbatch_size=microbatch_size)
    # From here on a signal waits for the end of a chunk: XLA does not survive an exit while it compiles.
    signals = stack.enter_context(StopSignals())
    if config.record and not any(isinstance(callback, RecordDynamics) for callback in callbacks):
        callbacks = (RecordDynamics(), *callbacks)
    training = Training(config, dataset, directory, seconds, started, signals, arrange_callbacks(callbacks))
    training.sharding, training.kept, training.privacy = sharding, kept, privacy
    training.steps_per_epoch = count_steps(dataset.train.num_examples, config.batch_size)
    return training


def _absolute(path: str | None) -> str | None:
    """Returns the absolute path; a path that does not exist stays as the user wrote it, for the error message."""
    return path if path is None or not Path(path).exists() else str(Path(path).resolve())


def _check_arguments(
    config: TrainConfig, dataset: Dataset | None, own: tuple[Any, Any, Any], callbacks: Sequence[Callback]
) -> None:
    """Checks the type of the callbacks, and that nothing is given twice: in the config and as an object."""
    if config.stream and dataset is not None and isinstance(dataset.train, Split):
        raise InputError("stream has no effect on a dataset in memory: load it with load_dataset(..., stream=True)")
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


def _replace_default(config: TrainConfig) -> TrainConfig:
    replaced = replace_default(config)
    if replaced != config:
        _log.warning(
            "training the CNN of --preset digits, which suits so few examples; --data digits trains the default MLP"
        )
    return replaced


def _start_loading(
    config: TrainConfig, dataset: Dataset | None, resumed: Path | None
) -> Future[tuple[Dataset, np.ndarray | None, float]]:
    """Loads the data in a daemon thread, so that Ctrl-C need not wait for it.

    The result is the data set, which of its training examples were kept, and seconds.
    """
    future: Future[tuple[Dataset, np.ndarray | None, float]] = Future()

    def load() -> None:
        start = time.perf_counter()
        try:
            options: dict[str, Any] = {"num_validation": config.num_validation, "stream": config.stream}
            loaded = dataset or load_dataset(config.data, data_dir=config.data_dir, **options)
            if isinstance(loaded.train, StreamedSplit):
                _check_grain()
            kept = choose_kept(config, loaded, resumed)
            loaded = loaded if kept is None else take_examples(loaded, kept)
            future.set_result((loaded, kept, time.perf_counter() - start))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=load, daemon=True).start()
    return future


def _check_grain() -> None:
    if importlib.util.find_spec("grain") is None:
        raise InputError(
            'stream needs the package grain, which is not installed: pip install -e ".[stream]"; '
            "grain has no wheel for macOS on Intel"
        )


def compile_run(training: Training, model: Any, tx: Any, state: TrainState | None) -> Programs:
    """Creates the state of a run and compiles its programs, all at the same time."""
    import jax
    import numpy as np

    from mnist_jax.core.evaluation import Evaluation, choose_batch_size, evaluate_arrays
    from mnist_jax.training.build import build_state
    from mnist_jax.training.compiled import Compiled
    from mnist_jax.training.devices import everywhere, put_everywhere, shapes_everywhere
    from mnist_jax.training.optimizer import build_schedule
    from mnist_jax.training.streaming import create_epochs

    start = time.perf_counter()
    config, dataset, sharding = training.config, training.dataset, training.sharding
    validation, tests = put_everywhere((dataset.validation, _cut_test(dataset)), sharding)
    train = dataset.train if config.stream else put_everywhere(dataset.train, sharding)
    num_steps = config.epochs * training.steps_per_epoch
    if tx is None and state is None:
        training.schedule = build_schedule(config, num_steps)
    build = functools.partial(build_state, config, num_steps, model=model, tx=tx, num_classes=dataset.num_classes)
    create = build if state is None else lambda: jax.tree.map(jax.numpy.copy, state)
    # On CPU, initialisation is mostly compilation; level 1 halves it and gives the same values.
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "1"}
    initialise = Compiled(
        jax.jit(create, out_shardings=None if sharding is None else everywhere(sharding)),
        options=options if jax.default_backend() == "cpu" else None,
    )
    shapes: TrainState = shapes_everywhere(initialise.out_info, sharding)
    _check_fits(shapes, dataset)
    record = any(callback.needs_examples for callback in training.callbacks)
    sampling = None if training.privacy is None else training.privacy.sampling()
    epochs = create_epochs(shapes, train, config.batch_size, sharding, record=record, sampling=sampling)

    def trace_evaluation(split: Split) -> Compiled:
        size = choose_batch_size(split, sharding=sharding)
        return Compiled(evaluate_arrays, shapes, split, batch_size=size, sharding=sharding)

    def evaluate(program: Compiled, pieces: list[Split], label: np.ndarray, state: TrainState) -> Evaluation:
        metrics, logits = zip(*(program(state, piece) for piece in pieces), strict=True)
        total = functools.reduce(operator.add, metrics)
        return Evaluation.from_metrics(total, np.concatenate(jax.device_get(logits)), label)

    validation_program = test_program = trace_evaluation(validation)
    if _describe(tests[0]) != _describe(validation):
        test_program = trace_evaluation(tests[0])
    prepare_matplotlib()
    pool = ThreadPoolExecutor()
    programs: set[Any] = {validation_program, test_program}
    compiling: list[Future[Any]] = [pool.submit(program.compile) for program in (epochs, *programs)]
    # What is needed first comes first; training begins before the others are imported.
    compiling.append(pool.submit(importlib.import_module, "mnist_jax.report.tensorboardx"))
    for module in ("orbax.checkpoint", "matplotlib.figure"):
        pool.submit(importlib.import_module, module)
    pool.shutdown(wait=False)
    try:
        training.state = initialise()
    finally:
        wait(compiling)  # XLA does not survive an exit while it compiles
    for future in compiling:
        future.result()
    jax.block_until_ready(training.state)  # else memory may run out after the directory has been created
    training.set_epoch_sums()
    training.has_own_model = model is not None or state is not None
    training.model = training.state.recipe.model.name if training.has_own_model else config.model
    training.seconds |= {"compile": time.perf_counter() - start, "train": 0.0, "evaluate": 0.0}
    return Programs(
        epochs,
        functools.partial(evaluate, validation_program, [validation], dataset.validation.label),
        functools.partial(evaluate, test_program, tests, dataset.test.label),
    )


def _cut_test(dataset: Dataset) -> list[Split]:
    """Cuts the test split into at most four pieces of the length of the validation split, which share its program."""
    test, size = dataset.test, dataset.validation.num_examples
    if test.num_examples not in [number * size for number in (1, 2, 3, 4)]:
        return [test]
    return [Split(test.image[at : at + size], test.label[at : at + size]) for at in range(0, test.num_examples, size)]


def _describe(split: Split) -> list[Any]:
    """Returns what a program that is compiled for a split depends on."""
    return [(array.shape, array.dtype) for array in split]


def _check_fits(state: TrainState, dataset: Dataset) -> None:
    """Checks that a user's own model accepts the images and has a logit for each class."""
    recipe, image_shape = state.recipe, tuple(dataset.validation.image.shape[1:])
    if recipe.image_shape != image_shape:
        raise InputError(f"model must take the images {image_shape} of {dataset.name}, got {recipe.image_shape}")
    if recipe.num_classes < dataset.num_classes:
        raise InputError(
            f"model must have a logit for each of the {dataset.num_classes} classes of {dataset.name}, "
            f"got {recipe.num_classes}"
        )
