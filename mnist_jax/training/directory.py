"""The directory of a run: who may use it, and the small files in it. That of a sweep is made and locked alike.

workdir = Workdir.find(config)                # checks, writes nothing
workdir.create(config, dataset.identity())    # config.json, data.json
workdir.write_history([{"epoch": 1, ...}])
workdir.write_summary({...})

config.json      the TrainConfig          summary.json   final numbers
metrics.jsonl    one object per epoch     checkpoints/   Orbax
figures/*.png    learning curves          events.out.tfevents.*   TensorBoard
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError

_LOCK = ".lock"  # held while a run is going
_OURS = ("config.json", "data.json", "metrics.jsonl", "summary.json", "checkpoints", "figures")


class Workdir:
    """Paths and files of one run.

    Attributes:
        saved: the config of the run to continue; None for a new run.
    """

    def __init__(self, path: Path | None, saved: TrainConfig | None = None) -> None:
        self._path = path
        self.saved = saved
        self._lock = contextlib.ExitStack()

    @classmethod
    def find(cls, config: TrainConfig) -> Workdir:
        """Checks whether ``config`` may run in its workdir, and writes nothing.

        Raises:
            InputError: it holds another run, or nothing to resume, or a run with another config.
        """
        if config.workdir is None:
            return cls(None)
        try:
            return cls._find(Path(config.workdir), config)
        except OSError as error:
            raise InputError(f"workdir {config.workdir[:80]}: cannot be used ({error.strerror})") from None

    @classmethod
    def _find(cls, path: Path, config: TrainConfig) -> Workdir:
        if path.exists() and not path.is_dir():
            raise InputError(f"workdir must be a directory, got the file {path}")
        saved_config = path / "config.json"
        if not config.resume:
            present = [name for name in _OURS if (path / name).exists()]
            if present:
                raise InputError(
                    f"workdir {path} holds a run already ({present[0]}): "
                    "name another directory, or continue that run with --resume"
                )
            return cls(path)
        if not saved_config.is_file():
            raise InputError(f"resume: a run with a config.json wanted in {path}, found none")
        saved = read_config(saved_config)
        for name in saved.differences(config):
            if name != "epochs" and not (name == "data" and config.data is None):
                was, now = getattr(saved, name), getattr(config, name)
                raise InputError(f"resume: {name} must be {was!r} as in {saved_config}, got {now!r}")
        return cls(path, saved)

    @property
    def path(self) -> Path:
        """The directory."""
        if self._path is None:
            raise ValueError("a run without a workdir gets one by create()")
        return self._path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints go."""
        return self.path / "checkpoints"

    def create(self, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Makes the directory, locks it until :meth:`close`, and writes ``config.json`` and ``data.json``.

        Args:
            config: the run.
            data: from ``Dataset.identity``.

        Raises:
            InputError: the directory cannot be written or is in use, or the run to continue had other data.
        """
        if self._path is None:
            self._path = new_directory(Path("runs"), f"{data['name'].replace('/', '-')}-{config.model}")
        self._check_data(data)
        self._lock.enter_context(lock_directory(self.path))
        if self.saved is None and (self.path / "config.json").exists():
            self.close()
            raise _in_use(self.path)  # another process made it since find() looked
        (self.path / "summary.json").unlink(missing_ok=True)  # of the run that goes on: no longer its final numbers
        write_whole(self.path / "data.json", json.dumps(data, indent=2) + "\n")
        write_whole(self.path / "config.json", config.to_json())

    def close(self) -> None:
        """Lets other processes use the directory."""
        self._lock.close()

    def _check_data(self, data: Mapping[str, Any]) -> None:
        saved = None if self.saved is None else read_data(self.path)
        if saved is not None and saved != data:
            raise InputError(f"resume: the data must be that of {self.path / 'data.json'}, {saved}, got {dict(data)}")

    def read_history(self, num_epochs: int) -> list[dict[str, Any]]:
        """The first ``num_epochs`` lines of ``metrics.jsonl``.

        Raises:
            InputError: it has fewer, or a line is not JSON.
        """
        path = self.path / "metrics.jsonl"
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        except ValueError as error:
            raise InputError(f"{path}: a JSON object on each line wanted ({error})") from None
        if not all(isinstance(line, dict) and line.get("epoch") == epoch for epoch, line in enumerate(lines, start=1)):
            raise InputError(f"{path}: epochs 1, 2, ... one on each line wanted, got something else")
        if len(lines) < num_epochs:
            raise InputError(f"{path}: a line for each of the {num_epochs} epochs trained wanted, got {len(lines)}")
        return lines[:num_epochs]

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``metrics.jsonl``, one object per epoch."""
        write_whole(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``."""
        write_whole(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def read_config(path: Path) -> TrainConfig:
    """Reads the ``config.json`` of a run.

    Raises:
        InputError: it holds something else; the message names the file.
    """
    try:
        return TrainConfig.from_json(path.read_text())
    except ValueError as error:  # of the text, or of its encoding
        raise InputError(f"{path}: {error}") from None


def read_data(directory: Path) -> Any:
    """What ``data.json`` of a run says it was trained on, see ``Dataset.identity``; None if it is not there.

    Raises:
        InputError: it is not JSON.
    """
    path = directory / "data.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: a JSON object wanted ({error})") from None


def new_directory(parent: Path, stem: str) -> Path:
    """Makes a directory ``parent/stem-<time>`` that nobody else has.

    Raises:
        InputError: it cannot be made.
    """
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, attempt = parent / name, 0
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
                return path
            except FileExistsError:
                attempt += 1
                path = parent / f"{name}-{attempt}"
    except OSError as error:
        raise _not_writable(parent, error) from None


@contextlib.contextmanager
def lock_directory(path: Path) -> Iterator[None]:
    """Makes a directory, if it is not there, and keeps other processes out of it.

    Raises:
        InputError: it cannot be written, or another process is in it.
    """
    lock = FileLock(path / _LOCK, timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise _in_use(path) from None
    except OSError as error:
        raise _not_writable(path, error) from None
    try:
        yield
    finally:
        (path / _LOCK).unlink(missing_ok=True)
        lock.release()


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise _not_writable(path.parent, error) from None


def _in_use(path: Path) -> InputError:
    return InputError(f"workdir {path} is in use by another process: wait for it, or name another directory")


def _not_writable(path: Path, error: OSError) -> InputError:
    return InputError(f"workdir must be a writable directory, got {path} ({error.strerror})")
