"""Draws the figures of runs, evaluations and sweeps.

learning_curves(history, workdir.path / "figures" / "learning_curves.png", title="mlp on mnist")
confusion_matrix(test.label, test.predictions, dataset.class_names, path, title="98.55 % of 10,000 test digits")
example_grid(dataset.test.image[:30], test.label[:30], test.logits[:30], dataset.class_names, path, title="test digits")
saliency_grid(image, saliency(state, image), label, logits, dataset.class_names, path, title="saliency")
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

    from mnist_jax.core.dynamics import DataMap

_TRAIN_LABEL = "train (during the epoch)"


def learning_curves(
    history: Sequence[Mapping[str, Any]], path: Path, title: str, train_label: str = _TRAIN_LABEL
) -> None:
    """Saves the figure of :func:`draw_learning_curves` as a PNG.

    Args:
        history: lines of ``metrics.jsonl``.
        path: path of the PNG; its directory is created if needed.
        title: title above both panels.
        train_label: label of the training curve, which is measured differently from validation.
    """
    _save(draw_learning_curves(history, title, train_label), path)


def draw_learning_curves(history: Sequence[Mapping[str, Any]], title: str, train_label: str = _TRAIN_LABEL) -> Figure:
    """Plots loss and accuracy on the training and validation split over the epochs.

    For a private run, a third panel has the validation accuracy over epsilon.

    Args:
        history: lines of ``metrics.jsonl``.
        title: title above both panels.
        train_label: label of the training curve, which is measured differently from validation.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [line["epoch"] for line in history]
    is_private = bool(history) and all("epsilon" in line for line in history)
    figure = Figure(figsize=(9 + 4 * is_private, 3.8), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2 + is_private)
    for axes, name, label in zip(panels, ("loss", "accuracy"), ("loss (nats)", "accuracy"), strict=False):
        for split, style, text in (("train", "o--", train_label), ("validation", "o-", "validation (after the epoch)")):
            axes.plot(epochs, [line[f"{split}_{name}"] for line in history], style, markersize=4, label=text)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    figure.legend(handles=axes.lines, loc="outside lower center", ncols=2)
    if is_private:
        epsilon, accuracy = ([line[name] for line in history] for name in ("epsilon", "validation_accuracy"))
        panels[2].plot(epsilon, accuracy, "o-", markersize=4, color=axes.lines[1].get_color())
        panels[2].set(xlabel="epsilon: privacy spent so far", ylabel="validation accuracy")
        panels[2].grid(alpha=0.3)
    for axes in panels[1:]:
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


def confused_classes(
    image: np.ndarray, label: np.ndarray, predictions: np.ndarray, class_names: Sequence[str], path: Path, title: str
) -> None:
    """Draws the six most frequent confusions as mean images, as a PNG.

    For each it shows the mean of the true class, of its examples taken for another class, and of that other class.

    Args:
        image: ``uint8[N, 28, 28, 1]``.
        label: ``int[N]``, true classes.
        predictions: ``int[N]``, predicted classes.
        class_names: K names.
        path: path of the PNG; its directory is created if needed.
        title: title above the grid.
    """
    pairs, counts = np.unique(np.stack([label, predictions])[:, label != predictions], axis=1, return_counts=True)
    most_frequent = np.argsort(-counts, kind="stable")[:6]
    means, captions = [], []
    for true, predicted in pairs[:, most_frequent].T:
        name, other = f"true {class_names[true]}", class_names[predicted]
        for text, chosen in (
            (name, label == true),
            (f"{name}\npredicted {other}", (label == true) & (predictions == predicted)),
            (f"true {other}", label == predicted),
        ):
            count = int(chosen.sum())
            means.append(image[chosen, :, :, 0].mean(axis=0) if count else np.zeros((28, 28)))
            captions.append((f"{text}\n{count:,} example{'s' if count != 1 else ''}", "\n" in text))
    contact_sheet(np.array(means).reshape(-1, 28, 28), captions, path, title, group=3)


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
    contact_sheet(image[..., 0], _captions(label, logits, class_names), path, title)


