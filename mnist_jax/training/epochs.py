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
import jax.numpy as jnp
import numpy as np

from mnist_jax.core.epoch import count_steps, epoch_order, loop_steps
from mnist_jax.core.metrics import ExampleMetrics, Metrics
from mnist_jax.core.population import population_order, population_steps
from mnist_jax.core.state import TrainState
from mnist_jax.data.dataset import Split
from mnist_jax.errors import NonFiniteLossError
from mnist_jax.training import processes
from mnist_jax.training.compiled import Compiled

# Long enough to hide the cost of starting a chunk, short enough for a smooth bar and a quick response to Ctrl-C.
_CHUNK_S = 0.5

_steps = jax.jit(loop_steps, static_argnames=("batch_size", "sharding", "has_gaps"), donate_argnames="state")
_population_steps = jax.jit(population_steps, static_argnames=("batch_size", "has_gaps"), donate_argnames="states")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Holds the result of a chunk of an epoch.

    Attributes:
        state: the state after the chunk.
        total: sums over the epoch so far, on the host.
        metrics: sums over the chunk, on the host; ``loss_sum`` is a difference of float32 totals, so it is rounded.
        step: steps taken since the start of the run.
        seconds: wall seconds of the chunk.
        examples: values of each example over the epoch so far, on the device; None if they are not recorded.
    """

    state: TrainState
    total: Metrics
    metrics: Metrics
    step: int
    seconds: float
    examples: ExampleMetrics | None = None


class ChunkedEpoch:
    """Trains epochs over one split in chunks; a population continues when a member diverges.

    Args:
        state: a state or its shapes; with ``population``, the states of M members.
        split: N examples, on the device.
        batch_size: B.
        population: whether the arrays of the state have a leading axis of members.
        sharding: sharding of the batch axis on a mesh.
        order_fn: jitted, returns the order of an epoch, ``(key, epoch, num_examples) -> int32[n]``; a population passes
            its states instead of a key and gets ``int32[M, n]``. Default: a new shuffle for each epoch.
        has_gaps: whether entries of the order may be -1, which are masked.
        record: whether to record the values of each example.
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
        order_fn: Any = None,
        has_gaps: bool = False,
        record: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if population and sharding is not None:
            raise ValueError("a population must have its batch unsharded")
        num_examples = split.num_examples
        self._split: Any = split
        self._batch_size, self._clock = batch_size, clock
        self._population, self._has_gaps, self._record = population, has_gaps, record
        order_fn = order_fn or (population_order if population else epoch_order)
        if population:  # uses the cache of jit, so the next population reuses the program
            self._order: Any = functools.partial(order_fn, num_examples=num_examples)
            order = jax.eval_shape(self._order, state, 0)
            self._steps: Any = functools.partial(_population_steps, batch_size=batch_size, has_gaps=has_gaps)
        else:
            self._order = Compiled(order_fn, state.key, 0, num_examples=num_examples)
            order = self._order.out_info
            self._steps = self._trace(state, sharding)
        self.steps_per_epoch = count_steps(order.shape[-1], batch_size)
        self._chunk_steps = max(1, self.steps_per_epoch // 20)

    def _trace(self, state: TrainState, sharding: Any) -> Compiled:
        """Traces the program of a chunk."""
        total = Metrics.zeros()
        if self._record:
            total = total.replace(examples=ExampleMetrics.empty(self._split.num_examples))
        options: dict[str, Any] = {"batch_size": self._batch_size, "sharding": sharding, "total": total}
        options["has_gaps"] = self._has_gaps
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
        self,
        state: TrainState,
        first_step: int,
        num_steps: int | None = None,
        total: Metrics | None = None,
        examples: ExampleMetrics | None = None,
    ) -> Iterator[Chunk]:
        """Trains the rest of the epoch that ``first_step`` is in, at most ``num_steps`` steps.

        Args:
            state: the state to start from; its buffers are donated.
            first_step: ``int(state.step)``, the steps taken so far.
            num_steps: maximum number of steps; training always stops at the end of the epoch.
            total: sums over the epoch so far; None starts from zero.
            examples: values of each example over the epoch so far, if they are recorded; None starts without any.

        Yields:
            Each chunk.

        Raises:
            NonFiniteLossError: the loss of a step is not finite; names the step. Not raised for a population.
        """
        epoch, start = divmod(first_step, self.steps_per_epoch)
        end = self.steps_per_epoch if num_steps is None else min(self.steps_per_epoch, start + num_steps)
        if total is None:
            total = jax.tree.map(lambda zero: np.broadcast_to(zero, state.step.shape), Metrics.zeros())
        if self._record and examples is None:
            examples = jax.tree.map(
                lambda empty: jnp.broadcast_to(empty, (*state.step.shape, *empty.shape)),
                ExampleMetrics.empty(self._split.num_examples),
            )
        with self._open(state, epoch, start, end) as run_chunk:
            while start < end:
                length = min(-(-self._chunk_steps // self._unit) * self._unit, end - start)
                start_time = self._clock()
                before = total
                total = total.replace(examples=examples)
                state, total, nonfinite = run_chunk(state, start=start, num_steps=length, total=total)
                examples = total.examples  # stay on the device
                total, nonfinite = jax.device_get((total.replace(examples=None), nonfinite))  # waits for the chunk
                elapsed = self._clock() - start_time
                if not self._population and nonfinite >= 0:
                    step = epoch * self.steps_per_epoch + int(nonfinite)
                    raise NonFiniteLossError(epoch + 1, step + 1, float(total.loss_sum))
                start += length
                metrics = jax.tree.map(np.subtract, total, before)
                yield Chunk(state, total, metrics, epoch * self.steps_per_epoch + start, elapsed, examples)
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
