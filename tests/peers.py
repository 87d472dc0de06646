"""Several processes that train one run together, on the loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

# Arguments: what process ``who`` does in mid-epoch, when it has taken ``step`` steps; the config as JSON.
_PROGRAM = """
import os, signal, sys
from mnist_jax.cli.flags import run_command
from mnist_jax.training import processes

event, who, step, config = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


def command():
    processes.connect()
    from mnist_jax import Callback, TrainConfig, fit
    from mnist_jax.training import epochs

    epochs._CHUNK_S = 0.05  # so that there are several chunks in an epoch

    class Event(Callback):
        def on_chunk(self, training):
            if processes.index() == who and training.step >= step and training.step % training.steps_per_epoch:
                if event.startswith("SIG"):
                    os.kill(os.getpid(), getattr(signal, event))
                elif event == "raise":
                    raise RuntimeError("a fault of one process")

        def on_epoch_end(self, training):
            if event == "stop" and processes.index() == who:
                training.stop("one process wants it")

    run = fit(TrainConfig.from_json(config), callbacks=[Event()])
    print(run.summary["epochs"], run.summary["device"]["count"])


sys.exit(run_command(command))
"""


class Result(NamedTuple):
    """How a process ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float


def run_together(
    commands: list[list[str]], environment: Mapping[str, str] | None = None, seconds: float = 120
) -> list[Result]:
    """Runs a command in each process, and returns how they ended; after ``seconds`` they are killed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    variables = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    variables |= {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(len(commands)),
        "XLA_FLAGS": variables["XLA_FLAGS"].replace("device_count=2", "device_count=1"),
        **(environment or {}),
    }
    start, running, results = time.monotonic(), [], []
    for number, command in enumerate(commands):
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**variables, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
    try:
        for process in running:
            try:
                output, errors = process.communicate(timeout=max(1, start + seconds - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                output, errors = process.communicate()
            results.append(Result(process.returncode, output, errors, time.monotonic() - start))
    finally:
        for process in running:
            process.kill()
    return results


def train_together(
    config_json: str, num_processes: int, event: str = "none", who: int = 0, step: int = 0, **options: object
) -> list[Result]:
    """Trains a config with ``num_processes`` processes; see ``_PROGRAM`` for what one of them does meanwhile."""
    command = ["-c", _PROGRAM, event, str(who), str(step), config_json]
    return run_together([command] * num_processes, **options)
