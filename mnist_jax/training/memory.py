"""Turns an out-of-memory error of XLA into one line that says what would fit.

with explain_out_of_memory(advise=lambda: "train fewer members at a time"):
    ...
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import psutil

from mnist_jax.config import TrainConfig
from mnist_jax.core.state import TrainState
from mnist_jax.data.dataset import Split, StreamedSplit
from mnist_jax.errors import InputError
from mnist_jax.training.build import build_state
from mnist_jax.training.privacy import PoissonOrder
from mnist_jax.training.streaming import create_epochs

if TYPE_CHECKING:
    from mnist_jax.training.run import Training

_SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "Failed to allocate")  # XLA has no type for this error


@contextlib.contextmanager
def explain_out_of_memory(advise: Callable[[], str]) -> Iterator[None]:
    """Turns an out-of-memory error of the device into an ``InputError``.

    Args:
        advise: returns what to do instead, the end of the message; called only after such an error.

    Raises:
        InputError: the device ran out of memory.

    Example:
        >>> with explain_out_of_memory(lambda: "use a smaller batch"):
        ...     jax.block_until_ready(jax.numpy.ones((10**7, 10**7)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        mnist_jax.errors.InputError: out of memory on cpu, which has ... GB: use a smaller batch
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS):
            raise
        try:
            advice = advise()
        except Exception:  # the device may have no memory left to find out
            advice = "use a smaller batch_size or model"
        kind, size = jax.devices()[0].device_kind, _format(memory_limit())
        raise InputError(f"out of memory on {kind}, which has {size}: {advice}") from None


def explain_run_memory(
    training: Training, model: Any, tx: Any, state: TrainState | None
) -> contextlib.AbstractContextManager[None]:
    """Returns :func:`explain_out_of_memory` for a run with the user's own ``model``, ``tx`` or ``state``, or None."""

    def advise() -> str:
        if state is not None:
            return "use a smaller batch_size or model"
        dataset = training.dataset
        return advise_on_batch(training.config, dataset.train, dataset.num_classes, model, tx)

    return explain_out_of_memory(advise)


def memory_limit() -> int:
    """Returns the bytes that programs may use on the first device: on CPU, the memory of the machine."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit") or psutil.virtual_memory().total


def advise_on_batch(
    config: TrainConfig, train: Split | StreamedSplit, num_classes: int, model: Any = None, tx: Any = None
) -> str:
    """Returns advice for a run that does not fit: the microbatch size, halved until the compiled epoch fits.

    Args:
        config: the run.
        train: its training split.
        num_classes: K.
        model: the user's own model, or None.
        tx: the user's own optimizer, or None.
    """

    def create(microbatch_size: int) -> TrainState:
        smaller = dataclasses.replace(config, microbatch_size=microbatch_size)
        state: TrainState = jax.eval_shape(lambda: build_state(smaller, model=model, tx=tx, num_classes=num_classes))
        return state

    split = train
    if not isinstance(train, StreamedSplit):
        split = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), train)
    sampling = None if config.dp_clip is None else PoissonOrder(config.batch_size)
    limit, original = memory_limit(), config.microbatch_size or config.batch_size
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(create(original)))
    if state_bytes > limit:
        return f"parameters and optimizer state need {_format(state_bytes)}; use a smaller model"
    size = original
    while True:
        needed = create_epochs(create(size), split, config.batch_size, sampling=sampling).num_bytes()
        if needed < limit:
            break
        if size == 1:
            return f"an epoch needs {_format(needed)} even with microbatch_size 1; use a smaller model"
        size //= 2
    if size == original:
        return f"an epoch needs {_format(needed)}; another program may be using the device"
    return f"use microbatch_size {size}, for which an epoch needs {_format(needed)}, or a smaller batch_size"


def _format(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
