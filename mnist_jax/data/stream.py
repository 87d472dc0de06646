"""Streams batches from the host, for custom loops and for data that should not stay on the device.

for batch in prefetch(stream_batches(dataset.train, batch_size=128, seed=0, num_epochs=10)):
    state, metrics = train_step(state, batch)
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mnist_jax.data.dataset import Split

Batch = dict[str, Any]


def stream_batches(
    split: Split, batch_size: int, *, seed: int | None = None, num_epochs: int = 1, drop_remainder: bool = False
) -> Iterator[Batch]:
    """Yields batches as tfds does: ``{"image": uint8[B, 28, 28, 1], "label": int32[B]}``.

    Args:
        split: NumPy arrays.
        batch_size: B; the last batch of an epoch is smaller if B does not divide N.
        seed: shuffles every epoch differently; None keeps the order of the split.
        num_epochs: number of passes over the split.
        drop_remainder: whether to drop a smaller last batch.

    Raises:
        ValueError: ``batch_size`` is below 1, or images and labels differ in number.

    Example:
        >>> split = Split(np.zeros((5, 28, 28, 1), np.uint8), np.arange(5, dtype=np.int32))
        >>> [batch["label"].tolist() for batch in stream_batches(split, 2)]
        [[0, 1], [2, 3], [4]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    split.check_lengths()
    return _stream(split, batch_size, seed, num_epochs, drop_remainder)


def _stream(split: Split, batch_size: int, seed: int | None, num_epochs: int, drop_remainder: bool) -> Iterator[Batch]:
    num_examples = split.num_examples
    stop = num_examples - num_examples % batch_size if drop_remainder else num_examples
    for epoch in range(num_epochs):
        order = (
            np.arange(num_examples) if seed is None else np.random.default_rng([seed, epoch]).permutation(num_examples)
        )
        for start in range(0, stop, batch_size):
            index = order[start : min(start + batch_size, stop)]
            yield {"image": split.image[index], "label": split.label[index]}


def prefetch(batches: Iterable[Batch], size: int = 2) -> Iterator[Batch]:
    """Yields the same batches as device arrays; up to ``size`` are transferred before they are needed.

    Text, such as file names, stays on the host.

    Example:
        >>> batches = [{"label": np.array([0, 1])}, {"label": np.array([2])}]
        >>> [batch["label"].tolist() for batch in prefetch(batches)]
        [[0, 1], [2]]
    """
    import jax  # not at the top: loading data must not import it

    def put(x: Any) -> Any:
        is_text = isinstance(x, (str, bytes)) or (isinstance(x, np.ndarray) and x.dtype.kind in "OSUT")
        return x if is_text else jax.device_put(x)

    source = (jax.tree.map(put, batch) for batch in batches)
    queue = collections.deque(itertools.islice(source, size))
    while queue:
        batch = queue.popleft()
        queue.extend(itertools.islice(source, 1))
        yield batch
