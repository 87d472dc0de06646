"""Trains a classifier from a config to a finished run directory. The command ``python -m mnist_jax.train``.

    run = fit(TrainConfig(epochs=3))
    run.summary["test_accuracy"], run.state, run.workdir

What needs JAX is imported inside :func:`fit`: ``--help`` and a wrong flag are answered at once, and the data loads
while JAX starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import math
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_jax.cli.flags import parse_flags, run_command
from mnist_jax.config import TrainConfig
from mnist_jax.data import Dataset, load_dataset
from mnist_jax.errors import InputError, NonFiniteLossError
from mnist_jax.training.directory import Workdir
from mnist_jax.training.progress import Progress, closing_table
from mnist_jax.training.signals import Stopped, StopSignals

if TYPE_CHECKING:
    from mnist_jax.core.evaluation import Evaluation
    from mnist_jax.core.state import TrainState

_log = logging.getLogger("mnist_jax")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        config: what was trained, with the data set that was found.
        state: after the last step.
        history: one entry per epoch, as in ``metrics.jsonl``.
        summary: the final numbers, as in ``summary.json``.
        test: the one evaluation of the test split, with its logits.
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


def fit(config: TrainConfig) -> Run:
    """Trains, evaluates and writes everything down.

    The run directory gets ``config.json`` first, then a line of ``metrics.jsonl`` and a checkpoint per epoch, and the
    figures and ``summary.json`` at the end. The test split is evaluated once, after the last step.

    Args:
        config: the run.

    Returns:
        The run. Its training loss and accuracy are means over the last epoch while it was trained, with dropout.
        ``summary["seconds"]`` holds wall seconds of this call: ``import``, ``data`` (loads at the same time),
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
    started = time.perf_counter()
    workdir = Workdir.find(config)
    if workdir.saved is not None:
        saved = workdir.saved
        config = dataclasses.replace(config, data=config.data or saved.data, data_dir=config.data_dir or saved.data_dir)
    loading = _start_loading(config)
    import jax

    from mnist_jax.core.evaluation import CompiledEvaluation
    from mnist_jax.core.steps import Metrics
    from mnist_jax.training.build import build_state, check_batch_size
    from mnist_jax.training.epochs import EpochInPieces
    from mnist_jax.training.optimizer import build_schedule

    seconds = {"import": time.perf_counter() - started}
    dataset, seconds["data"] = loading.result()
    config = dataclasses.replace(config, data=config.data or dataset.name)
    num_train = dataset.train.num_examples
    check_batch_size(config, dataset)

    # From here on a signal waits for the end of a piece: XLA does not survive an exit while it compiles.
    with StopSignals() as stop:
        begun = time.perf_counter()
        train, validation, test = jax.device_put((dataset.train, dataset.validation, dataset.test))
        steps_per_epoch = -(-num_train // config.batch_size)
        schedule = build_schedule(config, config.epochs * steps_per_epoch)
        create = functools.partial(build_state, config, config.epochs * steps_per_epoch)
        shapes = jax.eval_shape(create)
        program = EpochInPieces(shapes, train, config.batch_size)
        evaluate_validation, evaluate_test = (CompiledEvaluation(shapes, split) for split in (validation, test))
        initialise = jax.jit(create).lower()
        # On CPU initialisation is mostly compilation, at this level half of it; the values are the same.
        cheaply: dict[str, str | bool] = {"xla_backend_optimization_level": "1"}
        with ThreadPoolExecutor() as pool:  # all that is compiled at the same time, and what is imported meanwhile
            compiling = [pool.submit(part.compile) for part in (program, evaluate_validation, evaluate_test)]
            for module in ("tensorboardX", "orbax.checkpoint", "matplotlib.figure"):
                pool.submit(importlib.import_module, module)
            state = initialise.compile(cheaply if jax.default_backend() == "cpu" else None)()
            for part in compiling:
                part.result()
        seconds |= {"compile": time.perf_counter() - begun, "train": 0.0, "evaluate": 0.0}

        from tensorboardX import SummaryWriter

        from mnist_jax.report.figures import learning_curves
        from mnist_jax.report.tensorboard import show_in_tensorboard
        from mnist_jax.training.checkpoint import restore_checkpoint, save_checkpoint, saved_steps

        history: list[dict[str, Any]] = []
        if workdir.saved is not None and not saved_steps(workdir.checkpoints):
            _log.warning("%s holds no checkpoint: the run starts again", workdir.checkpoints)
        elif workdir.saved is not None:
            state = restore_checkpoint(workdir.checkpoints, state)
            history = workdir.read_history(num_epochs=int(state.step) // steps_per_epoch)
            _check_continuation(config, workdir.saved, num_epochs=len(history))
        workdir.create(config, dataset.identity())

        with (
            contextlib.closing(workdir),
            SummaryWriter(str(workdir.path), purge_step=int(state.step) + 1) as board,
            contextlib.closing(Progress(config.epochs, num_train, config.quiet, config.progress)) as progress,
        ):
            for epoch in range(len(history) + 1, config.epochs + 1):
                # Train: the rest of the epoch, which is all of it unless a stopped run is resumed in its middle.
                progress.begin_epoch(epoch)
                total, train_s = Metrics.zeros(), 0.0
                for after_piece, metrics, piece_s in program.run(state, epoch * steps_per_epoch - int(state.step)):
                    state, total, train_s = after_piece, total + metrics, train_s + piece_s
                    progress.update(int(metrics.count), float(total.loss), float(total.accuracy))
                    if stop.requested:
                        break
                step = int(state.step)
                if step < epoch * steps_per_epoch:
                    save_checkpoint(workdir.checkpoints, state, keep=config.keep_checkpoints)
                    raise Stopped(stop.requested, step, workdir.path)

                # Evaluate.
                begun = time.perf_counter()
                evaluation = evaluate_validation(state)
                if not math.isfinite(evaluation.loss):
                    raise NonFiniteLossError(epoch, step, evaluation.loss)
                seconds["train"] += train_s
                seconds["evaluate"] += time.perf_counter() - begun

                # Write it down.
                line = {
                    "epoch": epoch,
                    "step": step,
                    "num_examples": int(total.count),
                    "train_loss": float(total.loss),
                    "train_accuracy": float(total.accuracy),
                    "validation_loss": evaluation.loss,
                    "validation_accuracy": evaluation.accuracy,
                    "learning_rate": float(schedule(step - 1)),
                    "seconds": train_s,
                    "examples_per_second": int(total.count) / train_s,
                }
                history.append(line)
                workdir.write_history(history)
                for name in ("loss", "accuracy"):
                    for split in ("train", "validation"):
                        board.add_scalar(f"{name}/{split}", line[f"{split}_{name}"], step)
                board.add_scalar("learning_rate", line["learning_rate"], step)
                progress.end_epoch(line)
                if epoch % config.checkpoint_every == 0 or epoch == config.epochs or stop.requested:
                    save_checkpoint(
                        workdir.checkpoints,
                        state,
                        metrics={"validation_accuracy": evaluation.accuracy},
                        keep=config.keep_checkpoints,
                    )
                if stop.requested and epoch < config.epochs:
                    raise Stopped(stop.requested, step, workdir.path)

            begun = time.perf_counter()
            evaluation = evaluate_test(state)
            seconds["evaluate"] += time.perf_counter() - begun
            for name in ("loss", "accuracy"):
                board.add_scalar(f"{name}/test", getattr(evaluation, name), int(state.step))

            curves = workdir.path / "figures" / "learning_curves.png"
            learning_curves(history, curves, f"{config.model} on {dataset.name}")
            show_in_tensorboard(board, curves, int(state.step))
        seconds["total"] = time.perf_counter() - started
        summary = _summary(config, dataset, state, history[-1], seconds)
        summary |= {"test_loss": evaluation.loss, "test_accuracy": evaluation.accuracy}
        workdir.write_summary(summary)
        return Run(config, state, history, summary, evaluation, workdir.path)


def _start_loading(config: TrainConfig) -> Future[tuple[Dataset, float]]:
    """Loads the data and tells how long it took, in a thread that Ctrl-C need not wait for."""
    future: Future[tuple[Dataset, float]] = Future()

    def load() -> None:
        begun = time.perf_counter()
        try:
            dataset = load_dataset(config.data, data_dir=config.data_dir, num_validation=config.num_validation)
            future.set_result((dataset, time.perf_counter() - begun))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=load, daemon=True).start()
    return future


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


def _summary(
    config: TrainConfig, dataset: Dataset, state: TrainState, last: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    """What ``summary.json`` says before the test split is looked at."""
    from importlib.metadata import version
    from platform import python_version

    import jax

    import mnist_jax
    from mnist_jax.core.state import count_parameters

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    devices = jax.devices()
    return {
        "dataset": dataset.name,
        **({"notice": dataset.notice} if dataset.notice else {}),
        "num_train": dataset.train.num_examples,
        "num_validation": dataset.validation.num_examples,
        "num_test": dataset.test.num_examples,
        "model": config.model,
        "num_parameters": count_parameters(state.params),
        "epochs": config.epochs,
        "steps": int(state.step),
        "seed": config.seed,
        **{name: last[name] for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")},
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "versions": {
            "mnist_jax": mnist_jax.__version__,
            "python": python_version(),
            **{package: version(package) for package in packages},
        },
        "seconds": seconds,
    }


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.train") -> int:
    """The command: parses ``args`` (default: the command line), trains, prints the closing table."""

    def command() -> None:
        run = fit(parse_flags(TrainConfig(), args, prog))
        print(closing_table(run.summary, run.workdir))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
