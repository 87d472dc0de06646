"""Writes and draws training dynamics: scores of each example, a data map, and contact sheets.

text = scores_csv(dynamics, label, index)
draw_dynamics(directory, dynamics, dataset.train, dataset.class_names, index, title="mlp on mnist")
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnist_jax.core.dynamics import Dynamics
from mnist_jax.data import Split
from mnist_jax.report.figures import contact_sheet, data_map

_NUM_SHOWN = 30


def scores_csv(dynamics: Dynamics, label: np.ndarray, index: np.ndarray) -> str:
    """Returns a CSV with a line per example, which ``--scores`` takes.

    Args:
        dynamics: of N training examples.
        label: ``int[N]``, their classes.
        index: ``int[N]``, their numbers in the training split.
    """
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(
        (
            "index",
            "label",
            "score",
            "forgetting_events",
            "area_under_margin",
            "confidence",
            "variability",
            "correctness",
        )
    )
    events, place = dynamics.forgetting_events().tolist(), dynamics.data_map()
    columns = (dynamics.score(), dynamics.area_under_margin(), *place)
    numbers = [[f"{value:.6g}" for value in column.tolist()] for column in columns]
    for each in zip(index.tolist(), label.tolist(), numbers[0], events, *numbers[1:], strict=True):
        rows.writerow(each)
    return file.getvalue()


def draw_dynamics(
    directory: Path, dynamics: Dynamics, split: Split, class_names: Sequence[str], index: np.ndarray, title: str
) -> dict[str, Path]:
    """Draws the data map, and contact sheets of examples: easy, ambiguous, forgotten and never learned.

    Args:
        directory: directory of the PNGs, created if needed.
        dynamics: of N training examples.
        split: the examples.
        class_names: K names.
        index: ``int[N]``, their numbers in the training split.
        title: model and data.

    Returns:
        Path of each PNG by name.
    """
    names = [name.replace("$", r"\$") for name in class_names]  # Matplotlib reads $...$ as mathematics
    title = title.replace("$", r"\$")
    label, image = np.asarray(split.label), np.asarray(split.image)[..., 0]
    place, events, num_epochs = dynamics.data_map(), dynamics.forgetting_events(), len(dynamics.loss)
    figures = {"data map": directory / "data_map.png"}
    data_map(place, figures["data map"], f"{len(label):,} training examples over {num_epochs} epochs, {title}")

    def draw(name: str, order: np.ndarray, values: Sequence[str], text: str) -> None:
        figures[name] = directory / f"{name.replace(' ', '_')}.png"
        shown = order[:_NUM_SHOWN]
        captions = [(f"label {names[label[i]]}\nnumber {index[i]}\n{values[i]}", False) for i in shown]
        contact_sheet(image[shown], captions, figures[name], f"{text}, {title}")

    confidence, variability = place.confidence, place.variability
    values = [f"{value:.2%}" for value in confidence]
    draw("easy", np.argsort(-confidence, kind="stable"), values, "easiest: highest mean confidence")
    values = [f"± {value:.2f}" for value in variability]
    draw("ambiguous", np.argsort(-variability, kind="stable"), values, "most ambiguous: confidence varies most")
    values = [f"{count} times" for count in events]
    order = np.lexsort((confidence, -events))
    num_unlearned = int((events == num_epochs).sum())
    draw("forgotten", order[num_unlearned:], values, "most often forgotten")
    values = [f"{value:.2%}" for value in confidence]
    draw("never learned", order[:num_unlearned], values, "wrong in every epoch: lowest mean confidence")
    return figures
