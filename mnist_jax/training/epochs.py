"""``ChunkedEpoch`` trains an epoch in chunks of about half a second with one program, compiled ahead of time.

    epochs = ChunkedEpoch(state, train, batch_size=128)          # train is on the device
    epochs = ChunkedEpoch(states, train, 128, population=True)   # many models at once
    for chunk in epochs.run(state, first_step=0):
        state = chunk.state   # show progress, check for Ctrl-C

The size of the chunks changes neither the state nor the sums of the epoch: a step depends on its number, and each chunk
adds to the sums of the one before. The buffers of a state are donated to the next one: keep only the last state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from mnist_jax.core.epoch import count_steps, epoch_order, loop_steps
from mnist_jax.core.metrics import Metrics
from mnist_jax.core.population import population_order, population_steps
from mnist_jax.core.state import TrainState
from mnist_jax.data.dataset import Split
from mnist_jax.errors import NonFiniteLossError
from mnist_jax.training import processes
from mnist_jax.training.compiled import Compiled

# Long enough to hide the cost of starting a chunk, short enough for a smooth bar and a quick response to Ctrl-C.
_CHUNK_S = 0.5

_steps = jax.jit(loop_steps, static_argnames=("batch_size", "sharding"), donate_argnames="state")
_population_steps = jax.jit(population_steps, static_argnames="batch_size", donate_argnames="states")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Holds the result of a chunk of an epoch.

    Attributes:
        state: the state after the chunk.
        total: sums over the epoch so far, on the host.
        metrics: sums over the chunk, on the host; ``loss_sum`` is a difference of float32 totals, so it is rounded.
        step: steps taken since the start of the run.
        seconds: wall seconds of the chunk.
    """

    state: TrainState
    total: Metrics
    metrics: Metrics
    step: int
    seconds: float


class ChunkedEpoch:
    """Trains epochs over one split in chunks; a population continues when a member diverges.

    Args:
        state: a state or its shapes; with ``population``, the states of M members.
        split: N examples, on the device.
        batch_size: B.
        population: whether the arrays of the state have a leading axis of members.
        sharding: sharding of the batch axis on a mesh.
        clock: returns a time in seconds.
    """

    _unit = 1  # the length of a chunk is a multiple of it

    def __init__(
        self,
        state: TrainState,
        split: Split,
        batch_size: int,
        *,
        population: bool = False,
        sharding: jax.sharding.Sharding | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if population and sharding is not None:
            raise ValueError("a population must have its batch unsharded")
        self.steps_per_epoch = count_steps(split.num_examples, batch_size)
        self._split: Any = split
        self._batch_size, self._clock = batch_size, clock
        self._population = population
        self._chunk_steps = max(1, self.steps_per_epoch // 20)
        if population:  # uses the cache of jit, so the next population reuses the program
            self._order: Any = functools.partial(population_order, num_examples=split.num_examples)
            self._steps: Any = functools.partial(_population_steps, batch_size=batch_size)
            return
        self._order = Compiled(epoch_order, state.key, 0, num_examples=split.num_examples)
        self._steps = self._trace(state, sharding)

    def _trace(self, state: TrainState, sharding: Any) -> Compiled:
        """Traces the program of a chunk."""
        options: dict[str, Any] = {"batch_size": self._batch_size, "sharding": sharding, "total": Metrics.zeros()}
        return Compiled(_steps, state, self._split, self._order.out_info, start=0, num_steps=1, **options)

    def compile(self) -> None:
        """Compiles the programs, unless they are compiled already; a population compiles at its first chunk."""
        for program in (self._order, self._steps):
            if isinstance(program, Compiled):
                program.compile()

    def num_bytes(self) -> int:
        """Returns the bytes that the program of a chunk needs on the device; not for a population."""
        return self._steps.num_bytes()

    def run(
        self, state: TrainState, first_step: int, num_steps: int | None = None, total: Metrics | None = None
    ) -> Iterator[Chunk]:
        """Trains the rest of the epoch that ``first_step`` is in, at most ``num_steps`` steps.

        Args:
            state: the state to start from; its buffers are donated.
            first_step: ``int(state.step)``, the steps taken so far.
            num_steps: maximum number of steps; training always stops at the end of the epoch.
            total: sums over the epoch so far; None starts from zero.

        Yields:
            Each chunk.

        Raises:
            NonFiniteLossError: the loss of a step is not finite; names the step. Not raised for a population.
        """
        epoch, start = divmod(first_step, self.steps_per_epoch)
        end = self.steps_per_epoch if num_steps is None else min(self.steps_per_epoch, start + num_steps)
        if total is None:
            total = jax.tree.map(lambda zero: np.broadcast_to(zero, state.step.shape), Metrics.zeros())
        with self._open(state, epoch, start, end) as run_chunk:
            while start < end:
                length = min(-(-self._chunk_steps // self._unit) * self._unit, end - start)
                start_time = self._clock()
                before = total
                state, total, nonfinite = run_chunk(state, start=start, num_steps=length, total=total)
                total, nonfinite = jax.device_get((total, nonfinite))  # waits for the chunk
                elapsed = self._clock() - start_time
                if not self._population and nonfinite >= 0:
                    step = epoch * self.steps_per_epoch + int(nonfinite)
                    raise NonFiniteLossError(epoch + 1, step + 1, float(total.loss_sum))
                start += length
                metrics = jax.tree.map(np.subtract, total, before)
                yield Chunk(state, total, metrics, epoch * self.steps_per_epoch + start, elapsed)
                # Clocks differ, and all processes must run the same chunks.
                self._chunk_steps = processes.smallest(max(1, round(length * _CHUNK_S / max(elapsed, 1e-9))))

    @contextlib.contextmanager
    def _open(self, state: TrainState, epoch: int, start: int, end: int) -> Iterator[Callable[..., Any]]:
        """Prepares the steps from ``start`` to ``end`` of an epoch; yields a function that trains a chunk of them."""
        del start, end  # all examples are on the device
        order = self._order(state if self._population else state.key, epoch)

        def run_chunk(state: TrainState, **options: Any) -> Any:
            return self._steps(state, self._split, order, **options)

        yield run_chunk
