"""Times commands as whole processes, from an empty shell prompt to their end."""

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
    """Runs ``python ARGUMENTS`` in the directory of the project.

    Returns:
        What it wrote to stdout, and its wall seconds.

    Raises:
        RuntimeError: it failed; says what it wrote to stderr.
    """
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=_ROOT, env=os.environ | environment
    )
    elapsed = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout, elapsed


def run_training(command: Sequence[str], data: str | None = None, **environment: str) -> dict[str, Any]:
    """Runs a command that trains and takes the flags of ``mnist_jax.train``.

    Args:
        command: what follows ``python``: ``["-m", "mnist_jax.train", "--epochs", "1"]``.
        data: the flag ``--data``; None leaves it out.
        **environment: variables to add.

    Returns:
        The run's ``summary.json``, with ``process_seconds`` for the whole process.
    """
    with tempfile.TemporaryDirectory() as directory:
        workdir = Path(directory) / "run"
        flags = ["--quiet", "--workdir", str(workdir), *([] if data is None else ["--data", data])]
        _, elapsed = run_python([*command, *flags], **environment)
        return {**json.loads((workdir / "summary.json").read_text()), "process_seconds": elapsed}
