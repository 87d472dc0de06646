"""``StreamedEpoch`` trains an epoch over examples that are read from disk meanwhile, for data larger than memory.

    epochs = StreamedEpoch(state, dataset.train, batch_size=128)   # dataset = load_dataset("shards", stream=True)
    for chunk in epochs.run(state, first_step=0):
        state = chunk.state

The order of the examples is that of ``ChunkedEpoch``: a function of key and epoch. So the step in the state is all that
input needs: a run resumes at the exact batch, and any number of processes sees the same batches.

A block of a few thousand examples, consecutive batches of the epoch, is read by grain's threads and copied to the
device while the blocks before it are trained on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mnist_jax.core.epoch import count_steps, loop_block
from mnist_jax.core.metrics import Metrics
from mnist_jax.core.state import TrainState
from mnist_jax.data.dataset import Split, StreamedSplit
from mnist_jax.training.compiled import Compiled
from mnist_jax.training.epochs import ChunkedEpoch

_BLOCK_SIZE = 4096  # examples, 3 MB: large enough to hide what a read and a program cost, small enough to hold many
_NUM_AHEAD = 2  # blocks on the device beyond the one that is trained on
_MAX_THREADS = 8

_block_steps = jax.jit(loop_block, static_argnames=("num_examples", "batch_size", "sharding"), donate_argnames="state")


class StreamedEpoch(ChunkedEpoch):
    """Trains epochs over a split that stays on disk, with the numbers of ``ChunkedEpoch``.

    Args:
        state: a state or its shapes.
        split: N examples.
        batch_size: B.
        sharding: sharding of the batch axis over a mesh with one axis, ``data``. Each process reads the examples of
            its own devices.
        block_size: examples in a block, rounded to whole batches; default 4,096, or N / 20 if that is less.
        clock: returns a time in seconds.
    """

    def __init__(
        self,
        state: TrainState,
        split: StreamedSplit,
        batch_size: int,
        *,
        sharding: NamedSharding | None = None,
        block_size: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if block_size is None:
            block_size = min(_BLOCK_SIZE, split.num_examples // 20)  # a run can be stopped after each block
        self._unit = min(max(1, block_size // batch_size), count_steps(split.num_examples, batch_size))
        shape = (self._unit, batch_size)
        self._sharding, columns = None, np.arange(batch_size)
        if sharding is not None:
            # The transfer needs as many examples for each device; the program cuts the batch to B.
            shape = (self._unit, batch_size + -batch_size % sharding.num_devices)
            self._sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
            parts = [index for index in self._sharding.addressable_devices_indices_map(shape).values() if index]
            columns = np.unique([np.arange(shape[1])[part] for _, part in parts]) % batch_size
        self._shape, self._columns = shape, columns
        super().__init__(state, cast(Split, split), batch_size, sharding=sharding, clock=clock)

    def _trace(self, state: TrainState, sharding: Any) -> Compiled:
        def stack(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*self._shape, *leaf.shape[1:]), leaf.dtype, sharding=self._sharding)

        block = jax.tree.map(stack, self._split.read(np.arange(1)))
        options: dict[str, Any] = {"num_examples": self._split.num_examples, "batch_size": self._batch_size}
        options |= {"sharding": sharding, "total": Metrics.zeros()}
        return Compiled(_block_steps, state, block, start=0, num_steps=1, **options)

    @contextlib.contextmanager
    def _open(self, state: TrainState, epoch: int, start: int, end: int) -> Iterator[Callable[..., Any]]:
        import grain

        order = np.asarray(self._order(state.key, epoch))
        # As in a split on the device, the last batch is padded with the first examples of the epoch.
        order = np.resize(order, (self.steps_per_epoch, self._batch_size))[start:end]

        def read(block: int) -> Split | Exception:
            index = order[block * self._unit : (block + 1) * self._unit, self._columns]
            try:
                examples = self._split.read(index.ravel())
            except Exception as error:  # raised, it would get a message of grain's
                return error
            return jax.tree.map(lambda leaf: self._stack(leaf, index.shape), examples)

        num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
        dataset = grain.MapDataset.range(-(-(end - start) // self._unit)).map(read)
        blocks = iter(dataset.to_iter_dataset(options))

        def run_chunk(state: TrainState, start: int, num_steps: int, total: Metrics) -> Any:
            nonfinite: list[jax.Array] = []
            for first in range(start, start + num_steps, self._unit):
                length = min(self._unit, start + num_steps - first)
                if isinstance(block := next(blocks), Exception):
                    raise block
                block = jax.tree.map(self._put, block)
                state, total, bad = self._steps(state, block, start=first, num_steps=length, total=total)
                nonfinite.append(bad)
                if len(nonfinite) > _NUM_AHEAD:
                    nonfinite[-1 - _NUM_AHEAD].block_until_ready()
            return state, total, next((step for step in jax.device_get(nonfinite) if step >= 0), np.int32(-1))

        try:
            yield run_chunk
        finally:
            blocks.close()

    def _stack(self, leaf: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns examples as ``[n, B, ...]``, filled up to a whole block."""
        leaf = leaf.reshape(*shape, *leaf.shape[1:])
        missing = self._unit - shape[0]
        return np.pad(leaf, ((0, missing), *[(0, 0)] * (leaf.ndim - 1))) if missing else leaf

    def _put(self, leaf: np.ndarray) -> jax.Array:
        """Copies an array of a block to the devices."""
        if self._sharding is None:
            return jax.device_put(leaf)
        return jax.make_array_from_process_local_data(self._sharding, leaf, (*self._shape, *leaf.shape[2:]))


def create_epochs(
    state: TrainState, split: Split | StreamedSplit, batch_size: int, sharding: NamedSharding | None = None
) -> ChunkedEpoch:
    """Returns a :class:`StreamedEpoch` for a split on disk, and a :class:`ChunkedEpoch` for one on the device."""
    if isinstance(split, StreamedSplit):
        return StreamedEpoch(state, split, batch_size, sharding=sharding)
    return ChunkedEpoch(state, split, batch_size, sharding=sharding)
