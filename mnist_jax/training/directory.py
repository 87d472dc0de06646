"""``RunDirectory`` creates and locks the directory of a run, and reads and writes its small files.

directory = RunDirectory.claim(config)            # checks; locks a run to resume
directory.create(config, data, model="mlp")       # config.json, data.json
directory.write_history([{"epoch": 1, ...}])
directory.write_summary({...})

config.json      the TrainConfig          summary.json   final numbers
metrics.jsonl    one object per epoch     checkpoints/   Orbax
figures/*.png    learning curves          events.out.tfevents.*   TensorBoard
confidence.json  calibration of predict and demo
kept.npy         with keep_hardest: the training examples of the run
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError, one_line, short_repr
from mnist_jax.jsonfile import is_number, parse_json, read_json, read_text
from mnist_jax.training import processes
from mnist_jax.training.fallback import complete_resumed
from mnist_jax.training.workdir import in_use, lock_directory, new_directory, write_whole

_NOT_IDENTITY = ("path", "class_names", "model", "has_own_optimizer")  # of data.json; the others identify the data
_DATA_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("name", "label_checksum"), ("text", lambda value: isinstance(value, str))),
    **dict.fromkeys(("path", "model"), ("text or null", lambda value: isinstance(value, str | None))),
    **dict.fromkeys(
        ("num_train", "num_validation", "num_test"),
        ("a whole number below 2**31", lambda value: type(value) is int and 0 <= value < 2**31),
    ),
    "has_own_optimizer": ("true or false", lambda value: isinstance(value, bool)),
    "class_names": (
        "a list of strings",
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    ),
}
_EPOCH_NUMBERS = ("seconds", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_RUN_FILES = ("config.json", "data.json", "metrics.jsonl", "summary.json", "checkpoints", "figures")


class RunDirectory:
    """Manages the paths and files of one run.

    Attributes:
        saved: the config of the run to resume; None for a new run.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.saved: TrainConfig | None = None
        self._lock = contextlib.ExitStack()

    @classmethod
    def claim(cls, config: TrainConfig) -> RunDirectory:
        """Checks that ``config`` can run in its workdir; a run to resume is locked before its files are read.

        Raises:
            InputError: the workdir is in use, holds another run, or has no run with this config to resume.
        """
        directory = cls(None if config.workdir is None else Path(config.workdir))
        processes.first(lambda: directory._claim(config))
        if config.resume and directory.saved is None:  # in a process that is not the first
            directory.saved = read_config(directory.path / "config.json")
        return directory

    def _claim(self, config: TrainConfig) -> None:
        try:
            if config.resume:
                self._lock_and_read(config)
            elif config.workdir is not None:
                _check_free(self.path)
        except OSError as error:
            self.close()
            if error.errno == errno.ENOSPC:
                raise
            raise InputError(f"workdir {str(config.workdir)[:80]}: cannot be used ({error.strerror})") from None
        except BaseException:
            self.close()
            raise

    def _lock_and_read(self, config: TrainConfig) -> None:
        path = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"workdir must be a directory, got the file {self.path}")
        if not path.is_file():
            raise InputError(
                f"resume: expected a run with a config.json in {self.path}, found none; leave out --resume to begin one"
            )
        if self.checkpoints.exists() and not self.checkpoints.is_dir():
            raise InputError(f"resume: expected a directory of checkpoints, got the file {self.checkpoints}")
        self._lock.enter_context(lock_directory(self.path))
        self.saved = read_config(path)
        config = complete_resumed(config, self.saved)
        for name in self.saved.differences(config):
            was, now = getattr(self.saved, name), getattr(config, name)
            if name not in ("epochs", "early_stopping") and not (name == "data" and now is None):
                raise InputError(f"resume: {name} must be {was!r} as in {path}, got {now!r}")

    @property
    def path(self) -> Path:
        """The directory."""
        if self._path is None:
            raise ValueError("a run without a workdir has no path before create()")
        return self._path

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    def create(self, config: TrainConfig, data: Mapping[str, Any], model: str) -> None:
        """Creates the directory, locks it until :meth:`close`, and writes ``config.json`` and ``data.json``.

        ``config.json`` comes first: a run that is killed before it can begin again, a run that is killed after it can
        resume.

        Args:
            config: the run.
            data: content of ``data.json``, see :func:`~mnist_jax.training.run.describe_data`.
            model: name of the model, part of the default directory name.

        Raises:
            InputError: the directory cannot be written or is in use, or another process does not see it.
        """
        self._path = Path(processes.first(lambda: self._create(config, data, model)))
        processes.together(self._check_visible)

    def _create(self, config: TrainConfig, data: Mapping[str, Any], model: str) -> str:
        if self._path is None:
            self._path = new_directory(Path("runs"), f"{data['name'].replace('/', '-')}-{model}")
        if self.saved is None:
            self._lock.enter_context(lock_directory(self.path))
            if (self.path / "config.json").exists():
                raise in_use(self.path)  # another process created it after claim()
        (self.path / "summary.json").unlink(missing_ok=True)  # outdated once the run continues
        write_whole(self.path / "config.json", config.to_json())
        write_whole(self.path / "data.json", json.dumps(data, indent=2) + "\n")
        return str(self.path)

    def _check_visible(self) -> None:
        if not (self.path / "config.json").exists():
            raise InputError(f"workdir must be on a file system that all processes share, got {self.path}")

    def close(self) -> None:
        """Unlocks the directory."""
        self._lock.close()

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Checks that the run to resume has the same data and the same model.

        Args:
            data: as for :meth:`create`.

        Raises:
            InputError: data or model differ.
        """
        saved = read_data(self.path) if self.saved is not None else None
        if saved is None:
            return
        identity = {name: value for name, value in data.items() if name not in _NOT_IDENTITY}
        expected, model = {name: saved.get(name) for name in identity}, data.get("model")
        if expected != identity:
            names = [name for name in identity if expected[name] != identity[name]]
            was, now = (short_repr({name: part[name] for name in names}) for part in (expected, identity))
            raise InputError(f"resume: expected the data of {self.path / 'data.json'}, {was}, got {now}")
        if "model" in saved and saved["model"] != model:
            raise InputError(
                f"resume: the run in {self.path} has {describe_model(saved['model'])}, got {describe_model(model)}: "
                "pass the same model to fit"
            )

    def read_history(self, num_epochs: int) -> list[dict[str, Any]]:
        """Returns the first ``num_epochs`` lines of ``metrics.jsonl``.

        Raises:
            InputError: the file has fewer lines, or a line is not as expected.
        """
        path, lines = self.path / "metrics.jsonl", read_history(self.path)
        if len(lines) < num_epochs:
            raise InputError(f"{path}: expected a line for each of the {num_epochs} epochs trained, got {len(lines)}")
        return lines[:num_epochs]

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``metrics.jsonl``, one object per epoch."""
        self._write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history))

    def write_confidence(self, confidence: Mapping[str, Any]) -> None:
        """Writes ``confidence.json``."""
        self._write("confidence.json", json.dumps(confidence) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``."""
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        if processes.is_first():
            write_whole(self.path / name, text)


def describe_model(name: str | None) -> str:
    """Describes the model in ``data.json`` for messages; None stands for the model of the config."""
    return "the model of its config" if name is None else f"a custom model, {one_line(name)}"


def _check_free(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"workdir must be a directory, got the file {path}")
    present = [name for name in _RUN_FILES if (path / name).exists()]
    if present:
        raise InputError(
            f"workdir {path} already holds a run ({present[0]}): "
            "name another directory, or continue the run with --resume"
        )


def read_config(path: Path) -> TrainConfig:
    """Reads the ``config.json`` of a run.

    Raises:
        InputError: the file is not a config; the message names the file.
    """
    try:
        return TrainConfig.from_json(read_text(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # invalid text or encoding
        raise InputError(f"{path}: {error}") from None


def read_history(directory: Path) -> list[dict[str, Any]]:
    """Returns ``metrics.jsonl`` of a run, one object per epoch; an empty list if there is no such file.

    Raises:
        InputError: a line is not as expected.
    """
    path = directory / "metrics.jsonl"
    try:
        lines = [parse_json(line) for line in read_text(path).splitlines()] if path.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON object on each line ({error})") from None
    if not all(isinstance(line, dict) and line.get("epoch") == epoch for epoch, line in enumerate(lines, start=1)):
        raise InputError(f"{path}: expected epochs 1, 2, ... one on each line, got something else")
    for name, line in itertools.product(_EPOCH_NUMBERS, lines):
        if not is_number(line.get(name)):
            raise InputError(
                f"{path}: expected a number as {name} of epoch {line['epoch']}, got {short_repr(line.get(name))}"
            )
    return lines


def read_data(directory: Path) -> dict[str, Any] | None:
    """Returns ``data.json`` of a run, which describes its data and model; None if there is no such file.

    Raises:
        InputError: the file cannot be read, or is not as :func:`~mnist_jax.training.run.describe_data` describes.
    """
    path = directory / "data.json"
    try:
        data = read_json(path) if path.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON object ({error})") from None
    if data is None:
        return None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, got {short_repr(data)}")
    for name, (expected, is_valid) in _DATA_CHECKS.items():
        if name in data and not is_valid(data[name]):
            raise InputError(f"{path}: {name} must be {expected}, got {short_repr(data[name])}")
    return data
