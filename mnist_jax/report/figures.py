"""Draws the figures of runs, evaluations and sweeps.

learning_curves(history, workdir.path / "figures" / "learning_curves.png", title="mlp on mnist")
confusion_matrix(test.label, test.predictions, dataset.class_names, path, title="98.55 % of 10,000 test digits")
example_grid(dataset.test.image[:30], test.label[:30], test.logits[:30], dataset.class_names, path, title="test digits")
reliability_diagram(Calibration.compute(test.probabilities, test.label), path, title="calibration")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.atomic import atomic_write
from mnist_jax.core.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def learning_curves(history: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Saves the figure of :func:`draw_learning_curves` as a PNG.

    Args:
        history: lines of ``metrics.jsonl``.
        path: path of the PNG; its directory is created if needed.
        title: title above both panels.
    """
    _save(draw_learning_curves(history, title), path)


def draw_learning_curves(history: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Plots loss and accuracy on the training and validation split over the epochs.

    Args:
        history: lines of ``metrics.jsonl``.
        title: title above both panels.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [line["epoch"] for line in history]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(title)
    for axes, name, label in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("loss (nats)", "accuracy"), strict=True):
        for split, style in (("train", "o--"), ("validation", "o-")):
            values = [line[f"{split}_{name}"] for line in history]
            axes.plot(epochs, values, style, markersize=4, label=f"{split} {values[-1]:.4f}")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(title="last epoch")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    return figure


def confusion_matrix(
    label: np.ndarray, predictions: np.ndarray, class_names: Sequence[str], path: Path, title: str
) -> None:
    """Draws the confusion matrix as a PNG: counts, shaded by the share of the true class.

    Args:
        label: ``int[N]``, true classes.
        predictions: ``int[N]``, predicted classes.
        class_names: K names.
        path: path of the PNG; its directory is created if needed.
        title: title above the matrix.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    num_classes = len(class_names)
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (label, predictions), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    norm = PowerNorm(0.4, 0, 1)  # makes the few errors visible
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", norm=norm)
    for (true, predicted), count in np.ndenumerate(counts):
        color = "white" if norm(shares[true, predicted]) > 0.6 else "black" if count else "lightgrey"
        text = axes.text(predicted, true, f"{count}", ha="center", va="center", color=color)
        text.set_in_layout(False)  # saves layout time: the texts lie inside
    axes.set_xticks(range(num_classes), class_names)
    axes.set_yticks(range(num_classes), class_names)
    if max(map(len, class_names)) > 2:
        for name in axes.get_xticklabels():
            name.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    _save(figure, path)


def example_grid(
    image: np.ndarray, label: np.ndarray, logits: np.ndarray, class_names: Sequence[str], path: Path, title: str
) -> None:
    """Draws images with true class, predicted class and its probability, as a PNG; errors are red.

    Args:
        image: ``uint8[N, 28, 28, 1]``; N may be 0.
        label: ``int[N]``, true classes.
        logits: ``float32[N, K]``.
        class_names: K names.
        path: path of the PNG; its directory is created if needed.
        title: title above the grid.
    """
    from matplotlib.figure import Figure
    from scipy.special import softmax

    num_columns, width, height = 6, 38, 44  # of a cell, in image pixels: 28x28 in a frame, with text above
    num_rows = max(1, -(-len(image) // num_columns))
    figure = Figure(figsize=(9, 0.5 + 9 * num_rows * height / (num_columns * width)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    axes.set_axis_off()
    canvas = np.zeros((num_rows * height, num_columns * width), np.uint8)
    probabilities = softmax(logits, axis=-1)
    # Drawing one canvas takes a third of the time of one axes per image.
    for index, (pixels, true, probability) in enumerate(zip(image, label, probabilities, strict=True)):
        top, left = index // num_columns * height + 14, index % num_columns * width + 5
        canvas[top : top + 30, left : left + 30] = 40
        canvas[top + 1 : top + 29, left + 1 : left + 29] = pixels[..., 0]
        predicted = probability.argmax()
        text = axes.text(
            left + 14.5,
            top - 2,
            f"true {class_names[true]}\npredicted {class_names[predicted]}\n{probability[predicted]:.1%}",
            fontsize=8,
            ha="center",
            color="black" if predicted == true else "firebrick",
        )
        text.set_in_layout(False)
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    _save(figure, path)


def reliability_diagram(calibration: Calibration, path: Path, title: str) -> None:
    """Plots accuracy against confidence, and the number of examples per bin of confidence, as a PNG.

    Args:
        calibration: the bins to plot.
        path: path of the PNG; its directory is created if needed.
        title: title above both panels.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, PercentFormatter, StrMethodFormatter

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(title)
    accuracy, count = figure.subplots(1, 2)
    edges, filled = calibration.edges, calibration.count > 0
    place = {"x": edges[:-1][filled], "width": np.diff(edges)[filled], "align": "edge", "edgecolor": "white"}
    accuracy.bar(height=calibration.accuracy[filled], color="tab:blue", label="accuracy", **place)
    confidence = calibration.confidence[filled]
    accuracy.plot(confidence, confidence, "o", color="tab:orange", markersize=5, label="confidence")
    accuracy.plot([0, 1], [0, 1], ":", color="grey", linewidth=1, label="perfect calibration")
    accuracy.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center", ncols=3)
    count.bar(height=calibration.count[filled], color="tab:blue", **place)
    count.set(xlabel="confidence", ylabel="examples", xlim=(0, 1), yscale="log")
    count.set_ylim(bottom=0.5)
    count.yaxis.set(major_formatter=StrMethodFormatter("{x:,.0f}"), minor_formatter=NullFormatter())
    for axes in (accuracy, count):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    _save(figure, path)


