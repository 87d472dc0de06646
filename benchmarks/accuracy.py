"""How many seconds to a mean test accuracy of 98, 99 and 99.5 %: training alone, and the whole process?

Each recipe is a fixed set of flags, chosen on the validation split; it counts if the mean over all seeds reaches its
mark. Every accuracy is kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.commands import run_training
from benchmarks.setting import Row, Setting, SkippedError, spread

RECIPES = {
    0.98: "--epochs 2 --learning-rate 4e-3 --schedule one_cycle --hidden-sizes 256 --dropout-rate 0 --ema-decay None",
    0.99: "--model cnn --epochs 1 --batch-size 256 --learning-rate 1e-2 --schedule one_cycle --b1 0.7 --b2 0.9",
    0.995: "--model cnn --epochs 20 --batch-size 256 --learning-rate 3e-3 --schedule one_cycle --dropout-rate 0.5",
}


def run(setting: Setting) -> Iterator[Row]:
    """A row for each mark."""
    if setting.dataset.name != "mnist":
        raise SkippedError(f"needs MNIST, got {setting.dataset.name}")
    for mark, flags in list(RECIPES.items())[: 1 if setting.quick else None]:
        summaries = [
            run_training([*flags.split(), "--seed", str(seed)], setting.data)
            for seed in range(1 if setting.quick else 10)
        ]
        accuracies = [summary["test_accuracy"] for summary in summaries]
        yield {
            "name": f"{mark:.1%}",
            "flags": flags,
            "reached": statistics.mean(accuracies) >= mark,
            "test_accuracy": statistics.mean(accuracies),
            "test_accuracies": accuracies,
            **spread([summary["seconds"]["train"] for summary in summaries]),
            "process": spread([summary["process_seconds"] for summary in summaries]),
        }
