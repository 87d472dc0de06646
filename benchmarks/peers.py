"""How long is an epoch here, and how long elsewhere?

The same model, number of parameters, batch size, optimizer, number of steps and training examples for every
contestant, in turns, an epoch each: A B C, A B C. The first epoch of each, which compiles, is kept apart. Each must
end with the right number of steps and a finite loss, and with a test accuracy like that of mnist_jax.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.setting import Row, Setting, SkippedError, spread
from mnist_jax import TrainConfig

_TOLERANCE = 0.0075


@dataclasses.dataclass(frozen=True)
class Work:
    """What the contestants have to do.

    Attributes:
        config: model, batch size and so on.
        contestants: who takes part.
        rounds: epochs to time.
        num_examples: training examples of an epoch, at most.
    """

    config: TrainConfig
    contestants: tuple[str, ...]
    rounds: int
    num_examples: int = 55_000


_ALL_MODELS = ("mnist_jax", "PyTorch eager", "PyTorch compile", "Keras on TensorFlow", "Keras on JAX", "Flax loop")
_CNN = TrainConfig(model="cnn", batch_size=256, ema_decay=None)
WORKS = {
    "MLP 128": Work(TrainConfig(hidden_sizes=(128,), batch_size=32, ema_decay=None), _ALL_MODELS, 6),
    "MLP 512-256": Work(TrainConfig(hidden_sizes=(512, 256), ema_decay=None), _ALL_MODELS, 6),
    "CNN 24-32-256": Work(_CNN, (*_ALL_MODELS, "PyTorch channels_last", "PyTorch channels_last, compile"), 4),
    # A ninth of the examples, as an epoch of lax.conv takes more than a minute.
    "CNN 24-32-256, 6,144 examples": Work(_CNN, ("mnist_jax", "lax.conv in a scan"), 5, 6_144),
}


class _Worker:
    """A contestant in a process of its own."""

    def __init__(self, name: str, config: TrainConfig, num_examples: int) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestants", name, config.to_json(), str(num_examples)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.seconds: list[float] = []
        self.begin = self._read()

    def stop(self) -> None:
        """Until the next turn: idle threads of some libraries go on spinning."""
        self._process.send_signal(signal.SIGSTOP)

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
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"exit status {status}: {self._errors.read().strip()[-200:]}")
        return json.loads(line)


def run(setting: Setting) -> Iterator[Row]:
    """A row for each contestant and work."""
    if jax.default_backend() != "cpu":
        raise SkippedError(f"the contestants are compared on CPU, this is {jax.default_backend()}")
    for name, work in WORKS.items():
        if not setting.quick:
            yield from _compare(setting, name, work)
        elif name not in ("MLP 512-256", "CNN 24-32-256"):
            slow_to_start = ("PyTorch compile", "Keras on JAX")
            few = tuple(contestant for contestant in work.contestants if contestant not in slow_to_start)
            yield from _compare(setting, name, dataclasses.replace(work, contestants=few, rounds=1, num_examples=640))


def _compare(setting: Setting, name: str, work: Work) -> Iterator[Row]:
    config = dataclasses.replace(work.config, data=setting.data)
    num_examples = min(work.num_examples, setting.dataset.train.num_examples)
    workers: dict[str, _Worker] = {}
    for contestant in work.contestants:
        worker = _Worker(contestant, config, num_examples)
        if "skipped" in worker.begin:
            yield {"name": name, "contestant": contestant, "skipped": worker.begin["skipped"]}
        else:
            workers[contestant] = worker
            worker.stop()
    for _ in range(work.rounds + 1):
        for contestant, worker in list(workers.items()):
            try:
                worker.run_epoch()
            except RuntimeError as error:  # such as a C++ compiler that PyTorch does not find
                if contestant == "mnist_jax":
                    raise
                yield {"name": name, "contestant": contestant, "skipped": str(error)}
                del workers[contestant]
            else:
                worker.stop()

    num_steps = (work.rounds + 1) * -(-num_examples // config.batch_size)
    ends = {contestant: worker.finish() for contestant, worker in workers.items()}
    ours = workers["mnist_jax"]
    for contestant, worker in workers.items():
        end = ends[contestant]
        assert end["num_steps"] == num_steps, f"{contestant}: {end['num_steps']} steps instead of {num_steps}"
        assert worker.begin["num_parameters"] == ours.begin["num_parameters"], f"{contestant}: {worker.begin}"
        apart = abs(end["test_accuracy"] - ends["mnist_jax"]["test_accuracy"])
        assert num_examples < 55_000 or apart <= _TOLERANCE, f"{contestant}: test accuracies {ends}"
        first, *seconds = worker.seconds
        yield setting.row(name, seconds, config, num_examples, train=True, contestant=contestant) | {
            "first_epoch_seconds": first,
            "ratio": spread(seconds)["seconds"] / spread(ours.seconds[1:])["seconds"],
            "test_accuracy": end["test_accuracy"],
            "num_parameters": worker.begin["num_parameters"],
        }