def saliency_grid(
    image: np.ndarray,
    maps: np.ndarray,
    label: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Draws each image above its saliency map, as a PNG: red where more ink raises the logit, blue where it lowers it.

    The colours of each map span plus and minus its largest absolute value.

    Args:
        image: ``uint8[N, 28, 28, 1]``.
        maps: ``float32[N, 28, 28]``, from :func:`mnist_jax.saliency`.
        label: ``int[N]``, true classes.
        logits: ``float32[N, K]``.
        class_names: K names.
        path: path of the PNG; its directory is created if needed.
        title: title above the grid.
    """
    from matplotlib import colormaps

    scale = np.abs(maps).max(axis=(1, 2), keepdims=True, initial=np.finfo(np.float32).tiny)
    colours = colormaps["RdBu_r"](0.5 + 0.5 * maps / scale, bytes=True)[..., :3]
    ink = np.repeat(255 - image, 3, axis=-1)
    pictures, captions = np.concatenate([ink, colours], axis=1), _captions(label, logits, class_names)
    contact_sheet(pictures, captions, path, title, num_columns=5)


def influence_grid(
    image: np.ndarray,
    helpful: np.ndarray,
    opposing: np.ndarray,
    helpful_captions: Sequence[str],
    opposing_captions: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Draws a picture, and below it the training examples that spoke for and, in red, against a class, as a PNG.

    Args:
        image: ``uint8[28, 28, 1]``.
        helpful: ``uint8[N, 28, 28, 1]``.
        opposing: ``uint8[M, 28, 28, 1]``.
        helpful_captions: captions of ``helpful``.
        opposing_captions: captions of ``opposing``.
        path: path of the PNG; its directory is created if needed.
        title: title above the grid.
    """
    num_columns = max(len(helpful), len(opposing), 3)
    blank, rows, captions = np.zeros_like(image), [], list[tuple[str, bool]]()
    for images, texts, is_red in (
        (image[None], ["the picture"], False),
        (helpful, helpful_captions, False),
        (opposing, opposing_captions, True),
    ):
        num_missing = num_columns - len(images)
        rows += [*images, *[blank] * num_missing]
        captions += [(text, is_red) for text in texts] + [("", False)] * num_missing
    contact_sheet(np.array(rows)[..., 0], captions, path, title, num_columns=num_columns, group=num_columns)


def _captions(label: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, bool]]:
    """Returns for each example its caption, and whether it is misclassified."""
    from scipy.special import softmax

    return [
        (f"true {class_names[true]}\npredicted {class_names[each.argmax()]}\n{each.max():.1%}", true != each.argmax())
        for true, each in zip(label, softmax(logits, axis=-1), strict=True)
    ]


