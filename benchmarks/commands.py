"""Runs commands as separate processes and measures their wall time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent


def run_python(arguments: Sequence[str], **environment: str) -> tuple[str, float]:
    """Runs ``python ARGUMENTS`` in the root of the project.

    Returns:
        Its stdout and its wall seconds.

    Raises:
        RuntimeError: the process failed; the message holds its stderr.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=_ROOT, env=os.environ | environment
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
        return {**json.loads((workdir / "summary.json").read_text()), "process_seconds": elapsed}
