"""How many seconds does a mean test accuracy of 98 or 99 % take: training alone, and the whole process?

Each recipe is a fixed command, chosen on the validation split; it counts if the mean over all seeds reaches the target.
Every accuracy is recorded. The 99 % recipe takes turns with the public one in eager PyTorch, whose network is larger;
it compiles in each process, except in the row ``second time``, where it finds its programs.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence

from benchmarks.commands import run_python, run_training
from benchmarks.setting import Row, Setting, SkippedError, spread

_MLP = (
    "-m mnist_jax.train --hidden-sizes 256 --epochs 2 --learning-rate 5e-3 --schedule one_cycle --b1 0.8 --b2 0.95 "
    "--label-smoothing 0.1 --dropout-rate 0 --ema-decay None"
)
_PUBLIC = "public recipe, PyTorch eager"
_OURS = {"our recipe": ["--no-compilation-cache"], "our recipe, second time": []}  # with the flags of each
RECIPES = {0.98: _MLP, 0.99: "experiments/fast_99.py"}


def run(setting: Setting) -> Iterator[Row]:
    """Yields a row for each target and contestant."""
    sizes = setting.dataset.train.num_examples, setting.dataset.test.num_examples
    if sizes != (55_000, 10_000):
        raise SkippedError(f"needs MNIST with 55,000 and 10,000 examples, got {setting.dataset.name} with {sizes}")
    for target, command in list(RECIPES.items())[: 1 if setting.quick else None]:
        with_torch = target == 0.99 and importlib.util.find_spec("torch") is not None
        runs = collections.defaultdict[str, list[tuple[float, float, float]]](list)
        with tempfile.TemporaryDirectory() as cache:  # holds nothing but these programs
            run_training(command.split(), setting.data, XDG_CACHE_HOME=cache)  # keeps the programs
            for seed in range(1 if setting.quick else 20 if target == 0.99 else 10):
                for contestant, flags in _OURS.items():
                    arguments = [*command.split(), "--seed", str(seed), *flags]
                    summary = run_training(arguments, setting.data, XDG_CACHE_HOME=cache)
                    times = summary["seconds"]["train"], summary["process_seconds"]
                    runs[contestant].append((summary["test_accuracy"], *times))
                if with_torch:
                    text, elapsed = run_python(["-m", "benchmarks.torch_recipe", setting.data or "mnist", str(seed)])
                    row = json.loads(text)
                    runs[_PUBLIC].append((row["test_accuracy"], row["train_seconds"], elapsed))
        for contestant, found in runs.items():
            yield _row(target, contestant, "-m benchmarks.torch_recipe" if contestant == _PUBLIC else command, found)
        if target == 0.99 and not with_torch:
            yield {"name": f"{target:.1%}", "contestant": _PUBLIC, "skipped": "torch is not installed"}


def _row(target: float, contestant: str, command: str, runs: Sequence[tuple[float, float, float]]) -> Row:
    accuracies, training, processes = (list(values) for values in zip(*runs, strict=True))
    return {
        "name": f"{target:.1%}",
        "contestant": contestant,
        "command": f"python {command}",
        "reached": statistics.mean(accuracies) >= target,
        "test_accuracy": statistics.mean(accuracies),
        "test_accuracies": accuracies,
        **spread(training),
        "process": spread(processes),
    }
