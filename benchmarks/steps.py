"""How long does a step take, by model, batch size, dtype and driver?

``dispatched``: a call from Python per step, with the batch on the device. ``scanned``: ``train_epoch``, where a step
includes its share of shuffling and gathering; for evaluation ``evaluate_dataset``, which also returns the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.setting import Row, Setting, check
from benchmarks.timing import measure
from mnist_jax import TrainConfig, build_state, eval_step, evaluate_dataset, train_epoch, train_step


def run(setting: Setting) -> Iterator[Row]:
    """Yields a row for each combination."""
    for model in setting.models:
        for batch_size in (128,) if setting.quick else (32, 128, 512, 2048, 8192):
            yield from _rows(setting, TrainConfig(model=model, batch_size=batch_size, ema_decay=None))
        for batch_size in () if setting.quick else (128, 2048):
            config = TrainConfig(model=model, batch_size=batch_size, ema_decay=None, dtype="bfloat16")
            yield from _rows(setting, config)


def _rows(setting: Setting, config: TrainConfig) -> Iterator[Row]:
    size = config.batch_size
    num_steps = max(2, min(200, (2_560 if setting.quick else 25_600) // size))
    split = setting.examples(num_steps * size)
    starts = range(0, num_steps * size, size)[:4]
    batches = [{"image": split.image[i : i + size], "label": split.label[i : i + size]} for i in starts]
    initial = build_state(config)

    def train_dispatched() -> Any:
        state = initial
        for index in range(num_steps):
            state, metrics = train_step(state, batches[index % len(batches)])
        return state, metrics

    def evaluate_dispatched() -> Any:
        return [eval_step(initial, batches[index % len(batches)]) for index in range(num_steps)]

    def train_scanned() -> Any:
        return train_epoch(initial, split, size)

    def evaluate_scanned() -> Any:
        return evaluate_dataset(initial, split, size)

    for train_call in (train_dispatched, train_scanned):
        state, metrics = train_call()
        check(state, num_steps, metrics.loss)
    assert sum(int(metrics.count) for metrics in evaluate_dispatched()) == num_steps * size
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
