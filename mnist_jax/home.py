"""Finds directories for caches and downloads, even if the home directory is missing or read-only.

find_directory("TFDS_DATA_DIR", "tensorflow_datasets")   # ~/tensorflow_datasets, or one in the temporary directory
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
import threading
from pathlib import Path

_log = logging.getLogger("mnist_jax")
_creating, _temporary_home = threading.Lock(), list[Path]()


def find_directory(variable: str, default: str) -> Path:
    """Returns the directory that an environment variable names, or else a directory in the home directory.

    If the latter is missing and cannot be created, as in many containers, it moves to :func:`temporary_home`.

    Args:
        variable: name of the environment variable.
        default: path in the home directory.
    """
    value = os.environ.get(variable)
    path = Path(value or f"~/{default}")
    with contextlib.suppress(RuntimeError):  # no home directory
        if value or os.access(path.expanduser(), os.F_OK) or can_create(path):
            return path.expanduser()
    return temporary_home(path) / default


def prepare_matplotlib() -> None:
    """Gives Matplotlib a directory for its files if it cannot write its own; call this before importing it."""
    for variable, default in (("XDG_CONFIG_HOME", "~/.config"), ("XDG_CACHE_HOME", "~/.cache")):
        path = Path(os.environ.get(variable) or default, "matplotlib")
        if "MPLCONFIGDIR" not in os.environ and not can_create(path):
            with contextlib.suppress(OSError):  # no temporary directory either
                os.environ["MPLCONFIGDIR"] = str(temporary_home(path) / "matplotlib")


def can_create(path: Path) -> bool:
    """Returns whether a directory can be created, or exists and can be written; ``~`` is the home directory."""
    try:
        path = path.expanduser().absolute()
    except RuntimeError:  # no home directory
        return False
    nearest = next(each for each in (path, *path.parents) if os.access(each, os.F_OK))
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def temporary_home(replaced: Path) -> Path:
    """Returns a private directory in the temporary directory; the first call creates it and logs a notice.

    Args:
        replaced: the path that cannot be written, for the notice.
    """
    with _creating:  # data loads in a thread
        if not _temporary_home:
            _temporary_home.append(_create_private_directory())
            _log.warning("%s cannot be written: caches and downloads go to %s", replaced, _temporary_home[0])
        return _temporary_home[0]


def is_private(path: Path) -> bool:
    """Returns whether a path is a directory of this user that no other user can read or write."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return False
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)


def _create_private_directory() -> Path:
    """Creates a private directory in the temporary directory, or finds the one of an earlier process."""
    user = os.getuid() if hasattr(os, "getuid") else None
    path = Path(tempfile.gettempdir(), f"mnist_jax-{user}")
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    return path if is_private(path) else Path(tempfile.mkdtemp(prefix="mnist_jax-"))
