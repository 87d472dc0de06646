"""Several processes in one run directory: one trains, the others are told so, and a reader disturbs nobody."""

import dataclasses
import random
import re
import subprocess
import sys
import time

import pytest
from conftest import assert_trees_equal

from mnist_jax import TrainConfig, fit, load_run
from mnist_jax.runs import runs_table
from mnist_jax.training.checkpoint import saved_steps
from mnist_jax.training.runs import find_runs

pytestmark = [pytest.mark.slow, pytest.mark.uses_adam]
CONFIG = TrainConfig(data="digits", hidden_sizes=(4,), batch_size=450, epochs=20, quiet=True)
COMMAND = [
    sys.executable,
    *["-m", "mnist_jax.train", "--data", "digits", "--hidden-sizes", "4", "--batch-size", "450", "--quiet"],
]
REFUSED = r"error: workdir [^\n]* (is in use by another process|already holds a run)[^\n]*\n"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run of one process, uninterrupted."""
    return fit(dataclasses.replace(CONFIG, workdir=str(tmp_path_factory.mktemp("straight") / "run")))


def start(workdir, *flags):
    command = [*COMMAND, "--workdir", str(workdir), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_one_trains(workdir, straight, offset, *flags):
    """Starts two processes; exactly one ends with the parameters of ``straight``, the other with one line."""
    first = start(workdir, "--epochs", "20", *flags)
    time.sleep(offset)
    second = start(workdir, "--epochs", "20", *flags)
    results = [(process, *process.communicate(timeout=120)) for process in (first, second)]
    results.sort(key=lambda result: result[0].returncode)
    (trained, _, trained_err), (refused, refused_out, refused_err) = results
    assert (trained.returncode, trained_err) == (0, "")
    assert (refused.returncode, refused_out) == (2, "")
    assert re.fullmatch(REFUSED, refused_err)
    _, state = load_run(workdir)
    assert_trees_equal(state, straight.state.replace(recipe=state.recipe))
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 20
    assert not (workdir / ".lock").exists()


@pytest.mark.parametrize("attempt", range(5))
def test_of_two_processes_in_a_new_directory_one_trains(tmp_path, straight, attempt):
    check_one_trains(tmp_path / "run", straight, random.Random(attempt).uniform(0, 0.3) * (attempt > 0))


@pytest.mark.parametrize("attempt", range(3))
def test_of_two_resumes_at_once_one_goes_on(tmp_path, straight, attempt):
    short = dataclasses.replace(CONFIG, epochs=2, workdir=str(tmp_path / "run"))
    fit(short)
    offset = random.Random(attempt).uniform(0, 0.3) * (attempt > 0)
    check_one_trains(tmp_path / "run", straight, offset, "--resume")


def test_readers_beside_a_training_always_find_a_whole_run(tmp_path, caplog):
    workdir = tmp_path / "runs" / "run"
    training = start(workdir, "--epochs", "100", "--keep-checkpoints", "1")
    while not saved_steps(workdir / "checkpoints") and training.poll() is None:
        time.sleep(0.02)
    command = [sys.executable, "-m", "mnist_jax.runs", str(workdir.parent)]
    listing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    steps = []
    while training.poll() is None:
        steps.append(int(load_run(workdir)[1].step))
        (run,) = find_runs(workdir.parent)
        assert len(runs_table([run]).splitlines()) == 2
    assert (training.wait(), training.communicate()[1]) == (0, "")
    assert steps == sorted(steps)
    assert len({*steps}) > 5
    assert caplog.messages == []
    out, err = listing.communicate(timeout=60)
    assert (listing.returncode, err) == (0, "")
    assert re.search(rf"^{workdir} +digits +mlp +(\d+/100 +unfinished|3,190 .*)$", out, re.MULTILINE)
