"""Caches decoded data sets, so that only the first load decompresses and parses them.

    arrays = load_cached([path, ...], lambda: decode(path, ...))
    find_directory("TFDS_DATA_DIR", "tensorflow_datasets")   # ~/tensorflow_datasets, or a temporary one

Copies are stored in ``$XDG_CACHE_HOME/mnist_jax`` (default ``~/.cache/mnist_jax``). The name of a copy is a hash of
the path, size and modification time of each source file. Copies may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mnist_jax.atomic import atomic_write, clear_parts
from mnist_jax.data.dataset import DIGITS, IMAGE_SHAPE, Arrays

_ROLES = ("train_image", "train_label", "test_image", "test_label")
_VERSION = 1  # increase when a reader returns other arrays for the same file
_log = logging.getLogger("mnist_jax")
_creating, _temporary_home = threading.Lock(), list[Path]()


def load_cached(sources: Sequence[Path], decode: Callable[[], Arrays], num_classes: int = len(DIGITS)) -> Arrays:
    """Returns the arrays of the source files: from the cache, or by calling ``decode`` and caching its result.

    A damaged copy is replaced. A cache that cannot be written is ignored.
    """
    path = _cache_file(sources)
    with (
        contextlib.suppress(Exception),  # NumPy and zipfile have no common error for damage
        path.open("rb") as cached,
        np.load(cached) as copy,
    ):
        arrays = {role: copy[role] for role in _ROLES}
        if _are_valid(arrays, num_classes):
            return arrays
    arrays = decode()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(path.parent)
        with atomic_write(path, mode=0o600, durable=False) as file:  # the source files may be private
            np.savez(file, allow_pickle=False, **arrays)
    return arrays


def _are_valid(arrays: Arrays, num_classes: int) -> bool:
    """Returns whether arrays have the shapes, dtypes and labels that readers return."""
    return all(
        image.shape == (len(label), *IMAGE_SHAPE)
        and image.dtype == np.uint8
        and label.ndim == 1
        and label.dtype.kind in "iu"
        and label.size > 0
        and 0 <= label.min() <= label.max() < num_classes
        for image, label in ((arrays[f"{split}_image"], arrays[f"{split}_label"]) for split in ("train", "test"))
    )


def _cache_file(sources: Sequence[Path]) -> Path:
    identity = [_VERSION, *((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources)]
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    return find_directory("XDG_CACHE_HOME", ".cache") / "mnist_jax" / f"{digest}.npz"


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


def _create_private_directory() -> Path:
    """Creates a private directory in the temporary directory, or finds the one of an earlier process."""
    user = os.getuid() if hasattr(os, "getuid") else None
    path = Path(tempfile.gettempdir(), f"mnist_jax-{user}")
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    is_private = user is None or (found.st_uid == user and not found.st_mode & 0o077)
    return path if stat.S_ISDIR(found.st_mode) and is_private else Path(tempfile.mkdtemp(prefix="mnist_jax-"))
