"""Draws all figures of an evaluation.

figures = draw_evaluation(Path("runs/mine/figures"), evaluation, dataset.test.image, content, dataset.class_names)
figures["confusion matrix"]   # runs/mine/figures/confusion_matrix.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.core.calibration import Calibration
from mnist_jax.report.figures import confusion_matrix, example_grid, reliability_diagram
from mnist_jax.report.numbers import NUM_SHOWN

if TYPE_CHECKING:
    from mnist_jax.core.evaluation import Evaluation


def draw_evaluation(
    directory: Path, evaluation: Evaluation, image: np.ndarray, content: Mapping[str, Any], class_names: Sequence[str]
) -> dict[str, Path]:
    """Draws the figures of an evaluation as PNGs.

    Args:
        directory: directory of the PNGs, created if needed.
        evaluation: evaluation of the split.
        image: ``uint8[N, 28, 28, 1]``, images of the split.
        content: content of ``evaluation.json``, with ``dataset`` and ``split``.
        class_names: K names.

    Returns:
        Path of each PNG by name, in display order.
    """
    label, predictions, logits = evaluation.label, evaluation.predictions, evaluation.logits
    examples = f"{evaluation.num_examples:,} {content['split']} examples of {content['dataset']}"
    wrong = [example["index"] for example in content["misclassified"]]
    hardest = [example["index"] for example in content["hardest"]]
    grids = {
        "predictions": (range(min(NUM_SHOWN, len(label))), f"first of {examples}"),
        "misclassified": (wrong[:NUM_SHOWN], f"misclassified: {len(wrong):,} of {examples}"),
        "hardest": (hardest, f"largest losses of {examples}"),
    }
    figures = {
        name: directory / f"{name.replace(' ', '_')}.png" for name in ("confusion matrix", "calibration", *grids)
    }
    confusion_matrix(
        label,
        predictions,
        class_names,
        figures["confusion matrix"],
        f"accuracy {evaluation.accuracy:.2%}, {examples}",
    )
    calibration = Calibration.compute(evaluation.probabilities, label)
    title = f"expected calibration error {calibration.expected_error:.2%}, {examples}"
    reliability_diagram(calibration, figures["calibration"], title)
    for name, (indices, title) in grids.items():
        shown = list(indices)
        example_grid(image[shown], label[shown], logits[shown], class_names, figures[name], title)
    return figures
