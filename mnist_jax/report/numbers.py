"""Turns an evaluation into numbers: ``evaluation.json``, ``examples.csv`` and a text table.

    numbers = describe_evaluation(evaluation, dataset.class_names)
    numbers["classes"][3]["recall"], numbers["misclassified"][0]["index"]

This module does not import JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.core.calibration import Calibration

if TYPE_CHECKING:
    from mnist_jax.core.evaluation import Evaluation

NUM_SHOWN = 36  # examples listed as hardest, and images per figure


def describe_evaluation(evaluation: Evaluation, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the numbers of ``evaluation.json``: loss, accuracy, classes, calibration, confusions and single examples.

    Args:
        evaluation: evaluation of a split.
        class_names: K names.

    Returns:
        A JSON object. Precision, recall and F1 are 0 where undefined (0 / 0). ``confusion_matrix[i][j]`` counts the
        examples of class i predicted as class j. ``hardest`` lists the examples with the largest loss,
        ``misclassified`` all errors, in the order of the split.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    label, predictions, losses = evaluation.label, evaluation.predictions, evaluation.losses
    confidence = evaluation.probabilities.max(axis=1)
    calibration = Calibration.compute(evaluation.probabilities, label)
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
        "hardest": examples(np.argsort(-losses, kind="stable")[:NUM_SHOWN]),
        "misclassified": examples(np.flatnonzero(predictions != label)),
    }


def describe_calibrated(evaluation: Evaluation, temperature: float) -> dict[str, float]:
    """Returns ``temperature``, and ``loss`` and ``expected_calibration_error`` of the logits divided by it."""
    calibrated = dataclasses.replace(evaluation, logits=evaluation.logits / np.float32(temperature))
    calibration = Calibration.compute(calibrated.probabilities, calibrated.label)
    return {
        "temperature": temperature,
        "loss": float(calibrated.losses.mean(dtype=np.float64)),
        "expected_calibration_error": calibration.expected_error,
    }


def examples_csv(evaluation: Evaluation, gradient_norms: np.ndarray) -> str:
    """Returns a CSV with one line per example, in the order of the split.

    Args:
        evaluation: evaluation of the split.
        gradient_norms: ``float32[N]``, from :func:`mnist_jax.per_example_gradient_norms`.
    """
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


def results_table(content: Mapping[str, Any]) -> str:
    """Returns the numbers of an evaluation as a text table.

    Args:
        content: content of ``evaluation.json``.
    """
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
    if "calibrated" in content:
        scaled = content["calibrated"]
        lines.append(
            f"with temperature {scaled['temperature']:.3f}, fitted on validation: expected calibration error "
            f"{scaled['expected_calibration_error']:.2%}, loss {scaled['loss']:.4f}"
        )
    return "\n".join(lines)


def _most_confused(content: Mapping[str, Any]) -> str:
    """Names the most frequent confusion of two classes."""
    confusions = np.array(content["confusion_matrix"])
    np.fill_diagonal(confusions, 0)
    true, predicted = np.unravel_index(confusions.argmax(), confusions.shape)
    if not confusions[true, predicted]:
        return ""
    names = [row["name"] for row in content["classes"]]
    return f", most often {names[true]} taken for {names[predicted]} ({confusions[true, predicted]} times)"


def _rows(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Converts columns to a list of JSON objects; NaN, which JSON lacks, becomes null."""
    lists = [[None if value != value else value for value in column.tolist()] for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
