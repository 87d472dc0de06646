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
import functools
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
from mnist_jax.errors import InputError
from mnist_jax.training.compiled import Compiled
from mnist_jax.training.epochs import ChunkedEpoch
from mnist_jax.training.privacy import PoissonOrder

_BLOCK_SIZE = 4096  # examples, 3 MB: large enough to hide what a read and a program cost, small enough to hold many
_NUM_AHEAD = 2  # blocks on the device beyond the one that is trained on
_MAX_THREADS = 8
_BEGINNING = {"next_index": 0}  # state of grain's iterator

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
        self._rows = np.empty((0, batch_size), np.int32)  # examples of the steps to train
        super().__init__(state, cast(Split, split), batch_size, sharding=sharding, clock=clock)

    def _trace(self, state: TrainState, sharding: Any) -> Compiled:
        def stack(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*self._shape, *leaf.shape[1:]), leaf.dtype, sharding=self._sharding)

        block = jax.tree.map(stack, self._split.read(np.arange(1)))
        options: dict[str, Any] = {"num_examples": self._split.num_examples, "batch_size": self._batch_size}
        options |= {"sharding": sharding, "total": Metrics.zeros()}
        return Compiled(_block_steps, state, block, start=0, num_steps=1, **options)

    @functools.cached_property
    def _blocks(self) -> Any:
        """Iterator over the blocks of the steps in ``_rows``, for all epochs: new threads would take new memory."""
        import grain

        num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
        return iter(grain.MapDataset.range(self.steps_per_epoch).map(self._read).to_iter_dataset(options))

    def _read(self, block: int) -> Split | Exception:
        """Reads the rows of this process of a block, filled up to its whole length."""
        index = self._rows[block * self._unit : (block + 1) * self._unit, self._columns]
        try:
            if not index.size:
                raise IndexError("no block is left")  # which grain reads ahead, and nobody takes
            examples = self._split.read(index.ravel())
        except Exception as error:  # raised, it would get a message of grain's
            return error

        def stack(leaf: np.ndarray) -> np.ndarray:
            leaf = leaf.reshape(*index.shape, *leaf.shape[1:])
            missing = self._unit - len(leaf)
            return np.pad(leaf, ((0, missing), *[(0, 0)] * (leaf.ndim - 1))) if missing else leaf

        return jax.tree.map(stack, examples)

    @contextlib.contextmanager
    def _open(self, state: TrainState, epoch: int, start: int, end: int) -> Iterator[Callable[..., Any]]:
        order = np.asarray(self._order(state.key, epoch))
        # As in a split on the device, the last batch is padded with the first examples of the epoch.
        rows = self._rows = np.resize(order, (self.steps_per_epoch, self._batch_size))[start:end]
        self._blocks.set_state(_BEGINNING)

        def run_chunk(state: TrainState, start: int, num_steps: int, total: Metrics) -> Any:
            if self._rows is not rows:
                raise RuntimeError("another epoch was begun before the end of this one")
            nonfinite: list[jax.Array] = []
            for first in range(start, start + num_steps, self._unit):
                length = min(self._unit, start + num_steps - first)
                if isinstance(block := next(self._blocks), Exception):
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
            if self._rows is rows:
                self._blocks.set_state(_BEGINNING)  # cancels what is read ahead

    def _put(self, leaf: np.ndarray) -> jax.Array:
        """Copies an array of a block to the devices."""
        if self._sharding is None:
            return jax.device_put(leaf)
        return jax.make_array_from_process_local_data(self._sharding, leaf, (*self._shape, *leaf.shape[2:]))


def create_epochs(
    state: TrainState,
    split: Split | StreamedSplit,
    batch_size: int,
    sharding: NamedSharding | None = None,
    *,
    record: bool = False,
    sampling: PoissonOrder | None = None,
) -> ChunkedEpoch:
    """Returns a :class:`StreamedEpoch` for a split on disk, and a :class:`ChunkedEpoch` for one on the device.

    Args:
        state: a state or its shapes.
        split: the training split.
        batch_size: B.
        sharding: sharding of the batch axis.
        record: whether to record the values of each example.
        sampling: samples the batches of a private run; None to shuffle.

    Raises:
        InputError: the values of each example are to be recorded, and the split is on disk.
    """
    if isinstance(split, StreamedSplit):
        if record:
            raise InputError("record needs the training examples in memory: leave out stream, or do not record them")
        return StreamedEpoch(state, split, batch_size, sharding=sharding)
    if sampling is None:
        return ChunkedEpoch(state, split, batch_size, sharding=sharding, record=record)
    order_fn = jax.jit(sampling, static_argnames="num_examples")
    size = sampling.max_batch_size(split.num_examples)
    return ChunkedEpoch(state, split, size, sharding=sharding, order_fn=order_fn, has_gaps=True, record=record)
