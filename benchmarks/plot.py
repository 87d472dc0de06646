"""Plots a results file: each contestant's epoch, the fraction of the peak by batch size, a step by devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax import InputError


def plot_results(results: dict[str, Any], path: Path) -> None:
    """Writes a PNG with a panel for each workload of ``peers``, for ``steps`` and for each model of ``scaling``.

    Raises:
        InputError: the results have none of these suites.
    """
    from matplotlib.figure import Figure

    suites = results["suites"]
    peers = [row for row in suites.get("peers", {}).get("rows", ()) if "seconds" in row]
    steps = [row for row in suites.get("steps", {}).get("rows", ()) if row["train"]]
    workloads = list(dict.fromkeys(row["name"] for row in peers))
    parallel = [row for row in suites.get("scaling", {}).get("rows", ()) if "ideal" in row]
    models = list(dict.fromkeys(row["model"] for row in parallel))
    if not workloads and not steps and not models:
        raise InputError("there is nothing to plot: run python -m benchmarks peers steps scaling")
    num_panels = len(workloads) + bool(steps) + len(models)
    num_columns = min(2, num_panels)
    num_rows = -(-num_panels // num_columns)
    figure = Figure(figsize=(6.4 * num_columns, 3.6 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis, workload in zip(axes, workloads, strict=False):
        _epochs(axis, workload, [row for row in peers if row["name"] == workload])
    if steps:
        _steps(axes[len(workloads)], steps)
    for axis, model in zip(axes[num_panels - len(models) :], models, strict=False):
        _devices(axis, model, [row for row in parallel if row["model"] == model])
    for axis in axes[num_panels:]:
        axis.axis("off")
    device = results["device"]
    on_cpu = device["platform"] == "cpu"
    machine = f"{device['cores']} cores of {device['processor']}" if on_cpu else device["kind"]
    figure.suptitle(f"{machine}, {results['created'][:10]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _epochs(axis: Any, workload: str, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: -row["seconds"])
    names = [row["contestant"] for row in rows]
    colours = ["tab:orange" if name == "mnist_jax" else "tab:blue" for name in names]
    bars = axis.barh(names, [row["seconds"] for row in rows], color=colours)
    axis.bar_label(bars, [f"{row['seconds']:.2f} s, {row['ratio']:.1f}x" for row in rows], padding=3, fontsize=8)
    axis.set_title(f"An epoch of {workload}, batch {rows[0]['batch_size']}", fontsize=10)
    axis.set_xlabel("seconds")
    axis.set_xlim(right=1.3 * rows[0]["seconds"])
    axis.spines[["top", "right"]].set_visible(False)


def _steps(axis: Any, rows: list[dict[str, Any]]) -> None:
    for model in ("mlp", "cnn"):
        for dtype, style in (("float32", "-"), ("bfloat16", ":")):
            for driver, marker in (("scanned", "o"), ("dispatched", "x")):
                chosen = [row for row in rows if (row["model"], row["dtype"], row["driver"]) == (model, dtype, driver)]
                if chosen:
                    axis.plot(
                        [row["batch_size"] for row in chosen],
                        [100 * row["peak_fraction"] for row in chosen],
                        color="tab:orange" if model == "mlp" else "tab:green",
                        linestyle=style,
                        marker=marker,
                        label=f"{model}, {dtype}, {driver}",
                    )
    axis.set(title="A training step", xlabel="batch size", ylabel="% of the measured matmul peak")
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _devices(axis: Any, model: str, rows: list[dict[str, Any]]) -> None:
    """Plots the time of a step by number of devices; the ideal of each series is dashed."""
    for number, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        chosen = [row for row in rows if row["name"] == name]
        counts, colour = [row.get("value", 1) for row in chosen], f"C{number}"
        median, low, high, ideal = (
            [1000 * row[field] for row in chosen] for field in ("seconds", "seconds_min", "seconds_max", "ideal")
        )
        errors = [np.subtract(median, low).tolist(), np.subtract(high, median).tolist()]
        label = name if "batch" in name else f"{name}, batch {chosen[0]['batch_size']}"
        axis.errorbar(counts, median, errors, color=colour, marker="o", markersize=4, capsize=3, label=label)
        axis.plot(counts, ideal, color=colour, linestyle="--", marker="_", markersize=12, alpha=0.7)
    axis.plot([], [], color="gray", linestyle="--", marker="_", label="ideal of the same colour")
    counts = sorted({row.get("value", 1) for row in rows})
    axis.set_title(f"A training step of the {model.upper()}", fontsize=10)
    axis.set(xlabel="devices or processes", ylabel="ms")
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, counts)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=2, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
