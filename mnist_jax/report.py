"""Figures of a run.

learning_curves(history, workdir.path / "figures" / "learning_curves.png", title="mlp on mnist")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def learning_curves(history: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Loss and accuracy on the training and validation split over the epochs, as a PNG.

    Args:
        history: the lines of ``metrics.jsonl``.
        path: of the PNG; its directory is created if need be.
        title: above both panels.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
