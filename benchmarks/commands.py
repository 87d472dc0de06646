"""Times ``python -m mnist_jax.train`` as a whole process, from an empty shell prompt to its end."""

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


def run_training(flags: Sequence[str], data: str | None = None, **environment: str) -> dict[str, Any]:
    """Trains in a process of its own.

    Args:
        flags: of ``mnist_jax.train``.
        data: the flag ``--data``; None leaves it out.
        **environment: variables to add.

    Returns:
        The run's ``summary.json``, with ``process_seconds`` for the whole process.

    Raises:
        RuntimeError: the command failed; says what it wrote.
    """
    with tempfile.TemporaryDirectory() as directory:
        workdir = Path(directory) / "run"
        command = [sys.executable, "-m", "mnist_jax.train", *flags, "--quiet", "--workdir", str(workdir)]
        command += [] if data is None else ["--data", data]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
        elapsed = time.perf_counter() - begun
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return {**json.loads((workdir / "summary.json").read_text()), "process_seconds": elapsed}
