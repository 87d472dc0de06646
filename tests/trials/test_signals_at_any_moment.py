"""Signals at any moment of a training process: it ends at once with 130 or 143 and one line, and can be resumed.

Moments are fractions of the time that an uninterrupted run takes; a third of the processes get a second signal within
milliseconds, of the same kind or the other.
"""

import dataclasses
import json
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import assert_trees_equal

from mnist_jax import TrainConfig, fit, load_run

CONFIG = TrainConfig(data="digits", hidden_sizes=(8,), epochs=8, quiet=True)
COMMAND = [sys.executable, "-m", "mnist_jax.train", "--data", "digits", "--hidden-sizes", "8", "--epochs", "8"]
NUM_TRIALS = 60
EPOCH = r"epoch .*/8  loss .* examples/s(  \d+ s left)?"
MODEL = ["layer    output  parameters", "Dense_0       8       6,280", "Dense_1      10          90"]
MODEL += ["total                 6,370", ""]


class Ended(NamedTuple):
    """A process after its signals; ``seconds`` after the last one."""

    workdir: Path
    numbers: list[signal.Signals]
    seconds: float
    status: int
    out: str
    err: str


def interrupt(workdir, moment_s, numbers, gap_s=0.0):
    """Starts a training, and sends it signals after ``moment_s`` seconds, ``gap_s`` apart."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [*COMMAND, "--workdir", str(workdir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            time.sleep(moment_s)
            for number in numbers:
                process.send_signal(number)
                time.sleep(gap_s)
            start = time.perf_counter()
            out, err = process.communicate(timeout=60)
            return Ended(workdir, numbers, time.perf_counter() - start, process.returncode, out, err)
        finally:
            process.kill()


def check(ended):
    """Checks exit status, output and files, and returns how the process ended."""
    workdir, numbers = ended.workdir, ended.numbers
    for path in [*workdir.glob("*.json"), *workdir.glob("*.jsonl")]:
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text)
    lines = [line for line in ended.err.splitlines() if line not in MODEL and not re.fullmatch(EPOCH, line)]
    if "everything is in" in ended.out:  # a signal may still end the process, or Python after its last line
        assert ended.status in [0, *(128 + number for number in numbers), *(-number for number in numbers)]
        assert lines == ["stopped"] * (ended.status > 0)
        assert "test_accuracy" in json.loads((workdir / "summary.json").read_text())
        return "finished"
    assert ended.out == ""
    if ended.status in [-number for number in numbers] or "init_import_site" in ended.err:
        assert "mnist_jax" not in ended.err  # Python itself was starting
        assert not workdir.exists()
        return "before"
    assert ended.status in [128 + number for number in numbers], ended
    assert len(lines) == 1, ended
    if lines[0] == "stopped":
        return "at once"
    if "is complete" in lines[0]:
        assert lines[0] == f"stopped: received a signal after training; the run in {workdir} is complete"
        assert "test_accuracy" in json.loads((workdir / "summary.json").read_text())
        return "complete"
    end = f" in {workdir}; to continue, add --workdir {workdir} --resume to the command"
    step = lines[0].removeprefix("stopped: saved at step ").removesuffix(end)
    assert (workdir / "checkpoints" / step).is_dir()
    return "saved"


@pytest.mark.parametrize(
    ("moment_s", "numbers"),
    [(0.3, [signal.SIGINT]), (0.6, [signal.SIGTERM]), (0.9, [signal.SIGINT, signal.SIGTERM])],
)
def test_a_signal_while_a_command_starts(tmp_path, moment_s, numbers):
    ended = interrupt(tmp_path / "run", moment_s, numbers, gap_s=0.001)
    assert check(ended) in ("at once", "before")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run and its seconds; the first fills the compilation cache."""
    for name in ("first", "second"):
        workdir, start = tmp_path_factory.mktemp("whole") / name, time.perf_counter()
        subprocess.run([*COMMAND, "--workdir", workdir], check=True, capture_output=True)
    return workdir, time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.uses_adam
def test_signals_at_any_moment(whole, tmp_path):
    rng, (reference, seconds) = random.Random(0), whole
    trials = []
    for index in range(NUM_TRIALS):
        numbers = rng.choices((signal.SIGINT, signal.SIGTERM), k=2 if index % 3 == 0 else 1)
        moment_s = (index + rng.random()) / NUM_TRIALS * 1.05 * seconds
        trials.append((tmp_path / str(index) / "run", moment_s, numbers, rng.uniform(0.0005, 0.005)))
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda trial: interrupt(*trial), trials))
    outcomes = [check(each) for each in ended]
    assert {"at once", "saved"} <= {*outcomes}
    assert max(each.seconds for each in ended) < 30
    resumable = [each.workdir for each in ended if (each.workdir / "config.json").exists()]
    _, expected = load_run(reference)
    for workdir in resumable[::4]:
        resumed = fit(dataclasses.replace(CONFIG, workdir=str(workdir), resume=True))
        assert_trees_equal(resumed.state.params, expected.params)
