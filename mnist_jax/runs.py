"""The runs in a directory, with their results. The command ``python -m mnist_jax.runs``.

    for run in find_runs("runs"):
        print(run.path, run.summary.get("test_accuracy"))
    newest_run("runs")   # what `python -m mnist_jax.demo` takes when no run is named

Reads the small files of a run, and never imports JAX.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_jax.cli.flags import OneLineParser, run_command
from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.training.directory import read_config


@dataclasses.dataclass(frozen=True)
class FoundRun:
    """A run directory.

    Attributes:
        path: the directory.
        config: what was, or is being, trained.
        num_epochs: epochs finished.
        summary: the final numbers, as in ``summary.json``; empty for an unfinished run.
        modified: when its newest epoch was finished, or it was begun; in seconds since 1970.

    Example:
        >>> FoundRun(Path("runs/mine"), TrainConfig(), 3, {"test_accuracy": 0.98}, 0.0).summary["test_accuracy"]
        0.98
    """

    path: Path
    config: TrainConfig
    num_epochs: int
    summary: dict[str, Any]
    modified: float


def find_runs(directory: str | os.PathLike[str] = "runs") -> list[FoundRun]:
    """The runs directly inside a directory, newest first.

    What is not a run, or cannot be read, is left out.

    Args:
        directory: where the runs are.

    Raises:
        InputError: there is no such directory.

    Example:
        >>> import tempfile
        >>> from mnist_jax import fit
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
        ...     (found,) = find_runs(directory)
        >>> found.summary["test_accuracy"] == run.summary["test_accuracy"]
        True
    """
    try:
        paths = list(Path(directory).iterdir())
    except OSError as error:
        raise InputError(f"{directory}: a directory of runs wanted ({error.strerror})") from None
    runs = [run for run in map(_read_run, paths) if run is not None]
    return sorted(runs, key=lambda run: (run.modified, run.path.name), reverse=True)


def newest_run(directory: str | os.PathLike[str] = "runs") -> Path | None:
    """The newest finished run in a directory; None if there is none, or no such directory."""
    if not Path(directory).is_dir():
        return None
    return next((run.path for run in find_runs(directory) if run.summary), None)


def _read_run(path: Path) -> FoundRun | None:
    history, summary = path / "metrics.jsonl", path / "summary.json"
    try:
        config = read_config(path / "config.json")
        newest = history if history.exists() else path / "config.json"
        num_epochs = len(history.read_text().splitlines()) if history.exists() else 0
        found = json.loads(summary.read_text()) if summary.exists() else {}
        run = FoundRun(path, config, num_epochs, {**found}, newest.stat().st_mtime)
        _to_row(run)  # or else something is missing
        return run
    except (InputError, LookupError, OSError, TypeError, ValueError):
        return None


def runs_table(runs: Sequence[FoundRun]) -> str:
    """A line for each run, as text."""
    rows: list[tuple[str, ...]] = [("run", "data", "model", "parameters", "epochs", "validation", "test", "training")]
    rows += map(_to_row, runs)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = 3  # columns on the left; those of numbers are flush right
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < texts else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _to_row(run: FoundRun) -> tuple[str, ...]:
    name = (str(run.path), run.config.data or "", run.config.model)
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
    """The command: prints the table of the runs."""

    def command() -> None:
        parser = OneLineParser(prog=prog, description="List runs with their results, newest first.")
        parser.add_argument("directory", nargs="?", default="runs", metavar="DIRECTORY", help="of runs; default: runs")
        print(runs_table(find_runs(parser.parse_args(args).directory)))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
