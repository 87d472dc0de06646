"""Draws the validation curves of several runs in one figure.

draw_curves({"mine": history, "other": other_history}, Path("compare.png"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_jax.atomic import atomic_write

_STYLES = ("-", "--", ":", "-.")  # each for ten colours


def draw_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Plots validation loss and accuracy over the epochs, a curve for each run, as a new PNG.

    Args:
        histories: lines of ``metrics.jsonl`` by the name of the run; a run without lines has no curve.
        path: path of the PNG, in an existing directory.

    Raises:
        FileExistsError: the file exists.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    shown = {name: history for name, history in histories.items() if history}
    figure = Figure(figsize=(9, 4 + 0.22 * len(shown)), layout="constrained")
    for axes, name, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), (" (nats)", ""), strict=True):
        for index, history in enumerate(shown.values()):
            epochs = [line["epoch"] for line in history]
            values = [line[f"validation_{name}"] for line in history]
            style = {"color": f"C{index % 10}", "linestyle": _STYLES[index // 10 % len(_STYLES)]}
            axes.plot(epochs, values, marker="o", markersize=4, **style)
        axes.set(xlabel="epoch", ylabel=f"validation {name}{unit}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    names = [name.replace("$", r"\$") for name in shown]  # no formulas
    figure.legend(axes.get_lines(), names, loc="outside lower center", ncols=1 if max(map(len, names)) > 40 else 2)
    with atomic_write(path, exclusive=True) as file:
        figure.savefig(file, dpi=150)
