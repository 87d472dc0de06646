"""How long do import, data and compilation of a short run take, without and with a compilation cache?

Each timing is a whole process, ``python -m mnist_jax.train --epochs 1``, with its phases. ``cold`` has no compilation
cache (with ``--quick``, it is the run that fills the cache); ``cached`` uses one that an earlier run filled,
``JAX_COMPILATION_CACHE_DIR`` in a private directory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from benchmarks.commands import run_python, run_training
from benchmarks.setting import Row, Setting, spread

_PHASES = ("import", "data", "compile", "train", "evaluate")


def run(setting: Setting) -> Iterator[Row]:
    """Yields a row for each command and cache, with the phases."""
    repeats = 1 if setting.quick else 7
    commands = {"--help": ["-m", "mnist_jax.train", "--help"], "import all": ["-c", "from mnist_jax import *"]}
    for name, arguments in commands.items():
        yield {"name": name} | spread([run_python(arguments)[1] for _ in range(repeats)])

    for model in setting.models:
        command = ["-m", "mnist_jax.train", "--model", model, "--epochs", "1"]
        with tempfile.TemporaryDirectory() as cache:
            cached = {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            filling = run_training(command, setting.data, **cached)
            runs: dict[str, list[Row]] = {"cold": [filling] if setting.quick else [], "cached": []}
            for _ in range(repeats):
                if not setting.quick:
                    runs["cold"].append(run_training(command, setting.data, JAX_ENABLE_COMPILATION_CACHE="false"))
                runs["cached"].append(run_training(command, setting.data, **cached))
        for name, summaries in runs.items():
            yield {
                "name": name,
                "model": model,
                **spread([summary["process_seconds"] for summary in summaries]),
                "phases": {
                    phase: spread([summary["seconds"][phase] for summary in summaries])["seconds"] for phase in _PHASES
                },
            }
