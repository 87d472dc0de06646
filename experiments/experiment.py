"""Runs an experiment, with flags that override its config, variants, several seeds and a results file.

CLAIM = "98 % test accuracy"                         # claim of the known system
TARGETS = {"test_accuracy": 0.98, "test_loss": 0.07}    # minimum of accuracies, maximum of others
CONFIG = TrainConfig(...)
VARIANTS = {"plain": dataclasses.replace(CONFIG, ...)}
if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__, variants=VARIANTS, finish=evaluate_training))
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import re
import statistics
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax import Dataset, InputError, Run, TrainConfig, fit, load_dataset
from mnist_jax.cli.flags import OneLineParser, add_config_flags, replace_fields, run_command

if TYPE_CHECKING:
    from mnist_jax import Evaluation  # loads JAX, which --help does not need

# MNIST test images whose label is wrong by human vote: index to correct label, and indices without a majority. See
# Northcutt, Athalye and Mueller, https://arxiv.org/abs/2103.14749; votes, https://github.com/cleanlab/label-errors.
CORRECT_LABELS = {947: 9, 1621: 6, 1901: 4, 2462: 0, 2597: 3, 3558: 0, 5937: 3, 6651: 6, 6783: 6, 9729: 6}
WITHOUT_LABEL = (2130, 2654, 3520, 8527, 9679)
_MNIST_TEST = 4001760473  # CRC-32 of the labels


def main(
    config: TrainConfig,
    documentation: str | None,
    args: Sequence[str] | None = None,
    *,
    variants: Mapping[str, TrainConfig] | None = None,
    prepare: Callable[[TrainConfig], TrainConfig] | None = None,
    finish: Callable[[Run], Mapping[str, float]] | None = None,
    measure: Callable[[TrainConfig], dict[str, Any]] | None = None,
) -> int:
    """Runs the command of an experiment.

    Args:
        config: config of the experiment; every flag of ``mnist_jax.train`` overrides it.
        documentation: shown by ``--help`` in front of the flags.
        args: the command line without the program's name; ``sys.argv[1:]`` if None. See ``--help``, and
            :func:`train` for ``--workdir``.
        variants: other configs by name.
        prepare: changes the config once, before the first run, for example to use data that it creates.
        finish: called with each finished run; returns more numbers for its summary.
        measure: maps a config to a summary, instead of :func:`measure_run`, if a seed needs more than one run.

    Returns:
        The exit status, as for ``mnist_jax.train``.
    """

    def command() -> None:
        program, example = f"python {Path(sys.argv[0])}", "--seeds 0-4 --results found.json"
        parser = OneLineParser(program, documentation, example, usage="%(prog)s [flags]")
        group = parser.add_argument_group(
            "experiment", "With --workdir DIR, each run is kept in DIR/seed-N, and reused or continued if it is there."
        )
        group.add_argument("--seeds", metavar="SEEDS", help="seeds of several runs, such as 0-9 or 1,4")
        group.add_argument("--results", type=Path, metavar="FILE", help="JSON file for all values")
        if variants:
            group.add_argument("--variant", choices=variants, help="another config")
        add_config_flags(parser, config, args)
        flags = parser.parse_args(args)
        variant = flags.variant if variants else None
        base = replace_fields((variants or {}).get(variant, config), flags)
        seeds = [base.seed] if flags.seeds is None else parse_seeds(flags.seeds)
        base = base if prepare is None else prepare(base)
        if flags.results is not None and flags.results.exists() and not _continues(flags.results, base, variant):
            raise InputError(f"{flags.results} exists: choose another --results")
        summaries: list[dict[str, Any]] = []
        for seed in seeds:
            seed_config = dataclasses.replace(base, seed=seed, quiet=base.quiet or len(seeds) > 1)
            summaries.append(measure_run(seed_config, finish) if measure is None else measure(seed_config))
            if flags.results is not None:  # after each run, because the next may fail
                write_results(flags.results, base, summaries, variant)
        print(report(summaries))

    return run_command(command)


def parse_seeds(text: str) -> list[int]:
    """Parses seeds such as ``0-3``, ``1,4`` or ``0-3,7``.

    Raises:
        InputError: the text has another form.
    """
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise InputError(f"seeds must be like 0-9 or 1,4, got {text}")
    seeds = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise InputError(f"seeds must be like 0-9 or 1,4, got {text}")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))


def train(config: TrainConfig, model: Any = None, dataset: Callable[[], Dataset] | None = None) -> Run:
    """Trains a run, in ``seed-N`` inside ``config.workdir`` if that is set.

    A finished run found there is loaded, an unfinished one is resumed.

    Args:
        config: config of the run.
        model: replaces the model of the config.
        dataset: makes the data set, if there is something to train; None for that of the config.

    Raises:
        InputError: the directory holds a run with another config.
    """
    if config.workdir is None:
        return fit(config, model=model, dataset=dataset and dataset())
    path = Path(config.workdir, f"seed-{config.seed}")
    config = dataclasses.replace(config, workdir=str(path))
    if not (path / "summary.json").exists():
        resumed = dataclasses.replace(config, resume=(path / "config.json").exists())
        return fit(resumed, model=model, dataset=dataset and dataset())
    from mnist_jax import evaluate_dataset, load_run

    saved, state = load_run(path, model=model)
    for name in saved.differences(dataclasses.replace(config, data=config.data or saved.data)):
        raise InputError(f"workdir {path} holds a run with {name} {getattr(saved, name)}, got {getattr(config, name)}")
    history = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((path / "summary.json").read_text())
    test = evaluate_dataset(state, load_data(saved).test)
    return Run(saved, state, history, _with_all_seconds(summary, history), test, path)


def _with_all_seconds(summary: dict[str, Any], history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a summary whose seconds cover all epochs; older versions left out those before the last resume."""
    seconds, train = summary["seconds"], math.fsum(line["seconds"] for line in history)
    return {**summary, "seconds": {**seconds, "train": train, "total": seconds["total"] + train - seconds["train"]}}


