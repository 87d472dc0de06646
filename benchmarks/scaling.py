"""How does the time per example scale with the number of examples, batch size, width and number of devices?

Each of the first three series ends with the exponent of a power law fitted to the time of an epoch. If the time per
example is constant, the exponent is 1 for the number of examples and 0 for the batch size. The series by width is
fitted against the number of parameters. ``parallel.py`` yields the rows of devices and processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from benchmarks import parallel
from benchmarks.setting import Row, Setting, check, expected_steps
from benchmarks.timing import measure_in_turns
from mnist_jax import TrainConfig, build_state, count_parameters, train_epoch

_CONFIG = TrainConfig(hidden_sizes=(128,), batch_size=128, ema_decay=None)


def run(setting: Setting) -> Iterator[Row]:
    """Yields the rows of the three series, and those of devices and processes."""
    few = setting.quick
    sizes = (1_280, 2_560) if few else (6_000, 19_000, 60_000, 190_000, 600_000)
    yield from _series(setting, "examples", [(size, _CONFIG, size) for size in sizes])
    batch_sizes = (32, 128) if few else (32, 64, 128, 256, 512, 1024, 2048)
    num_examples = 2_560 if few else 61_440
    series = [(size, dataclasses.replace(_CONFIG, batch_size=size), num_examples) for size in batch_sizes]
    yield from _series(setting, "batch_size", series)
    widths = (64, 128) if few else (64, 128, 256, 512, 1024, 2048)
    series = [(width, dataclasses.replace(_CONFIG, hidden_sizes=(width,)), num_examples) for width in widths]
    yield from _series(setting, "width", series)
    yield from parallel.run(setting)


def _series(setting: Setting, name: str, series: list[tuple[int, TrainConfig, int]]) -> Iterator[Row]:
    calls, states = {}, {}
    for value, config, num_examples in series:
        split, states[value] = setting.examples(num_examples), build_state(config)
        calls[str(value)] = lambda state=states[value], split=split, size=config.batch_size: train_epoch(
            state, split, size
        )
        state, metrics = calls[str(value)]()
        check(state, expected_steps(num_examples, config.batch_size), metrics.loss)
    timings = measure_in_turns(calls, setting.repeats)
    for value, config, num_examples in series:
        row = setting.row(f"by {name}", timings[str(value)], config, num_examples, train=True, value=value)
        yield row | {"seconds_per_example": row["seconds"] / num_examples}
    sizes = [count_parameters(states[value].params) if name == "width" else value for value, _, _ in series]
    medians = [np.median(timings[str(value)]) for value, _, _ in series]
    yield {"name": f"by {name}: exponent", "exponent": float(np.polyfit(np.log(sizes), np.log(medians), 1)[0])}
