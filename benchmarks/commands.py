"""Runs commands as separate processes: to the end, for their wall time, or as workers that answer line by line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_ANSWER_S = 600  # a worker that takes longer is killed


def run_python(arguments: Sequence[str], **environment: str) -> tuple[str, float]:
    """Runs ``python ARGUMENTS`` in the root of the project.

    Returns:
        Its stdout and its wall seconds.

    Raises:
        RuntimeError: the process failed; the message holds its stderr.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=_ROOT, env=inherited | environment
    )
    elapsed = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout, elapsed


def run_training(command: Sequence[str], data: str | None = None, **environment: str) -> dict[str, Any]:
    """Runs a training command that accepts the flags of ``mnist_jax.train``.

    Args:
        command: the arguments of ``python``, such as ``["-m", "mnist_jax.train", "--epochs", "1"]``.
        data: the flag ``--data``; None leaves it out.
        **environment: environment variables to add.

    Returns:
        The content of ``summary.json``, with the wall time of the process as ``process_seconds``.
    """
    with tempfile.TemporaryDirectory() as directory:
        workdir = Path(directory) / "run"
        flags = ["--quiet", "--workdir", str(workdir), *([] if data is None else ["--data", data])]
        _, elapsed = run_python([*command, *flags], **environment)
        (summary,) = workdir.rglob("summary.json")  # an experiment writes into seed-N
        return {**json.loads(summary.read_text()), "process_seconds": elapsed}


class Worker:
    """Runs ``python ARGUMENTS`` in the root of the project: a process that answers lines on stdin with lines of JSON.

    Args:
        arguments: the arguments of ``python``.
        environment: all environment variables; None for those of this process.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=_ROOT,
            env=environment,
        )

    def send(self, command: str) -> None:
        """Sends a line; :meth:`read` reports a process that has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Waits for a line and returns its content.

        Raises:
            RuntimeError: the process ended, or was killed because it took too long; the message ends with its stderr.
        """
        assert self._process.stdout is not None
        timer = threading.Timer(_ANSWER_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"exit status {status}: {' '.join(self._errors.read().split())[-200:]}")
        return json.loads(line)

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        self._process.send_signal(number)

    def close(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
