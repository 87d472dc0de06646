"""Caches decoded data sets, so that only the first load decompresses and parses them.

    arrays = load_cached([path, ...], lambda: decode(path, ...))

Copies are stored in ``$XDG_CACHE_HOME/mnist_jax`` (default ``~/.cache/mnist_jax``). The name of a copy is a hash of
the path, size and modification time of each source file. Copies may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mnist_jax.atomic import atomic_write, clear_parts
from mnist_jax.data.dataset import DIGITS, IMAGE_SHAPE, Arrays
from mnist_jax.home import find_directory

_ROLES = ("train_image", "train_label", "test_image", "test_label")
_VERSION = 2  # increase when a reader returns other arrays for the same file


def load_cached(sources: Sequence[Path], decode: Callable[[], Arrays], num_classes: int = len(DIGITS)) -> Arrays:
    """Returns the arrays of the source files: from the cache, or by calling ``decode`` and caching its result.

    A damaged copy is replaced. A cache that cannot be written is ignored.
    """
    with (
        contextlib.suppress(Exception),  # NumPy and zipfile have no common error for damage
        _cache_file(sources).open("rb") as cached,
        np.load(cached) as copy,
    ):
        arrays = {role: copy[role] for role in _ROLES}
        if _are_valid(arrays, num_classes):
            return arrays
    arrays = decode()
    with contextlib.suppress(OSError):
        path = _cache_file(sources)
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
