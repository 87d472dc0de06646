"""Defines ``Setting``, which gives a suite its data, peaks and flags, and the rows that a suite yields.

def run(setting: Setting) -> Iterator[Row]:
    seconds = measure(call, setting.repeats)
    yield setting.row("an epoch", seconds, config, examples=55_000, train=True)
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.flops import flops_per_example
from benchmarks.timing import Peaks
from mnist_jax import Dataset, Split, TrainConfig, TrainState

Row = dict[str, Any]


class SkippedError(Exception):
    """Raised when this machine cannot run a suite; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Holds the data, the peaks and the flags for a suite.

    Attributes:
        data: the flag ``--data``, for commands in their own process.
        dataset: the data set.
        peaks: peaks of this machine, measured at the start.
        quick: whether to run small workloads only.
    """

    data: str | None
    dataset: Dataset
    peaks: Peaks
    quick: bool

    @property
    def models(self) -> tuple[Literal["mlp", "cnn"], ...]:
        """Models to measure; for small workloads only the MLP, which compiles faster."""
        return ("mlp",) if self.quick else ("mlp", "cnn")

    @property
    def repeats(self) -> int:
        """Number of times to time a call."""
        return 3 if self.quick else 10

    def examples(self, num_examples: int) -> Split:
        """Returns ``num_examples`` training examples on the device, repeated if the data set has fewer."""
        index = np.arange(num_examples) % self.dataset.train.num_examples
        return jax.device_put(Split(self.dataset.train.image[index], self.dataset.train.label[index]))

    def row(
        self,
        name: str,
        seconds: Sequence[float],
        config: TrainConfig,
        examples: int,
        train: bool,
        num_devices: int = 1,
        **fields: Any,
    ) -> Row:
        """Returns a row of the results: timings, examples per second and fraction of the peak of the devices."""
        flops = flops_per_example(config, train) * examples
        median = statistics.median(seconds)
        peak = getattr(self.peaks, f"{config.dtype}_flops")
        return {
            "name": name,
            "model": config.model,
            "layers": list(config.hidden_sizes if config.model == "mlp" else (*config.channels, config.dense_size)),
            "batch_size": config.batch_size,
            "dtype": config.dtype,
            "train": train,
            **fields,
            **spread(seconds),
            "examples": examples,
            "examples_per_second": examples / median,
            "flops": flops,
            "peak_fraction": flops / median / (peak * num_devices),
        }


def expected_steps(num_examples: int, batch_size: int) -> int:
    """Returns ``ceil(num_examples / batch_size)``, independent of the library that is checked."""
    return -(-num_examples // batch_size)


def spread(seconds: Sequence[float]) -> Row:
    """Returns median, range and number of timings."""
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "n": len(seconds),
    }


def check(state: TrainState, num_steps: int, loss: Any) -> None:
    """Asserts that the work was done: the number of steps, and a finite loss."""
    assert int(state.step) == num_steps, f"{int(state.step)} steps instead of {num_steps}"
    assert np.isfinite(float(loss)), f"the loss is {float(loss)}"
