"""How long is an epoch here, and how long elsewhere?

The same model, number of parameters, batch size, optimizer, number of steps and training examples for every
contestant, in turns, an epoch each: A B C, A B C. The first epoch of each, which compiles, is timed apart. Each must
end with the right number of steps and a finite loss, and with a test accuracy like that of mnist_jax.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.contestants import CONTESTANTS
from benchmarks.setting import Row, Setting, spread
from mnist_jax import TrainConfig

# Threads of some libraries go on spinning for 200 ms after their work.
_PAUSE_S = 0.3
_TOLERANCE = 0.0075

WORKS = {
    "MLP 128": TrainConfig(model="mlp", hidden_sizes=(128,), batch_size=32, ema_decay=None),
    "MLP 512-256": TrainConfig(model="mlp", hidden_sizes=(512, 256), batch_size=128, ema_decay=None),
    "CNN 24-32-256": TrainConfig(model="cnn", batch_size=256, ema_decay=None),
}


class _Worker:
    """A contestant in a process of its own."""

    def __init__(self, name: str, config: TrainConfig) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestants", name, config.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seconds: list[float] = []
        self.begin = self._read()

    def run_epoch(self) -> None:
        answer = self._ask("epoch")
        assert math.isfinite(answer["loss"]), f"loss {answer['loss']}"
        self.seconds.append(answer["seconds"])

    def finish(self) -> dict[str, Any]:
        answer = self._ask("finish")
        self._process.communicate()
        return answer

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._process.communicate()[1].strip()[-2000:])
        return json.loads(line)


def run(setting: Setting) -> Iterator[Row]:
    """A row for each contestant and work."""
    works = list(WORKS.items())[: 1 if setting.quick else None]
    for work, config in works:
        rounds = 1 if setting.quick else 3 if config.model == "cnn" else 6
        yield from _compare(setting, work, dataclasses.replace(config, data=setting.data), rounds)


def _compare(setting: Setting, work: str, config: TrainConfig, rounds: int) -> Iterator[Row]:
    names = [name for name in CONTESTANTS if config.model == "cnn" or not name.endswith(("channels_last", "scan"))]
    if setting.quick:  # these take half a minute to start
        names = [name for name in names if name not in ("PyTorch compile", "Keras on JAX")]
    workers = {}
    for name in names:
        worker = _Worker(name, config)
        if "skipped" in worker.begin:
            yield {"name": work, "contestant": name, "skipped": worker.begin["skipped"]}
        else:
            workers[name] = worker
    for _ in range(rounds + 1):
        for name, worker in list(workers.items()):
            try:
                worker.run_epoch()
            except RuntimeError as error:
                yield {"name": work, "contestant": name, "skipped": str(error).splitlines()[-1][:200]}
                del workers[name]
            time.sleep(_PAUSE_S)

    num_examples = setting.dataset.train.num_examples
    num_steps = (rounds + 1) * -(-num_examples // config.batch_size)
    ours = workers["mnist_jax"]
    accuracy = None
    for name, worker in workers.items():
        end = worker.finish()
        accuracy = end["test_accuracy"] if accuracy is None else accuracy
        assert end["num_steps"] == num_steps, f"{name}: {end['num_steps']} steps instead of {num_steps}"
        assert worker.begin["num_parameters"] == ours.begin["num_parameters"], f"{name}: {worker.begin}"
        tolerance = 0.1 if setting.quick else _TOLERANCE
        assert abs(end["test_accuracy"] - accuracy) <= tolerance, f"{name}: {end['test_accuracy']}, not {accuracy}"
        first, *seconds = worker.seconds
        ratio = spread(seconds)["seconds"] / spread(ours.seconds[1:])["seconds"]
        yield setting.row(
            work, seconds, config, num_examples, train=True, contestant=name, first_epoch_seconds=first
        ) | {
            "ratio": ratio,
            "test_accuracy": end["test_accuracy"],
            "num_parameters": worker.begin["num_parameters"],
        }
