"""Draws all figures of an evaluation.

maps = functools.partial(saliency, state)
figures = draw_evaluation(directory, evaluation, dataset.test.image, content, dataset.class_names, maps)
figures["confusion matrix"]   # directory / "confusion_matrix.png"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.core.calibration import Calibration
from mnist_jax.report.figures import (
    confused_classes,
    confusion_matrix,
    example_grid,
    reliability_diagram,
    saliency_grid,
)
from mnist_jax.report.numbers import NUM_SHOWN

if TYPE_CHECKING:
    from mnist_jax.core.evaluation import Evaluation


def draw_evaluation(
    directory: Path,
    evaluation: Evaluation,
    image: np.ndarray,
    content: Mapping[str, Any],
    class_names: Sequence[str],
    saliency: Callable[[np.ndarray], Any],
) -> dict[str, Path]:
    """Draws the figures of an evaluation as PNGs.

    Args:
        directory: directory of the PNGs, created if needed.
        evaluation: evaluation of the split.
        image: ``uint8[N, 28, 28, 1]``, images of the split.
        content: content of ``evaluation.json``, with ``dataset`` and ``split``.
        class_names: K names.
        saliency: function of ``uint8[M, 28, 28, 1]`` that returns saliency maps ``float32[M, 28, 28]``.

    Returns:
        Path of each PNG by name, in display order.
    """
    label, predictions, logits = evaluation.label, evaluation.predictions, evaluation.logits
    class_names = [name.replace("$", r"\$") for name in class_names]  # Matplotlib reads $...$ as mathematics
    dataset = content["dataset"].replace("$", r"\$")
    examples = f"{evaluation.num_examples:,} {content['split']} examples of {dataset}"
    figures: dict[str, Path] = {}

    def path_of(name: str) -> Path:
        figures[name] = directory / f"{name.replace(' ', '_')}.png"
        return figures[name]

    def draw_examples(name: str, shown: Sequence[int], title: str) -> None:
        example_grid(image[shown], label[shown], logits[shown], class_names, path_of(name), title)

    title = f"accuracy {evaluation.accuracy:.2%}, {examples}"
    confusion_matrix(label, predictions, class_names, path_of("confusion matrix"), title)
    title = f"mean images of the most frequent confusions, {examples}"
    confused_classes(image, label, predictions, class_names, path_of("confused classes"), title)

    by_confidence = sorted(content["misclassified"], key=lambda example: -example["confidence"])
    wrong = [example["index"] for example in by_confidence]
    shown = wrong[:NUM_SHOWN]
    title = f"{len(shown)} of {len(wrong):,} misclassified, most confident first; {examples}"
    draw_examples("misclassified", shown, title)

    first_right = [np.flatnonzero((label == k) & (predictions == k))[:1] for k in range(len(class_names))]
    shown = [*wrong[:5], *np.concatenate(first_right).tolist()][:NUM_SHOWN]
    maps = np.asarray(saliency(image[shown]))
    title = "saliency: more ink raises (red) or lowers (blue) the logit of the predicted class"
    saliency_grid(image[shown], maps, label[shown], logits[shown], class_names, path_of("saliency"), title)

    draw_examples("hardest", [example["index"] for example in content["hardest"]], f"largest losses of {examples}")
    calibration = Calibration.compute(evaluation.probabilities, label)
    title = f"expected calibration error {calibration.expected_error:.2%}, {examples}"
    reliability_diagram(calibration, path_of("calibration"), title)
    draw_examples("predictions", range(min(NUM_SHOWN, len(label))), f"first of {examples}")
    return figures
