"""Caches decoded data sets, so that only the first load decompresses and parses them.

    arrays = load_cached([path, ...], lambda: decode(path, ...))

Copies are stored in ``$XDG_CACHE_HOME/mnist_jax`` (default ``~/.cache/mnist_jax``). The name of a copy is a hash of
the path, size and modification time of each source file. Copies may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mnist_jax.atomic import atomic_write
from mnist_jax.data.dataset import Arrays

_ROLES = ("train_image", "train_label", "test_image", "test_label")
_VERSION = 1  # increase when a reader returns other arrays for the same file


def load_cached(sources: Sequence[Path], decode: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays of the source files: from the cache, or by calling ``decode`` and caching its result.

    A damaged copy is replaced. A cache that cannot be written is ignored.
    """
    path = _cache_file(sources)
    with (
        contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        path.open("rb") as cached,
        np.load(cached) as copy,
    ):
        return {role: copy[role] for role in _ROLES}
    arrays = decode()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, mode=0o600) as file:  # the source files may be private
            np.savez(file, allow_pickle=False, **arrays)
    return arrays


def _cache_file(sources: Sequence[Path]) -> Path:
    identity = [_VERSION, *((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources)]
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "mnist_jax" / f"{digest}.npz"
