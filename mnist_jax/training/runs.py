"""Finds the runs in a directory, and reads their configs and results.

    for run in find_runs("runs"):
        print(run.path, run.summary.get("test_accuracy"))
    newest_mnist_run("runs")   # the run that ``predict`` and ``demo`` use by default

It reads the small files of a run, and does not import JAX.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError, one_line
from mnist_jax.jsonfile import is_number, read_json, read_text
from mnist_jax.training.directory import describe_model, read_config, read_data

_MNIST = ("mnist", "mnist+digits")  # names of data sets


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """Holds the config and the results of a run, finished or not.

    Attributes:
        path: the run directory.
        config: the config of the run.
        num_epochs: number of finished epochs.
        summary: the final numbers, as in ``summary.json``; empty for an unfinished run.
        modified: time of the newest epoch, or of the start before the first one; in seconds since 1970.

    Example:
        >>> RunInfo(Path("runs/mine"), TrainConfig(), 3, {"test_accuracy": 0.98}, 0.0).summary["test_accuracy"]
        0.98
    """

    path: Path
    config: TrainConfig
    num_epochs: int
    summary: dict[str, Any]
    modified: float


def find_runs(directory: str | os.PathLike[str] = "runs") -> list[RunInfo]:
    """Returns the runs directly inside a directory, newest first; skips whatever is not a readable run.

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
    except FileNotFoundError:
        raise InputError(f"{directory}: no such directory; train a run first, or name the directory") from None
    except OSError as error:
        raise InputError(f"{directory}: expected a directory of runs ({error.strerror})") from None
    runs = [run for run in map(_find_run, paths) if run is not None]
    return sorted(runs, key=lambda run: (run.modified, run.path.name), reverse=True)


def newest_mnist_run(directory: str | os.PathLike[str] = "runs") -> Path | None:
    """Returns the newest finished run in a directory that was trained on MNIST; None if there is none."""
    if not Path(directory).is_dir():
        return None
    return next((run.path for run in find_runs(directory) if run.summary.get("dataset") in _MNIST), None)


def read_run_config(directory: Path) -> TrainConfig:
    """Reads the config of a run.

    Raises:
        InputError: the directory holds no run, or its ``config.json`` is not a config.
    """
    path = directory / "config.json"
    if not path.is_file():
        runs = [str(run.path) for run in find_runs(directory)[:3]] if directory.is_dir() else []
        end = f"; name one of its runs, such as {', '.join(runs)}" if runs else ""
        raise InputError(f"{directory}: expected a run with a config.json, found none{end}")
    return read_config(path)


def config_to_repeat(path: str | os.PathLike[str]) -> TrainConfig:
    """Returns the config of a new run with the same training as an earlier one.

    ``workdir``, ``resume``, ``progress``, ``quiet`` and ``num_devices`` are not taken over.

    Args:
        path: the ``config.json`` of the earlier run, or its directory.

    Raises:
        InputError: there is no config, or its run was trained with the user's own model or optimizer.
    """
    path = Path(path)
    directory = path.parent if path.name == "config.json" else path
    if directory.is_dir():
        config, data = read_run_config(directory), read_data(directory) or {}
    else:
        config, data = read_config(path), {}
    if data.get("model") is not None or data.get("has_own_optimizer"):
        own = "a custom optimizer" if data.get("model") is None else describe_model(data["model"])
        raise InputError(f"{path}: the run has {own}, which its config does not describe: train it with fit in Python")
    return dataclasses.replace(config, workdir=None, resume=False, progress=False, quiet=False, num_devices=None)


def read_run(directory: str | os.PathLike[str]) -> RunInfo:
    """Reads the config and the results of a run, finished or not.

    Raises:
        InputError: the directory holds no run, or a file is not as expected.
    """
    directory = Path(directory)
    config = read_run_config(directory)
    try:
        return _read_results(directory, config)
    except (LookupError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{directory / 'summary.json'}: expected the results of a run ({one_line(error)})") from None


def _find_run(path: Path) -> RunInfo | None:
    try:
        return _read_results(path, read_config(path / "config.json"))
    except (LookupError, OSError, TypeError, ValueError):
        return None


def _read_results(path: Path, config: TrainConfig) -> RunInfo:
    history, summary = path / "metrics.jsonl", path / "summary.json"
    newest = history if history.exists() else path / "config.json"
    num_epochs = len(read_text(history).splitlines()) if history.exists() else 0
    content = read_json(summary) if summary.exists() else {}
    if content:
        _check_summary(content)
    return RunInfo(path, config, num_epochs, {**content}, newest.stat().st_mtime)


def _check_summary(summary: Mapping[str, Any]) -> None:
    """Raises ``LookupError`` or ``TypeError`` unless a summary has the values that ``mnist-jax runs`` shows."""
    names = ("num_parameters", "validation_accuracy", "test_accuracy")
    for number in (*(summary[name] for name in names), summary["seconds"]["train"]):
        if not is_number(number):
            raise TypeError(f"expected a number, got {number!r}")
    if not isinstance(summary.get("model", ""), str):
        raise TypeError("expected the name of a model")