def sweep_results(
    trials: Sequence[Mapping[str, Any]], scales: Mapping[str, str | Sequence[Any]], path: Path, title: str
) -> None:
    """Plots validation accuracy against each varied hyperparameter, one panel each, as a PNG.

    A ring marks the best trial. Trials far below the others, and diverged ones, appear at the lower edge.

    Args:
        trials: lines of ``trials.jsonl``, best first.
        scales: maps each hyperparameter to ``log``, ``linear`` or its choices.
        path: path of the PNG; its directory is created if needed.
        title: title above the panels.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    num_rows = 1 if len(scales) <= 3 else 2
    num_columns = -(-len(scales) // num_rows)
    figure = Figure(figsize=(1 + 3.6 * num_columns, 1.2 + 3 * num_rows), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).ravel()
    for axes in panels[len(scales) :]:
        axes.set_axis_off()

    accuracy = np.array([trial["validation_accuracy"] for trial in trials])
    diverged = np.array([trial["validation_loss"] is None for trial in trials])
    finite = accuracy[~diverged] if not diverged.all() else accuracy
    # A few bad trials must not compress the good ones into one line.
    floor = max(finite.min(), finite.max() - 3 * (finite.max() - np.median(finite)))
    marker = np.where(diverged, "x", np.where(accuracy < floor, "v", "o"))
    y = np.where(marker == "o", accuracy, floor - 0.05 * (finite.max() - floor) - 0.002)
    suffixes = {"o": "", "v": ", lower", "x": ", diverged"}
    epochs = np.array([trial["epochs"] for trial in trials])
    colours = colormaps["viridis_r"](np.linspace(0.2, 1, len(set(epochs))))
    for axes, (name, scale) in zip(panels, scales.items(), strict=False):
        values = [trial["hyperparameters"][name] for trial in trials]
        if isinstance(scale, str):
            x = np.array(values, float)
            axes.set_xscale(scale)
        else:  # spread the trials of one choice sideways, by the golden ratio
            x = np.array([list(scale).index(value) for value in values], float)
            x += [0.4 * (0.618 * trial["number"] % 1 - 0.5) for trial in trials]
            texts = [",".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in scale]
            axes.set_xticks(range(len(texts)), texts, rotation=30 if sum(map(len, texts)) > 24 else 0)
            axes.set_xlim(-0.5, len(texts) - 0.5)
        for number, colour in zip(sorted(set(epochs)), colours, strict=True):
            for kind, suffix in suffixes.items():
                chosen = (epochs == number) & (marker == kind)
                if chosen.any():
                    label = f"{number} epoch{'s' if number > 1 else ''}{suffix}"
                    axes.scatter(x[chosen], y[chosen], s=36, color=colour, marker=kind, label=label)
        axes.plot(x[0], y[0], "o", markersize=12, markerfacecolor="none", color="tab:red", label="best")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in panels[::num_columns]:
        axes.set_ylabel("validation accuracy")
    legend: dict[str, Any] = {}
    for axes in panels:
        legend |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, locked=True) as file:
        figure.savefig(file, dpi=150)
