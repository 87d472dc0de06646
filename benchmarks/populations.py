"""How long does an epoch of several models on 11,000 examples take, as one program and one after the other?

``ratio`` is the time relative to one program; one after the other, all models share the same compiled program.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.setting import Row, Setting, check, expected_steps
from benchmarks.timing import Call, measure_in_turns
from mnist_jax import TrainConfig, TrainState, build_state, train_epoch

CONFIGS = [
    TrainConfig(hidden_sizes=(128,), batch_size=32, ema_decay=None),
    TrainConfig(hidden_sizes=(512, 256), batch_size=128, ema_decay=None),
    TrainConfig(model="cnn", batch_size=128, ema_decay=None),
]


def run(setting: Setting) -> Iterator[Row]:
    """Yields two rows for each config and number of models."""
    for config in CONFIGS[: 1 if setting.quick else None]:
        for num_models in (2,) if setting.quick else (2, 8):
            yield from _rows(setting, config, num_models)


def _rows(setting: Setting, config: TrainConfig, num_models: int) -> Iterator[Row]:
    num_examples = 2_560 if setting.quick else 11_000
    split = setting.examples(num_examples)
    keys = jnp.stack([jax.random.key(seed) for seed in range(num_models)])
    states = jax.vmap(lambda key: build_state(config, key=key))(keys)
    members: list[TrainState] = [jax.tree.map(lambda leaf: leaf[i], states) for i in range(num_models)]  # noqa: B023
    together = jax.jit(jax.vmap(lambda state, split: train_epoch(state, split, config.batch_size), in_axes=(0, None)))
    calls: dict[str, Call] = {
        "one program": lambda: together(states, split),
        "in turn": lambda: [train_epoch(member, split, config.batch_size) for member in members],
    }
    trained, metrics = calls["one program"]()
    for index, (alone, alone_metrics) in enumerate(calls["in turn"]()):
        check(alone, expected_steps(num_examples, config.batch_size), alone_metrics.loss)
        check(jax.tree.map(lambda leaf: leaf[index], trained), int(alone.step), metrics.loss[index])  # noqa: B023
    seconds = measure_in_turns(calls, 3 if setting.quick else 5)
    medians = {driver: statistics.median(values) for driver, values in seconds.items()}
    for driver, values in seconds.items():
        row = setting.row(
            "epoch of models", values, config, num_models * num_examples, train=True, driver=driver, value=num_models
        )
        yield row | {"ratio": medians[driver] / medians["one program"]}
