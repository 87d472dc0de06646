"""Creates, locks and fills the directories of runs and sweeps.

path = new_directory(Path("runs"), "mnist-mlp")      # runs/mnist-mlp-20261126-124747
with lock_directory(path):
    write_whole(path / "config.json", text)
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_jax.atomic import atomic_write, is_part, sync
from mnist_jax.errors import InputError

_LOCK = ".lock"  # held while a process writes


def new_directory(parent: Path, stem: str) -> Path:
    """Creates a new directory ``parent/stem-<time>``, with a number appended if that exists.

    Raises:
        InputError: the directory cannot be created.
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


def is_unused(path: Path) -> bool:
    """Returns whether a directory is missing or empty; a lock or an unfinished file of a killed process does not count.

    Example:
        >>> is_unused(Path("no_such_directory"))
        True
    """
    return not path.exists() or all(entry.name == _LOCK or is_part(entry) for entry in path.iterdir())


@contextlib.contextmanager
def lock_directory(path: Path) -> Iterator[None]:
    """Creates a directory if it is missing, and locks it against other processes.

    Raises:
        InputError: the directory cannot be written, or another process holds the lock.
    """
    lock = FileLock(path / _LOCK, timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)
        lock.acquire()
    except Timeout:
        raise in_use(path) from None
    except OSError as error:
        raise _not_writable(path, error) from None
    try:
        yield
    finally:
        (path / _LOCK).unlink(missing_ok=True)
        lock.release()


def write_whole(path: Path, text: str) -> None:
    """Writes a file atomically, in a directory that this process has locked.

    Raises:
        InputError: it cannot be written.
        OSError: the disk is full.
    """
    try:
        with atomic_write(path, locked=True) as file:
            file.write(text.encode())
    except OSError as error:
        raise _not_writable(path.parent, error) from None


def in_use(path: Path) -> InputError:
    """Returns the error of a directory that another process has locked."""
    return InputError(f"workdir {path} is in use by another process: wait for it, or name another directory")


def _not_writable(path: Path, error: OSError) -> OSError | InputError:
    if error.errno == errno.ENOSPC:
        return OSError(errno.ENOSPC, f"{path}: cannot be written (no space left)")
    return InputError(f"workdir must be a writable directory, got {path} ({error.strerror})")