def measure_run(config: TrainConfig, finish: Callable[[Run], Mapping[str, float]] | None) -> dict[str, Any]:
    """Trains a run; returns its summary with the cleaned test accuracy, if any, and the numbers of ``finish``."""
    run = train(config)
    return {**run.summary, **cleaned_accuracy(run.test), **({} if finish is None else finish(run))}


def load_data(config: TrainConfig) -> Dataset:
    """Loads the data set of a run."""
    return load_dataset(config.data, data_dir=config.data_dir, num_validation=config.num_validation)


def evaluate_training(run: Run) -> dict[str, float]:
    """Evaluates the final model on the training split, without dropout and augmentation; a ``finish`` for :func:`main`.

    ``train_loss`` and ``train_accuracy``, in contrast, are measured during the last epoch.
    """
    from mnist_jax import evaluate_dataset

    evaluation = evaluate_dataset(run.state, load_data(run.config).train)
    return {"final_train_loss": evaluation.loss, "final_train_accuracy": evaluation.accuracy}


def evaluate_with_views(run: Run) -> dict[str, float]:
    """Evaluates each test image together with 16 distorted copies; a ``finish`` for :func:`main`."""
    import jax

    from mnist_jax import evaluate_views

    views = evaluate_views(run.state, load_data(run.config).test, 16, jax.random.key(run.config.seed))
    return {
        f"views_{name}": value for name, value in {"test_accuracy": views.accuracy, **cleaned_accuracy(views)}.items()
    }


def cleaned_accuracy(test: Evaluation) -> dict[str, float]:
    """Evaluates on MNIST's cleaned test split: ten labels corrected by human vote, five images left out.

    Returns:
        ``cleaned_test_accuracy``, a fraction of 9,995 images; empty for another test split.
    """
    label = test.label.astype(np.uint8)
    if zlib.crc32(label.tobytes()) != _MNIST_TEST:
        return {}
    label[list(CORRECT_LABELS)] = list(CORRECT_LABELS.values())
    return {"cleaned_test_accuracy": float(np.delete(test.predictions == label, WITHOUT_LABEL).mean())}


def _continues(path: Path, config: TrainConfig, variant: str | None) -> bool:
    """Returns whether a results file is from this experiment and config, with its runs in a workdir."""
    try:
        found = json.loads(path.read_text())
        same = (found["name"], found["variant"]) == (Path(sys.argv[0]).stem, variant)
        config = dataclasses.replace(config, data=found["config"]["data"])
        return same and config.workdir is not None and not config.differences(TrainConfig(**found["config"]))
    except (ValueError, TypeError, LookupError):  # another file
        return False


def check_same(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Checks that all runs have the same data, device and versions: a workdir may hold runs of several machines."""
    for name in ("dataset", "device", "versions"):
        first, *others = (summary[name] for summary in summaries)
        for other in others:
            if other != first:
                raise InputError(f"workdir must hold runs with the same {name}, got {first} and {other}")


def write_results(path: Path, config: TrainConfig, summaries: Sequence[dict[str, Any]], variant: str | None) -> None:
    """Writes all values of an experiment as JSON, with config, machine and versions, but without directories."""
    check_same(summaries)
    content = {
        "name": Path(sys.argv[0]).stem,
        "variant": variant,
        "config": dataclasses.asdict(config) | {"data": summaries[0]["dataset"], "data_dir": None, "workdir": None},
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "device": summaries[0]["device"]["kind"],
        },
        "versions": summaries[0]["versions"],
        "runs": _without_paths(list(summaries)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def _without_paths(value: Any) -> Any:
    """Returns summaries without their ``data_path``, also of the runs inside a summary."""
    if isinstance(value, dict):
        return {name: _without_paths(each) for name, each in value.items() if name != "data_path"}
    return [_without_paths(each) for each in value] if isinstance(value, list) else value


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def report(summaries: Sequence[dict[str, Any]]) -> str:
    """Formats a line per seed, and mean and standard deviation over the seeds."""
    lines = [f"{'seed':>6}{'validation':>12}{'test':>9}{'training':>12}{'in all':>10}"]
    for summary in summaries:
        seconds = summary["seconds"]
        lines.append(
            f"{summary['seed']:>6}{summary['validation_accuracy']:>12.2%}{summary['test_accuracy']:>9.2%}"
            f"{seconds['train']:>10.2f} s{seconds['total']:>8.2f} s"
        )
    accuracies = [100 * summary["test_accuracy"] for summary in summaries]
    spread = f" ± {statistics.stdev(accuracies):.3f}" if len(accuracies) > 1 else ""
    training = statistics.median(summary["seconds"]["train"] for summary in summaries)
    lines.append(
        f"\ntest accuracy {statistics.mean(accuracies):.3f}{spread} % over {len(accuracies)} seeds, "
        f"median training time {training:.2f} s"
    )
    cleaned = [100 * summary["cleaned_test_accuracy"] for summary in summaries if "cleaned_test_accuracy" in summary]
    if cleaned:
        lines.append(f"{statistics.mean(cleaned):.3f} % on the cleaned test split")
    return "\n".join(lines)
