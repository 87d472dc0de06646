"""``python -m mnist_jax.runs`` lists the runs in a directory with their results, newest first."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mnist_jax.cli.flags import OneLineParser, run_command
from mnist_jax.cli.table import text_table
from mnist_jax.training.runs import RunInfo, find_runs


def runs_table(runs: Sequence[RunInfo]) -> str:
    """Returns a text table with one line per run."""
    rows: list[tuple[str, ...]] = [("run", "data", "model", "parameters", "epochs", "validation", "test", "training")]
    rows += [_to_row(run) for run in runs]
    return text_table(rows, num_texts=3)


def _to_row(run: RunInfo) -> tuple[str, ...]:
    name = (str(run.path), run.config.data or "", run.summary.get("model", run.config.model))
    summary = run.summary
    if not summary:
        return (*name, "", f"{run.num_epochs}/{run.config.epochs}", "", "unfinished", "")
    return (
        *name,
        f"{summary['num_parameters']:,}",
        str(run.num_epochs),
        f"{summary['validation_accuracy']:.2%}",
        f"{summary['test_accuracy']:.2%}",
        f"{summary['seconds']['train']:.1f} s",
    )


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.runs") -> int:
    """Parses ``args`` (default: the command line), and prints the table of the runs."""

    def command() -> None:
        parser = OneLineParser(prog, "List runs with their results, newest first.", "runs")
        parser.add_argument("directory", nargs="?", default="runs", metavar="DIR", help="directory; default: runs")
        print(runs_table(find_runs(parser.parse_args(args).directory)))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
