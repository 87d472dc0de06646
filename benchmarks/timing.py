"""Measures the wall time of calls, and the peaks of this machine.

    seconds = measure(lambda: train_epoch(state, split, 128), repeats=5)     # one warm-up, then 5 calls
    seconds = measure_in_turns({"A": a, "B": b}, rounds=5)                   # A B A B ...
    peaks = measure_peaks()

A call must return its result: the clock stops when the result is ready.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Call = Callable[[], Any]


def measure(call: Call, repeats: int) -> list[float]:
    """Returns the wall seconds of ``repeats`` calls, after a warm-up call that compiles."""
    return measure_in_turns({"": call}, repeats)[""]


def measure_in_turns(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Returns the wall seconds of each call in each round, after a warm-up round: A B, A B, A B."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Holds the measured peak performance of this machine, to compare rows with.

    Attributes:
        float32_flops: FLOP/s of a float32 matrix product.
        bfloat16_flops: FLOP/s of a bfloat16 matrix product.
        bandwidth_bytes: bytes/s read and written by ``a + 2 * b``.
    """

    float32_flops: float
    bfloat16_flops: float
    bandwidth_bytes: float


def measure_peaks(quick: bool = False) -> Peaks:
    """Measures the peaks, each as the best of several runs."""
    size = (1024 if quick else 2048) if jax.default_backend() == "cpu" else 8192
    repeats = 5 if quick else 10

    def matmul_flops(dtype: Any) -> float:
        a, b = (jax.random.normal(jax.random.key(seed), (size, size), dtype) for seed in (0, 1))
        product = jax.jit(jnp.matmul)
        return 2 * size**3 / min(measure(lambda: product(a, b), repeats))

    a, b = (jnp.ones(2**24 if quick else 2**26) for _ in range(2))  # 64 or 256 MiB each
    triad = jax.jit(lambda a, b: a + 2 * b)
    return Peaks(
        float32_flops=matmul_flops(jnp.float32),
        bfloat16_flops=matmul_flops(jnp.bfloat16),
        bandwidth_bytes=3 * a.nbytes / min(measure(lambda: triad(a, b), repeats)),
    )
