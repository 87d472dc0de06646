"""Finds the runs in a directory, with their results.

    for run in find_runs("runs"):
        print(run.path, run.summary.get("test_accuracy"))
    newest_run("runs")   # what ``python -m mnist_jax.demo`` takes when no run is named

Reads the small files of a run, and never imports JAX.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        if found:
            _check_summary(found)
        return FoundRun(path, config, num_epochs, {**found}, newest.stat().st_mtime)
    except (InputError, LookupError, OSError, TypeError, ValueError):
        return None


def _check_summary(summary: Mapping[str, Any]) -> None:
    """Raises ``LookupError`` or ``TypeError`` unless a summary has the numbers by which runs are told apart."""
    names = ("num_parameters", "validation_accuracy", "test_accuracy")
    for number in (*(summary[name] for name in names), summary["seconds"]["train"]):
        if not isinstance(number, int | float):
            raise TypeError(f"a number wanted, got {number!r}")
