"""How long does a command take the first time, when it compiles, and the second time, when it finds its programs?

Each timing is a whole process, from pressing Enter to exit. ``first`` begins with an empty cache directory: it also
decodes the data, and Matplotlib lists the fonts. ``second`` follows it, and finds what the first has kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from benchmarks.commands import run_python, run_training
from benchmarks.setting import Row, Setting, spread

_PHASES = ("import", "data", "compile", "train", "evaluate")


def run(setting: Setting) -> Iterator[Row]:
    """Yields a row for each command, for the first and the second time, with the phases of a training."""
    repeats = 1 if setting.quick else 7
    commands = {"--help": ["-m", "mnist_jax.train", "--help"], "import all": ["-c", "from mnist_jax import *"]}
    for name, arguments in commands.items():
        yield {"name": name} | spread([run_python(arguments)[1] for _ in range(repeats)])

    works = {"predict a picture": ["-m", "mnist_jax.predict", "tests/images/seven.jpg"]}
    for model in setting.models:
        works[f"train, one epoch of the {model}"] = ["-m", "mnist_jax.train", "--model", model, "--epochs", "1"]
    if not setting.quick:
        works["train, the default"] = ["-m", "mnist_jax.train"]
    for name, command in works.items():
        runs: dict[str, list[Row]] = {"first": [], "second": []}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as cache:
                for found in runs.values():
                    found.append(_run(command, setting.data, XDG_CACHE_HOME=cache))
        for which, found in runs.items():
            row: Row = {"name": f"{name}, {which} time"} | spread([each["process_seconds"] for each in found])
            if "seconds" in found[0]:
                phases = {phase: spread([each["seconds"][phase] for each in found])["seconds"] for phase in _PHASES}
                row["phases"] = phases
            yield row


def _run(command: list[str], data: str | None, **environment: str) -> Row:
    """Runs a command, and returns the wall time of its process, for a training with its summary."""
    if "mnist_jax.train" in command:
        return run_training(command, data, **environment)
    return {"process_seconds": run_python(command, **environment)[1]}