def contact_sheet(
    pictures: np.ndarray,
    captions: Sequence[tuple[str, bool]],
    path: Path,
    title: str,
    num_columns: int = 6,
    group: int = 6,
) -> None:
    """Draws pictures in frames, each below its caption, as a PNG.

    Args:
        pictures: ``[N, H, W]`` from 0, white, to 255, or RGB ``uint8[N, H, W, 3]``.
        captions: for each picture up to three lines of text, and whether it is red; a picture without is left out.
        path: path of the PNG; its directory is created if needed.
        title: title above the grid.
        num_columns: pictures per row.
        group: a gap follows this number of pictures in a row.
    """
    from matplotlib.figure import Figure

    picture_height, picture_width = pictures.shape[1:3]
    width, height = picture_width + 10, picture_height + 16  # of a cell, in image pixels: with frame and caption
    num_rows = max(1, -(-len(pictures) // num_columns))
    size = num_rows * height, num_columns * width + (num_columns - 1) // group * 10
    figure = Figure(figsize=(9, 0.5 + 9 * size[0] / size[1]), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    axes.set_axis_off()
    background, frame = (255, 215) if pictures.ndim == 4 else (0, 40)
    canvas = np.full(size + pictures.shape[3:], background, np.uint8)
    # Drawing one canvas takes a third of the time of one axes per image.
    for index, (picture, (caption, is_red)) in enumerate(zip(pictures, captions, strict=True)):
        if not caption:
            continue
        row, column = divmod(index, num_columns)
        top, left = row * height + 14, column * width + column // group * 10 + 5
        canvas[top : top + picture_height + 2, left : left + picture_width + 2] = frame
        canvas[top + 1 : top + 1 + picture_height, left + 1 : left + 1 + picture_width] = picture
        color = "firebrick" if is_red else "black"
        text = axes.text(left + picture_width / 2 + 0.5, top - 2, caption, fontsize=8, ha="center", color=color)
        text.set_in_layout(False)
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    _save(figure, path)


def reliability_diagram(calibration: Calibration, path: Path, title: str) -> None:
    """Plots accuracy and number of examples per bin of confidence, as a PNG.

    Each bin with examples has its accuracy at its mean confidence, with the 95% Wilson score interval.

    Reference: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.

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
    share = calibration.accuracy[filled]
    low, high = _wilson_interval(share, calibration.count[filled])
    accuracy.errorbar(
        calibration.confidence[filled],
        share,
        yerr=np.stack([share - low, high - share]),
        fmt="o",
        markersize=5,
        capsize=3,
        label="accuracy at mean confidence, with 95% Wilson interval",
    )
    accuracy.plot([0, 1], [0, 1], ":", color="grey", linewidth=1, label="perfect calibration")
    accuracy.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(-0.02, 1.02))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center", ncols=2)
    count.bar(height=calibration.count[filled], color="tab:blue", **place)
    count.set(xlabel="confidence", ylabel="examples", xlim=(0, 1.02), yscale="log")
    count.set_ylim(bottom=0.5)
    count.yaxis.set(major_formatter=StrMethodFormatter("{x:,.0f}"), minor_formatter=NullFormatter())
    for axes in (accuracy, count):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    _save(figure, path)


def _wilson_interval(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the 95% Wilson score interval of shares of ``count`` examples."""
    z = 1.96
    centre = share + z**2 / (2 * count)
    spread = z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z**2 / count
    # Rounding must not move an end past the share.
    return np.minimum((centre - spread) / scale, share), np.maximum((centre + spread) / scale, share)


def data_map(place: DataMap, path: Path, title: str) -> None:
    """Draws a data map as a PNG: confidence against variability of each example, coloured by correctness.

    Reference: Swayamdipta et al., "Dataset Cartography", https://arxiv.org/abs/2009.10795.

    Args:
        place: coordinates of N examples.
        path: path of the PNG; its directory is created if needed.
        title: title above the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplot_mosaic([["map", "confidence"], ["map", "variability"]], width_ratios=(2.2, 1))
    axes = panels["map"]
    # Draws the few hard examples last, above the crowd.
    order = np.argsort(-place.correctness, kind="stable")
    points = axes.scatter(
        place.variability[order],
        place.confidence[order],
        c=place.correctness[order],
        s=4,
        cmap="coolwarm_r",
        vmin=0,
        vmax=1,
        linewidths=0,
        rasterized=True,
    )
    axes.set(xlabel="variability: standard deviation over the epochs", ylabel="confidence: mean over the epochs")
    axes.set(xlim=(-0.01, 0.51), ylim=(-0.02, 1.02))
    for text, at, alignment in (
        ("easy", (0.03, 0.94), "left"),
        ("ambiguous", (0.49, 0.5), "right"),
        ("hard", (0.03, 0.04), "left"),
    ):
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
        axes.text(*at, text, ha=alignment, va="center", fontsize=11, bbox=box)
    bar = figure.colorbar(points, ax=axes, location="bottom", shrink=0.7, label="epochs with a correct prediction")
    bar.formatter = PercentFormatter(1.0)
    for name in ("confidence", "variability"):
        panels[name].hist(getattr(place, name), bins=40, color="tab:blue")
        panels[name].set(xlabel=name, ylabel="examples", yscale="log")
    for each in panels.values():
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
    _save(figure, path)


def sweep_results(
    trials: Sequence[Mapping[str, Any]], scales: Mapping[str, str | Sequence[Any]], path: Path, title: str
) -> None:
    """Plots validation accuracy against each varied hyperparameter, one panel each, as a PNG.

    A ring marks the best trial. The colour is darker where trials overlap. Trials far below the others, and diverged
    ones, appear at the lower edge.

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
    colours = colormaps["viridis_r"](np.linspace(1, 0.2, len(set(epochs)))[::-1])  # most epochs darkest
    for axes, (name, scale) in zip(panels, scales.items(), strict=False):
        values = [trial["hyperparameters"][name] for trial in trials]
        if isinstance(scale, str):
            x = np.array(values, float)
            axes.set_xscale(scale)
        else:
            x = np.array([list(scale).index(value) for value in values], float)
            texts = [",".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in scale]
            axes.set_xticks(range(len(texts)), texts, rotation=30 if sum(map(len, texts)) > 24 else 0)
            axes.set_xlim(-0.5, len(texts) - 0.5)
        for number, colour in zip(sorted(set(epochs)), colours, strict=True):
            for kind, suffix in suffixes.items():
                chosen = (epochs == number) & (marker == kind)
                if chosen.any():
                    label = f"{number} epoch{'s' if number > 1 else ''}{suffix}"
                    axes.scatter(x[chosen], y[chosen], s=36, color=colour, alpha=0.5, marker=kind, label=label)
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
