"""How long is a step, by model, batch size, dtype and driver?

``dispatched``: a call from Python for each step, on a batch that lies on the device. ``scanned``: ``train_epoch``,
where a step includes its share of shuffling and gathering; for evaluation ``evaluate_dataset``, which also returns the
logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

from benchmarks.setting import Row, Setting, check, new_state
from benchmarks.timing import measure
from mnist_jax import Split, TrainConfig, TrainState, eval_step, evaluate_dataset, train_epoch, train_step

Dtype = Literal["float32", "bfloat16"]
_DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


def run(setting: Setting) -> Iterator[Row]:
    """A row for each combination."""
    batch_sizes = (128,) if setting.quick else (32, 128, 512, 2048, 8192)
    for model in ("mlp", "cnn"):
        for dtype in _DTYPES[:1] if setting.quick else _DTYPES:
            for batch_size in batch_sizes:
                config = TrainConfig(model=model, batch_size=batch_size, dtype=dtype, ema_decay=None)
                yield from _rows(setting, config)


def _rows(setting: Setting, config: TrainConfig) -> Iterator[Row]:
    size = config.batch_size
    num_steps = max(2, min(200, (2560 if setting.quick else 25_600) // size))
    split = setting.examples(num_steps * size)
    batches = [
        {"image": split.image[i : i + size], "label": split.label[i : i + size]} for i in range(0, 4 * size, size)
    ]
    begin = new_state(config)

    def train_dispatched() -> Any:
        state = begin
        for index in range(num_steps):
            state, metrics = train_step(state, batches[index % len(batches)])
        return state, metrics

    def evaluate_dispatched() -> Any:
        return [eval_step(begin, batches[index % len(batches)]) for index in range(num_steps)]

    train_scanned = functools.partial(_train_scanned, begin, split, size)
    for train_call in (train_dispatched, train_scanned):
        state, metrics = train_call()
        check(state, num_steps, metrics.loss)
    evaluate_scanned = functools.partial(evaluate_dataset, begin, split, size)
    assert evaluate_scanned().num_examples == num_steps * size

    drivers: list[tuple[str, bool, Callable[[], Any]]] = [
        ("dispatched", True, train_dispatched),
        ("scanned", True, train_scanned),
        ("dispatched", False, evaluate_dispatched),
        ("scanned", False, evaluate_scanned),
    ]
    for driver, train, call in drivers:
        seconds = [total / num_steps for total in measure(call, 3 if setting.quick else 5)]
        name = "train step" if train else "eval step"
        yield setting.row(name, seconds, config, examples=size, train=train, driver=driver)


def _train_scanned(state: TrainState, split: Split, batch_size: int) -> Any:
    return jax.block_until_ready(train_epoch(state, split, batch_size))
