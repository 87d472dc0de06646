"""Evaluates a run in every detail, and writes it all down. The command ``python -m mnist_jax.evaluate RUN``.

    report = evaluate_run("runs/mine")
    report.content["accuracy"], report.content["classes"][3]["recall"]

evaluation.json    every number             examples.csv    a line for each example
figures/*.png      confusion matrix, ...    report.html     all of it on one page that needs nothing else

These go into the run, or into ``RUN/<data>-<split>`` for data or a split other than the run's own test split. What
needs JAX is imported inside :func:`evaluate_run`: ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.cli.flags import OneLineParser, run_command
from mnist_jax.core.calibration import Calibration
from mnist_jax.data import Split, load_dataset
from mnist_jax.errors import InputError
from mnist_jax.report.page import html_report
from mnist_jax.training.directory import lock_directory, read_data, write_whole

if TYPE_CHECKING:
    from mnist_jax.core.evaluation import Evaluation

SPLITS = ("test", "validation", "train")
_NUM_SHOWN = 30  # images in a figure


@dataclasses.dataclass(frozen=True)
class RunReport:
    """A run that was evaluated.

    Attributes:
        content: what ``evaluation.json`` says.
        evaluation: of the split, with its logits.
        directory: of the files.

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
) -> RunReport:
    """Evaluates a run on a split, and writes numbers, figures, a table of the examples, and a page.

    Args:
        run: its directory.
        data: as for ``load_dataset``; None takes what the run was trained on.
        data_dir: as for ``load_dataset``; None takes that of the run.
        split: ``test``, ``validation`` or ``train``.

    Returns:
        All numbers. ``content["seconds"]`` holds wall seconds: ``start`` (imports, data, checkpoint), ``evaluate``,
        ``write`` (figures and files, with the rest of the gradient norms) and ``total``.

    Raises:
        InputError: there is no such run, its checkpoint or the data cannot be read, or nothing can be written.

    Example:
        >>> import tempfile
        >>> from mnist_jax import TrainConfig, fit
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
        ...     report = evaluate_run(run.workdir)
        >>> report.content["accuracy"] == run.summary["test_accuracy"]
        True
    """
    started = time.perf_counter()
    with ThreadPoolExecutor() as pool:  # what is imported while JAX starts and the checkpoint is read
        for module in ("sklearn.metrics", "matplotlib.backends.backend_agg", "tensorboardX"):
            pool.submit(importlib.import_module, module)
        from mnist_jax.core.evaluation import evaluate_dataset
        from mnist_jax.core.per_example import per_example_gradient_norms
        from mnist_jax.training.build import load_run

        config, state = load_run(run)
        num_validation = config.num_validation if data is None else None
        dataset = load_dataset(data or config.data, data_dir=data_dir or config.data_dir, num_validation=num_validation)

    begun = time.perf_counter()
    seconds = {"start": begun - started}
    examples: Split = getattr(dataset, split)
    directory = Path(run)
    if split != "test" or dataset.identity() != read_data(directory):
        directory /= f"{dataset.name.replace('/', '-')}-{split}"
    with lock_directory(directory), ThreadPoolExecutor() as pool:
        gradient_norms = pool.submit(per_example_gradient_norms, state, examples)  # goes on while figures are drawn
        evaluation = evaluate_dataset(state, examples)
        content = {
            "run": os.fspath(run),
            "model": config.model,
            "step": int(state.step),
            "dataset": dataset.name,
            "split": split,
            **describe(evaluation, dataset.class_names),
        }
        seconds["evaluate"] = time.perf_counter() - begun

        begun = time.perf_counter()
        try:
            figures = _draw_figures(directory / "figures", evaluation, examples.image, content, dataset.class_names)
            _write_events(directory, figures.values(), int(state.step))
            curves = Path(run, "figures", "learning_curves.png")
            if curves.exists():
                figures["learning curves"] = curves
            page = html_report(content, figures, config)
        except OSError as error:
            raise InputError(f"{directory}: figures cannot be written ({error.strerror})") from None
        write_whole(directory / "report.html", page)
        write_whole(directory / "examples.csv", _examples_csv(evaluation, np.asarray(gradient_norms.result())))
        seconds |= {"write": time.perf_counter() - begun, "total": time.perf_counter() - started}
        content["seconds"] = seconds
        write_whole(directory / "evaluation.json", json.dumps(content, indent=2) + "\n")
    return RunReport(content, evaluation, directory)


