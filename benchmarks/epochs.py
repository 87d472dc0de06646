"""How long does an epoch of 55,000 examples take as one program?"""

from __future__ import annotations

from collections.abc import Iterator

import jax

from benchmarks.setting import Row, Setting, check, expected_steps
from benchmarks.timing import measure_in_turns
from mnist_jax import TrainConfig, build_state, train_epoch

CONFIGS = [
    TrainConfig(model="mlp", hidden_sizes=(128,), batch_size=32, ema_decay=None),
    TrainConfig(model="mlp", hidden_sizes=(512, 256), batch_size=128, ema_decay=None),
    TrainConfig(model="mlp", hidden_sizes=(512, 256), batch_size=128),
    TrainConfig(model="cnn", batch_size=128, ema_decay=None),
    TrainConfig(model="cnn", batch_size=256, ema_decay=None),
    TrainConfig(model="mlp", hidden_sizes=(512, 256), batch_size=128, ema_decay=None, record=True),
    TrainConfig(model="cnn", batch_size=128, ema_decay=None, record=True),
]


def run(setting: Setting) -> Iterator[Row]:
    """Yields a row for each config; the third is the second with an EMA of the parameters.

    The last two are the second and the fourth, and record the values of each example.
    """
    num_examples = 2_560 if setting.quick else 55_000
    split = setting.examples(num_examples)
    configs = CONFIGS[:4:3] if setting.quick else CONFIGS  # an MLP and a CNN
    states = [build_state(config) for config in configs]
    calls = {
        str(index): lambda state=state, config=config: train_epoch(
            state, split, config.batch_size, record=config.record
        )
        for index, (state, config) in enumerate(zip(states, configs, strict=True))
    }
    for index, config in enumerate(configs):
        state, metrics = jax.block_until_ready(calls[str(index)]())
        check(state, expected_steps(num_examples, config.batch_size), metrics.loss)
    for name, seconds in measure_in_turns(calls, setting.repeats).items():
        config = configs[int(name)]
        averaged = config.ema_decay is not None
        fields = {"averaged": averaged, **({"recorded": True} if config.record else {})}
        yield setting.row("epoch", seconds, config, examples=num_examples, train=True, **fields)
