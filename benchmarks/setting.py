"""What every question is asked with: the data, the peaks, quick or thorough. And how an answer is written down.

def run(setting: Setting) -> Iterator[Row]:
    seconds = measure(call, setting.repeats)
    yield setting.row("an epoch", seconds, config, examples=55_000, train=True)
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.flops import flops_per_example
from benchmarks.timing import Peaks
from mnist_jax import Dataset, Split, TrainConfig, TrainState

Row = dict[str, Any]


class SkippedError(Exception):
    """A question that this machine cannot answer; says why."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a question is asked with.

    Attributes:
        data: the flag ``--data``, for commands that are run as a whole.
        dataset: the data set.
        peaks: of this machine, measured in this run.
        quick: only enough to see that it works.
    """

    data: str | None
    dataset: Dataset
    peaks: Peaks
    quick: bool

    @property
    def repeats(self) -> int:
        """How often to time a call."""
        return 3 if self.quick else 10

    def examples(self, num_examples: int) -> Split:
        """So many training examples, on the device; they repeat where the data set has fewer."""
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
        """A row of the results: ``seconds`` for ``examples`` examples, and what that is of the peak of the devices."""
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


def spread(seconds: Sequence[float]) -> Row:
    """Median, range and number of timings."""
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "n": len(seconds),
    }


def check(state: TrainState, num_steps: int, loss: Any) -> None:
    """Proves that the work was done: so many steps, and a loss that is a number."""
    assert int(state.step) == num_steps, f"{int(state.step)} steps instead of {num_steps}"
    assert np.isfinite(float(loss)), f"the loss is {float(loss)}"
