"""How long does an epoch take in mnist_jax and in other libraries?

Every contestant has the same model, number of parameters, batch size, optimizer, number of steps and training examples.
They take turns, an epoch each: A B C, A B C. The first epoch, which compiles, is recorded separately. Each must end
with the right number of steps, a finite loss and, after full epochs, a test accuracy close to mnist_jax's.
"""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.commands import Worker
from benchmarks.setting import Row, Setting, SkippedError, expected_steps, spread
from mnist_jax import TrainConfig

_TOLERANCE = 0.0075  # largest difference between test accuracies


@dataclasses.dataclass(frozen=True)
class Workload:
    """Describes a workload for the contestants.

    Attributes:
        config: model, batch size and optimizer.
        contestants: names of the contestants.
        rounds: number of epochs to time.
        num_examples: maximum number of training examples per epoch.
    """

    config: TrainConfig
    contestants: tuple[str, ...]
    rounds: int
    num_examples: int = 55_000


_ALL_MODELS = ("mnist_jax", "PyTorch eager", "PyTorch compile", "Keras on TensorFlow", "Keras on JAX", "Flax loop")
_CNN = TrainConfig(model="cnn", batch_size=256, ema_decay=None)
WORKLOADS = {
    "MLP 128": Workload(TrainConfig(hidden_sizes=(128,), batch_size=32, ema_decay=None), _ALL_MODELS, 6),
    "MLP 512-256": Workload(TrainConfig(hidden_sizes=(512, 256), ema_decay=None), _ALL_MODELS, 6),
    "CNN 24-32-256": Workload(_CNN, (*_ALL_MODELS, "PyTorch channels_last", "PyTorch channels_last, compile"), 4),
    # Fewer examples, because a full epoch with lax.conv takes more than a minute.
    "CNN 24-32-256, 6,144 examples": Workload(_CNN, ("mnist_jax", "lax.conv in a scan"), 5, 6_144),
}
_QUICK = Workload(  # without the contestants that are slow to start
    _CNN, ("mnist_jax", "PyTorch eager", "Keras on TensorFlow", "Flax loop", "lax.conv in a scan"), 1, 512
)


class _Worker(Worker):
    """Runs a contestant in its own process."""

    def __init__(self, name: str, config: TrainConfig, num_examples: int) -> None:
        super().__init__(["-m", "benchmarks.contestants", name, config.to_json(), str(num_examples)])
        self.seconds: list[float] = []
        self.ready = self.read()

    def pause(self) -> None:
        """Stops the process until its next turn, because idle threads of some libraries keep spinning."""
        self.signal(signal.SIGSTOP)

    def run_epoch(self) -> None:
        answer = self._ask("epoch")
        assert math.isfinite(answer["loss"]), f"loss {answer['loss']}"
        self.seconds.append(answer["seconds"])

    def finish(self) -> dict[str, Any]:
        answer = self._ask("finish")
        self.close()
        return answer

    def _ask(self, command: str) -> dict[str, Any]:
        self.signal(signal.SIGCONT)
        self.send(command)
        return self.read()


def run(setting: Setting) -> Iterator[Row]:
    """Yields a row for each workload and contestant."""
    if jax.default_backend() != "cpu":
        raise SkippedError(f"the contestants are compared on CPU only, got {jax.default_backend()}")
    for name, workload in ({"CNN 24-32-256, 512 examples": _QUICK} if setting.quick else WORKLOADS).items():
        yield from _compare(setting, name, workload)


def _compare(setting: Setting, name: str, workload: Workload) -> Iterator[Row]:
    config = dataclasses.replace(workload.config, data=setting.data)
    num_examples = min(workload.num_examples, setting.dataset.train.num_examples)
    workers: dict[str, _Worker] = {}
    for contestant in workload.contestants:
        worker = _Worker(contestant, config, num_examples)
        if "skipped" in worker.ready:
            yield {"name": name, "contestant": contestant, "skipped": worker.ready["skipped"]}
        else:
            workers[contestant] = worker
            worker.pause()
    for _ in range(workload.rounds + 1):
        for contestant, worker in list(workers.items()):
            try:
                worker.run_epoch()
            except RuntimeError as error:  # such as a missing C++ compiler for PyTorch
                if contestant == "mnist_jax":
                    raise
                yield {"name": name, "contestant": contestant, "skipped": str(error)}
                del workers[contestant]
            else:
                worker.pause()

    num_steps = (workload.rounds + 1) * expected_steps(num_examples, config.batch_size)
    ends = {contestant: worker.finish() for contestant, worker in workers.items()}
    ours = workers["mnist_jax"]
    for contestant, worker in workers.items():
        end = ends[contestant]
        assert end["num_steps"] == num_steps, f"{contestant}: {end['num_steps']} steps instead of {num_steps}"
        assert worker.ready["num_parameters"] == ours.ready["num_parameters"], f"{contestant}: {worker.ready}"
        difference = abs(end["test_accuracy"] - ends["mnist_jax"]["test_accuracy"])
        assert num_examples < 55_000 or difference <= _TOLERANCE, f"{contestant}: test accuracies {ends}"
        first, *seconds = worker.seconds
        yield setting.row(name, seconds, config, num_examples, train=True, contestant=contestant) | {
            "first_epoch_seconds": first,
            "ratio": spread(seconds)["seconds"] / spread(ours.seconds[1:])["seconds"],
            "test_accuracy": end["test_accuracy"],
            "num_parameters": worker.ready["num_parameters"],
        }
