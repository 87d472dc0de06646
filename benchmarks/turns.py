"""Trains a config with ``fit``, an epoch for each line on stdin, and answers each with a line of JSON on stdout.

    python -m benchmarks.turns '{"model": "mlp", ...}'     # first {}, then {"seconds": 0.5, "step": 430, "loss": 0.3}

``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` make it one of the processes of a run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import Any, TextIO

from mnist_jax import Callback, Split, TrainConfig, Training, fit, load_dataset
from mnist_jax.cli.flags import run_command

_NUM_VALIDATION = 100  # examples; the epoch alone is timed, so that the evaluation between turns may be short


class _Turns(Callback):
    def __init__(self, answers: TextIO) -> None:
        self._answers, self._start, self._end = answers, 0.0, 0.0

    def _answer(self, **fields: Any) -> None:
        print(json.dumps(fields), file=self._answers, flush=True)

    def on_begin(self, training: Training) -> None:
        self._answer()

    def on_epoch_begin(self, training: Training) -> None:
        if not sys.stdin.readline():
            os._exit(0)  # without waiting for the other processes
        self._start = time.perf_counter()

    def on_chunk(self, training: Training) -> None:
        self._end = time.perf_counter()

    def on_epoch_end(self, training: Training) -> None:
        seconds = self._end - self._start
        self._answer(seconds=seconds, step=training.step, loss=training.history[-1]["train_loss"])


def main() -> int:
    """Serves the parent process until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # gloo's reports must not mix with the answers

    def command() -> None:
        if "JAX_NUM_PROCESSES" in os.environ:
            import jax

            process_id, num_processes = (int(os.environ[f"JAX_{name}"]) for name in ("PROCESS_ID", "NUM_PROCESSES"))
            jax.distributed.initialize(num_processes=num_processes, process_id=process_id)
        config = TrainConfig.from_json(sys.argv[1])
        dataset = load_dataset(config.data, num_validation=config.num_validation, stream=config.stream)
        few = Split(dataset.validation.image[:_NUM_VALIDATION], dataset.validation.label[:_NUM_VALIDATION])
        fit(config, dataset=dataclasses.replace(dataset, validation=few), callbacks=[_Turns(answers)])

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
