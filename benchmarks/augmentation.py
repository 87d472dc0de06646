"""How much time does augmentation add to a training step?

``ratio`` is the time of a step with augmentation divided by the time without; the steps take turns.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.setting import Row, Setting, check
from benchmarks.timing import Call, measure_in_turns
from mnist_jax import TrainConfig, build_state, train_epoch

CONFIGS = [TrainConfig(model="cnn", batch_size=256, ema_decay=None), TrainConfig(batch_size=256, ema_decay=None)]
AFFINE = {"augment_shift": 2, "augment_rotation": 10, "augment_scale": 0.1, "augment_shear": 0.1}
DISTORTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "shift": {"augment_shift": 2},
    "affine": AFFINE,
    "elastic": {"augment_elastic": 1},
    "affine, elastic, erasing": AFFINE | {"augment_elastic": 1, "augment_erasing": 0.2},
}


def run(setting: Setting) -> Iterator[Row]:
    """Yields a row for each model and distortion."""
    for config in CONFIGS[1 if setting.quick else 0 :]:  # the MLP compiles faster
        yield from _rows(setting, config)


def _rows(setting: Setting, config: TrainConfig) -> Iterator[Row]:
    num_steps = 5 if setting.quick else 60
    split = setting.examples(num_steps * config.batch_size)
    distortions = list(DISTORTIONS.items())[:: 4 if setting.quick else 1]  # none and all
    states = {name: build_state(dataclasses.replace(config, **fields)) for name, fields in distortions}
    calls: dict[str, Call] = {
        name: lambda state=state: train_epoch(state, split, config.batch_size)  # type: ignore[misc]
        for name, state in states.items()
    }
    for call in calls.values():
        state, metrics = call()
        check(state, num_steps, metrics.loss)
    seconds = measure_in_turns(calls, 3 if setting.quick else 9)
    plain = statistics.median(seconds["none"])
    for name, values in seconds.items():
        steps = [total / num_steps for total in values]
        row = setting.row("augmented step", steps, config, examples=config.batch_size, train=True, driver=name)
        yield row | {"ratio": statistics.median(values) / plain}
