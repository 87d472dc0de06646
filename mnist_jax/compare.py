"""``python -m mnist_jax.compare RUN RUN ...`` shows how runs differ, and their results side by side.

python -m mnist_jax.compare runs/mine runs/other --output compare.png   # and their validation curves
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_jax.cli.flags import OneLineParser, run_command
from mnist_jax.cli.table import text_table
from mnist_jax.config import TrainConfig, check_effect
from mnist_jax.errors import InputError, printable
from mnist_jax.home import prepare_matplotlib
from mnist_jax.jsonfile import is_number
from mnist_jax.report.compare import draw_curves
from mnist_jax.training.directory import read_history
from mnist_jax.training.runs import RunInfo, read_run

_PERCENT, _LOSS, _SECONDS = "{:.2%}", "{:.4f}", "{:.1f} s"
_History = Sequence[Mapping[str, Any]]


def compare_table(runs: Sequence[RunInfo], histories: Sequence[_History]) -> str:
    """Returns a text table with a column per run: the fields that differ, then the results.

    Args:
        runs: the runs.
        histories: lines of ``metrics.jsonl`` of each run; an unfinished run has the validation results of the last.
    """
    configs = [run.config.training_fields() for run in runs]
    rows = [["", *_short_names(runs)]]
    rows += [
        [name, *(_field(run.config, name) for run in runs)]
        for name in configs[0]
        if any(config[name] != configs[0][name] for config in configs)
    ]
    columns = [_results(run, history) for run, history in zip(runs, histories, strict=True)]
    rows += [[name, *(column[name] for column in columns)] for name in columns[0]]
    return text_table(rows, num_texts=1)


def _results(run: RunInfo, history: _History) -> dict[str, str]:
    summary, last = run.summary, history[-1] if history else {}
    seconds = summary.get("seconds", {})
    return {
        "status": ("stopped early" if "stop_reason" in summary else "finished") if summary else "unfinished",
        "epochs trained": str(len(history)) if summary else f"{len(history)}/{run.config.epochs}",
        "parameters": _format("{:,}", summary.get("num_parameters")),
        "validation accuracy": _format(_PERCENT, last.get("validation_accuracy")),
        "validation loss": _format(_LOSS, last.get("validation_loss")),
        "test accuracy": _format(_PERCENT, summary.get("test_accuracy")),
        "test loss": _format(_LOSS, summary.get("test_loss")),
        "training time": _format(_SECONDS, seconds.get("train")),
        "total time": _format(_SECONDS, seconds.get("total")),
    }


def _format(form: str, value: Any) -> str:
    return form.format(value) if is_number(value) else "-"


def _field(config: TrainConfig, name: str) -> str:
    """Returns the value of a field as text; "-" if it has no effect in this config."""
    try:
        check_effect(name, vars(config))
    except InputError:
        return "-"
    value = getattr(config, name)
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _short_names(runs: Sequence[RunInfo]) -> list[str]:
    """Returns the last part of each path, or the whole paths if two of those are equal."""
    names = [run.path.resolve().name for run in runs]
    return names if len({*names}) == len(names) else [str(run.path) for run in runs]


def _draw(runs: Sequence[RunInfo], histories: Sequence[_History], output: Path) -> None:
    if not any(histories):
        raise InputError("none of the runs has finished an epoch: leave out --output")
    names = [
        f"{printable(name)}{'' if run.summary else ', unfinished'}"
        for name, run in zip(_short_names(runs), runs, strict=True)
    ]
    prepare_matplotlib()
    try:
        draw_curves(dict(zip(names, histories, strict=True)), output)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error.strerror})") from None


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.compare") -> int:
    """Parses ``args`` (default: the command line), prints the table, and draws the figure."""

    def command() -> None:
        description = "Compare runs: the fields that differ, the results, and the curves."
        parser = OneLineParser(prog, description, "runs/mine runs/other --output compare.png")
        parser.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs")
        parser.add_argument(
            "--output", type=Path, metavar="FILE", help="a new PNG for the validation curves; default: none"
        )
        flags = parser.parse_args(args)
        if flags.output is not None and flags.output.suffix.lower() != ".png":
            raise InputError(f"--output must be a .png file, got {flags.output}")
        if flags.output is not None and os.path.lexists(flags.output):
            raise InputError(f"--output {flags.output} exists already: name another file")
        runs = [read_run(path) for path in flags.runs]
        histories = [read_history(run.path) for run in runs]
        print(compare_table(runs, histories))
        if flags.output is not None:
            _draw(runs, histories, flags.output)
            print(f"\nthe curves are in {flags.output}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
