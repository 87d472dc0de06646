"""An epoch in pieces: compiled once, run about half a second at a time, stopped at the first loss that is not finite.

    program = EpochInPieces(state, train, batch_size=128)
    for after_piece, metrics, seconds in program.run(state, num_steps=430):
        state = after_piece   # show progress, look for Ctrl-C

Where one piece ends does not change what comes out: a step depends on its number, not on the piece it is in.
"""

from __future__ import annotations

import bisect
import functools
import math
import time
from collections.abc import Iterator

import jax

from mnist_jax.core.state import TrainState
from mnist_jax.core.steps import Metrics, train_epoch
from mnist_jax.data import Split
from mnist_jax.errors import NonFiniteLossError

# Long enough that starting a piece costs nothing, short enough for a lively bar and a quick answer to Ctrl-C.
_PIECE_S = 0.5


class EpochInPieces:
    """``train_epoch`` for one split and batch size, compiled ahead for pieces of any length.

    Traced here, from a state or from its shapes; compiled by :meth:`compile`, perhaps in another thread, or at the
    first use.
    """

    def __init__(self, state: TrainState, split: Split, batch_size: int) -> None:
        self.steps_per_epoch = -(-split.num_examples // batch_size)
        self._split = split
        self._lowered = train_epoch.lower(state, split, batch_size, num_steps=1)
        self._piece = max(1, self.steps_per_epoch // 20)

    @functools.cached_property
    def _compiled(self) -> jax.stages.Compiled:
        return self._lowered.compile()

    def compile(self) -> None:
        """Compiles, unless that has been done."""
        _ = self._compiled

    def run(self, state: TrainState, num_steps: int) -> Iterator[tuple[TrainState, Metrics, float]]:
        """Goes ``num_steps`` further, to the end of the epoch at most.

        Yields:
            After each piece the state, the metrics of the piece, on the host, and the seconds it took.

        Raises:
            NonFiniteLossError: a step had a loss that is not finite; names that step.
        """
        while num_steps:
            piece = min(self._piece, num_steps)
            begun = time.perf_counter()
            next_state, metrics = self._compiled(state, self._split, num_steps=piece)
            metrics = jax.device_get(metrics)  # waits for the piece
            elapsed = time.perf_counter() - begun
            if not math.isfinite(metrics.loss_sum):
                raise self._failure(state, piece)
            yield next_state, metrics, elapsed
            state, num_steps = next_state, num_steps - piece
            self._piece = max(1, round(piece * _PIECE_S / elapsed))

    def _failure(self, state: TrainState, piece: int) -> NonFiniteLossError:
        """Finds the step in a piece that starts from ``state``, by going into it again, less and less far."""

        def loss_sum(num_steps: int) -> float:
            return float(self._compiled(state, self._split, num_steps=num_steps)[1].loss_sum)

        before = bisect.bisect_left(range(1, piece), True, key=lambda steps: not math.isfinite(loss_sum(steps)))
        step = int(state.step) + before
        return NonFiniteLossError(step // self.steps_per_epoch + 1, step + 1, loss_sum(before + 1))
