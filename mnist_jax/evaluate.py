"""``python -m mnist_jax.evaluate RUN`` evaluates a run, and writes numbers, figures and a page.

    report = evaluate_run("runs/mine")
    report.content["accuracy"], report.content["classes"][3]["recall"]

evaluation.json    all numbers              examples.csv    one line per example
figures/*.png      confusion matrix, ...    report.html     one self-contained page with all of it

The files go into the run directory for the run's own test split, else into ``RUN/<data>-<split>``; with ``--best``,
into ``RUN/best`` or ``RUN/<data>-<split>-best``. JAX is imported inside :func:`evaluate_run`, so that ``--help`` and a
wrong flag are answered at once.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.cli.flags import OneLineParser, add_jax_flags, run_command
from mnist_jax.data import Split, load_dataset
from mnist_jax.errors import InputError
from mnist_jax.home import prepare_matplotlib
from mnist_jax.report.draw import draw_evaluation
from mnist_jax.report.numbers import describe_calibrated, describe_evaluation, examples_csv, results_table
from mnist_jax.report.page import html_report
from mnist_jax.report.tensorboard import replace_events
from mnist_jax.training.directory import read_data
from mnist_jax.training.workdir import lock_directory, write_whole

if TYPE_CHECKING:
    import optax

    from mnist_jax.core.evaluation import Evaluation

SPLITS = ("test", "validation", "train")


@dataclasses.dataclass(frozen=True)
class RunReport:
    """Holds the evaluation of a run.

    Attributes:
        content: the numbers in ``evaluation.json``.
        evaluation: the evaluation of the split, with its logits.
        directory: the directory of the files.

    Example:
        >>> report = RunReport({"accuracy": 0.98}, None, Path("runs/mine"))  # from evaluate_run("runs/mine")
        >>> report.content["accuracy"]
        0.98
    """

    content: dict[str, Any]
    evaluation: Evaluation
    directory: Path


def evaluate_run(
    run: str | os.PathLike[str],
    *,
    data: str | None = None,
    data_dir: str | None = None,
    split: str = "test",
    best: bool = False,
    calibrate: bool = False,
    num_devices: int | None = None,
    model: Any = None,
    tx: optax.GradientTransformation | None = None,
) -> RunReport:
    """Evaluates a run on a split, and writes numbers, figures, a table of the examples, and a page.

    Args:
        run: the run directory.
        data: data set, as for ``load_dataset``; None for the one the run was trained on.
        data_dir: as for ``load_dataset``; None for the directory that the run used.
        split: ``test``, ``validation`` or ``train``.
        best: evaluate the checkpoint with the best validation accuracy, instead of the newest.
        calibrate: add ``content["calibrated"]``: the ``temperature`` that :func:`mnist_jax.fit_temperature` fits on the
            validation split of the run, and ``loss`` and ``expected_calibration_error`` with it.
        num_devices: devices that share each batch; None takes all GPUs or TPUs, but one CPU.
        model: the model, if the run was trained with your own, as for :func:`mnist_jax.load_run`.
        tx: the optimizer, if the run was trained with your own.

    Returns:
        All numbers. ``content["seconds"]`` holds wall seconds: ``start`` (imports, data, checkpoint), ``evaluate``,
        ``write`` (figures and files, and waiting for the gradient norms) and ``total``.

    Raises:
        InputError: the run, its checkpoint or the data cannot be read, the files cannot be written, or ``calibrate`` is
            asked for the split that the temperature is fitted on.

    Example:
        >>> import tempfile
        >>> from mnist_jax import TrainConfig, fit
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
        ...     report = evaluate_run(run.workdir)
        >>> report.content["accuracy"] == run.summary["test_accuracy"]
        True
    """
    start_time = time.perf_counter()
    if calibrate and split == "validation" and data is None:
        raise InputError("calibrate fits the temperature on the validation split: evaluate test or train")
    prepare_matplotlib()
    with ThreadPoolExecutor() as pool:  # imports these while JAX starts and the checkpoint is read
        for module in ("sklearn.metrics", "matplotlib.backends.backend_agg", "mnist_jax.report.tensorboardx"):
            pool.submit(importlib.import_module, module)
        from mnist_jax.core.calibration import fit_temperature
        from mnist_jax.core.evaluation import evaluate_dataset
        from mnist_jax.core.gradient_norms import per_example_gradient_norms
        from mnist_jax.core.saliency import saliency
        from mnist_jax.training.devices import choose_sharding, put_everywhere
        from mnist_jax.training.loading import load_run, load_run_dataset

        sharding = choose_sharding(num_devices)
        config, state = load_run(run, model=model, tx=tx, best=best)
        trained_on = read_data(Path(run)) or {}
        if data is None:
            dataset = load_run_dataset(run, data_dir=data_dir, stream=config.stream and split != "train")
        else:
            dataset = load_dataset(data, data_dir=data_dir or config.data_dir)
        own_data = dataset if data is None or not calibrate else load_run_dataset(run, stream=config.stream)

    part_start = time.perf_counter()
    seconds = {"start": part_start - start_time}
    examples: Split = getattr(dataset, split)
    is_own = split == "test" and dataset.identity().items() <= trained_on.items()
    parts = [*([] if is_own else [dataset.name.replace("/", "-"), split]), *(["best"] if best else [])]
    directory = Path(run, "-".join(parts))
    with lock_directory(directory), ThreadPoolExecutor() as pool:
        gradient_norms = pool.submit(per_example_gradient_norms, state, examples)  # runs while figures are drawn
        evaluate = functools.partial(evaluate_dataset, put_everywhere(state, sharding), sharding=sharding)
        evaluation = evaluate(examples)
        content = {
            "run": os.fspath(run),
            "model": trained_on.get("model") or config.model,
            "step": int(state.step),
            "dataset": dataset.name,
            "split": split,
            **describe_evaluation(evaluation, dataset.class_names),
        }
        if calibrate:
            validation = evaluate(own_data.validation)
            temperature = fit_temperature(validation.logits, validation.label)
            content["calibrated"] = describe_calibrated(evaluation, temperature)
        seconds["evaluate"] = time.perf_counter() - part_start

        part_start = time.perf_counter()
        try:
            maps = functools.partial(saliency, state)
            names = dataset.class_names
            figures = draw_evaluation(directory / "figures", evaluation, examples.image, content, names, maps)
            replace_events(directory, figures.values(), int(state.step))
            curves = Path(run, "figures", "learning_curves.png")
            if curves.exists():
                figures = {"learning curves": curves, **figures}
            page = html_report(content, figures, config)
        except OSError as error:
            raise InputError(f"{directory}: figures cannot be written ({error.strerror})") from None
        write_whole(directory / "report.html", page)
        write_whole(directory / "examples.csv", examples_csv(evaluation, np.asarray(gradient_norms.result())))
        seconds |= {"write": time.perf_counter() - part_start, "total": time.perf_counter() - start_time}
        content["seconds"] = seconds
        write_whole(directory / "evaluation.json", json.dumps(content, indent=2) + "\n")
    return RunReport(content, evaluation, directory)


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.evaluate") -> int:
    """Parses ``args`` (default: the command line), evaluates, and prints the table."""

    def command() -> None:
        description = "Evaluate a run, and write numbers, figures and a page into it."
        parser = OneLineParser(prog, description, "runs/mine --split validation")
        parser.add_argument("run", metavar="RUN", help="directory of the run")
        parser.add_argument("--data", metavar="NAME", help="a data set other than the run's: a name, directory or CSV")
        parser.add_argument("--data-dir", metavar="DIR", help="directory searched first for named data")
        parser.add_argument("--split", choices=SPLITS, default="test", help="split to evaluate; default: test")
        help_ = "evaluate the checkpoint with the best validation accuracy; default: the newest"
        parser.add_argument("--best", action="store_true", help=help_)
        help_ = "fit a temperature on the validation split, and show the calibration error before and after"
        parser.add_argument("--calibrate", action="store_true", help=help_)
        help_ = "devices that share each batch; default: all GPUs or TPUs, but one CPU"
        parser.add_argument("--num-devices", type=int, metavar="INT", help=help_)
        add_jax_flags(parser)
        flags = parser.parse_args(args)
        names = ("data", "data_dir", "split", "best", "calibrate", "num_devices")
        options = {name: getattr(flags, name) for name in names}
        report = evaluate_run(flags.run, **options)
        print(results_table(report.content))
        if flags.best:
            print(f"checkpoint of step {report.content['step']}, the best by validation accuracy")
        print(f"{report.content['seconds']['total']:.1f} s in all; everything is in {report.directory / 'report.html'}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