def describe(evaluation: Evaluation, class_names: Sequence[str]) -> dict[str, Any]:
    """The numbers of ``evaluation.json``: loss and accuracy, by class, calibration, confusions, single examples.

    Args:
        evaluation: of a split.
        class_names: K names.

    Returns:
        A JSON object. Precision, recall and F1 are 0 where they are 0 / 0. ``confusion_matrix[i][j]`` counts the
        examples of class i that were taken for class j. ``hardest`` are those with the largest loss, ``misclassified``
        all that are wrong, in the order of the split.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    label, predictions, losses = evaluation.label, evaluation.predictions, evaluation.losses
    confidence = evaluation.probabilities.max(axis=1)
    calibration = Calibration.measure(evaluation.probabilities, label)
    classes = range(len(class_names))
    precision, recall, f1, count = precision_recall_fscore_support(label, predictions, labels=classes, zero_division=0)

    def examples(indices: np.ndarray) -> list[dict[str, Any]]:
        columns = {
            "index": indices,
            "label": label,
            "prediction": predictions,
            "confidence": confidence,
            "loss": losses,
        }
        columns = {name: values if name == "index" else values[indices] for name, values in columns.items()}
        return _rows(columns)

    return {
        "num_examples": evaluation.num_examples,
        "loss": evaluation.loss,
        "accuracy": evaluation.accuracy,
        "expected_calibration_error": calibration.expected_error,
        "classes": _rows(
            {"name": np.array(class_names), "num_examples": count, "precision": precision, "recall": recall, "f1": f1}
        ),
        "confusion_matrix": confusion_matrix(label, predictions, labels=classes).tolist(),
        "calibration": _rows(
            {
                "from": calibration.edges[:-1],
                "to": calibration.edges[1:],
                "num_examples": calibration.count,
                "confidence": calibration.confidence,
                "accuracy": calibration.accuracy,
            }
        ),
        "hardest": examples(np.argsort(-losses, kind="stable")[:_NUM_SHOWN]),
        "misclassified": examples(np.flatnonzero(predictions != label)),
    }


def _rows(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Columns as JSON objects; NaN, which JSON has not, becomes null."""
    lists = [[None if value != value else value for value in column.tolist()] for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _examples_csv(evaluation: Evaluation, gradient_norms: np.ndarray) -> str:
    columns = {
        "index": np.arange(evaluation.num_examples),
        "label": evaluation.label,
        "prediction": evaluation.predictions,
        "loss": evaluation.losses,
        "margin": evaluation.margins,
        "gradient_norm": gradient_norms,
    }
    rows = zip(*(column.astype(str) for column in columns.values()), strict=True)
    return "\n".join([",".join(columns), *map(",".join, rows)]) + "\n"


def _draw_figures(
    directory: Path, evaluation: Evaluation, image: np.ndarray, content: Mapping[str, Any], class_names: Sequence[str]
) -> dict[str, Path]:
    """Draws the figures of an evaluation, and returns them by name."""
    from mnist_jax.report.figures import confusion_matrix, example_grid, reliability_diagram

    label, predictions, logits = evaluation.label, evaluation.predictions, evaluation.logits
    examples = f"{evaluation.num_examples:,} {content['split']} examples of {content['dataset']}"
    wrong = [example["index"] for example in content["misclassified"]]
    hardest = [example["index"] for example in content["hardest"]]
    titles = {
        "predictions": (range(min(_NUM_SHOWN, len(label))), f"the first of {examples}"),
        "misclassified": (wrong[:_NUM_SHOWN], f"misclassified: {len(wrong):,} of {examples}"),
        "hardest": (hardest, f"the largest losses of {examples}"),
    }
    figures = {
        name: directory / f"{name.replace(' ', '_')}.png" for name in ("confusion matrix", "calibration", *titles)
    }
    confusion_matrix(
        label,
        predictions,
        class_names,
        figures["confusion matrix"],
        f"{evaluation.accuracy:.2%} of {examples} are right",
    )
    calibration = Calibration.measure(evaluation.probabilities, label)
    title = f"expected calibration error {calibration.expected_error:.2%}, {examples}"
    reliability_diagram(calibration, figures["calibration"], title)
    for name, (indices, title) in titles.items():
        shown = list(indices)
        example_grid(image[shown], label[shown], logits[shown], class_names, figures[name], title)
    return figures


def _write_events(directory: Path, figures: Iterable[Path], step: int) -> None:
    """Shows the figures in TensorBoard, in the place of those of the last evaluation."""
    from tensorboardX import SummaryWriter

    from mnist_jax.report.figures import show_in_tensorboard

    for last in directory.glob("events.out.tfevents.*.evaluate"):
        last.unlink()
    with SummaryWriter(str(directory), filename_suffix=".evaluate") as board:
        for path in figures:
            show_in_tensorboard(board, path, step)


def results_table(content: Mapping[str, Any]) -> str:
    """The numbers of an evaluation as text."""
    classes = content["classes"]
    width = max(5, *(len(row["name"]) for row in classes))
    mean = {name: math.fsum(row[name] for row in classes) / len(classes) for name in ("precision", "recall", "f1")}
    lines = [f"{'class':<{width}}{'examples':>10}{'precision':>11}{'recall':>9}{'F1':>9}"]
    for row in (*classes, {"name": "mean", "num_examples": content["num_examples"], **mean}):
        lines.append(
            f"{row['name']:<{width}}{row['num_examples']:>10,}{row['precision']:>11.2%}{row['recall']:>9.2%}{row['f1']:>9.2%}"
        )
    lines += [
        "",
        f"{content['model']} on the {content['num_examples']:,} {content['split']} examples of {content['dataset']}: "
        f"accuracy {content['accuracy']:.2%}, loss {content['loss']:.4f}",
        f"{len(content['misclassified']):,} misclassified{_most_confused(content)}; "
        f"expected calibration error {content['expected_calibration_error']:.2%}",
    ]
    return "\n".join(lines)


def _most_confused(content: Mapping[str, Any]) -> str:
    """Which class was most often taken for which other."""
    confusions = np.array(content["confusion_matrix"])
    np.fill_diagonal(confusions, 0)
    true, predicted = np.unravel_index(confusions.argmax(), confusions.shape)
    if not confusions[true, predicted]:
        return ""
    names = [row["name"] for row in content["classes"]]
    return f", most often {names[true]} taken for {names[predicted]} ({confusions[true, predicted]} times)"


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.evaluate") -> int:
    """The command: parses ``args`` (default: the command line), evaluates, prints the table."""

    def command() -> None:
        parser = OneLineParser(prog=prog, description="Evaluate a run, and write numbers, figures and a page into it.")
        parser.add_argument("run", metavar="RUN", help="its directory")
        parser.add_argument("--data", help="evaluate on other data than the run's: a name, a directory or a CSV")
        parser.add_argument("--data-dir", help="directory looked in first for mnist")
        parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
        flags = parser.parse_args(args)
        report = evaluate_run(flags.run, data=flags.data, data_dir=flags.data_dir, split=flags.split)
        print(results_table(report.content))
        print(f"{report.content['seconds']['total']:.1f} s in all; everything is in {report.directory / 'report.html'}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
