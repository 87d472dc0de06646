"""Runs of several processes: they equal those of one, and a fault in one of them ends all, with a message."""

import dataclasses
import json
import re

import numpy as np
import pytest
from conftest import assert_trees_close, assert_trees_equal
from peers import run_together, train_together

from mnist_jax import TrainConfig, fit, load_run

pytestmark = [pytest.mark.slow, pytest.mark.uses_adam]

CONFIG = TrainConfig(
    data="digits",
    hidden_sizes=(8,),
    optimizer="momentum",
    learning_rate=0.05,
    epochs=3,
    batch_size=10,
    augment_shift=1,
    quiet=True,
)
STEPS_PER_EPOCH = 135
MIDDLE = 150  # in the second epoch


def configure(workdir, **options):
    return dataclasses.replace(CONFIG, workdir=str(workdir), **options).to_json()


def state_of(workdir):
    return load_run(workdir)[1]


def check_ended(results, who, status, message):
    """All processes but ``who`` ended within a minute with this status and message."""
    for number, result in enumerate(results):
        assert result.seconds < 60
        if number != who:
            assert result.status == status, result.stderr
            assert re.search(message, result.stderr), result.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run on one device, and by two and four processes of one device each."""
    path = tmp_path_factory.mktemp("undisturbed")
    fit(dataclasses.replace(CONFIG, workdir=str(path / "1")))
    for number in (2, 4):
        results = train_together(configure(path / str(number)), number)
        assert [result.status for result in results] == [0] * number, [result.stderr for result in results]
        # Nothing else on stdout, and nothing at all on stderr.
        assert [result.stdout for result in results] == [f"3 {number}\n"] * number
        assert [result.stderr for result in results] == [""] * number
    return path


@pytest.mark.parametrize("number", [2, 4])
def test_several_processes_give_the_run_of_one(undisturbed, number):
    found, expected = state_of(undisturbed / str(number)), state_of(undisturbed / "1")
    for name in ("params", "ema_params"):
        assert_trees_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    summaries = [json.loads((undisturbed / name / "summary.json").read_text()) for name in (str(number), "1")]
    for name in ("train_loss", "validation_loss", "test_loss"):
        assert summaries[0][name] == pytest.approx(summaries[1][name], rel=1e-4)
    files = [
        {re.sub(r"tfevents.*|\d{10}.*", "", path.name) for path in (undisturbed / name).iterdir()} for name in "14"
    ]
    assert files[0] == files[1]


def test_devices_of_one_process_or_of_several_give_the_same_bits(undisturbed, tmp_path):
    results = train_together(
        configure(tmp_path / "run", num_devices=4),
        2,
        environment={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    )
    assert [result.stdout for result in results] == ["3 4\n"] * 2, results[0].stderr
    assert_trees_equal(state_of(tmp_path / "run"), state_of(undisturbed / "4"))


@pytest.mark.parametrize(("who", "after"), [(0, 2), (1, 2), (1, 1), (0, 4)])
def test_a_process_is_killed_and_the_run_goes_on(undisturbed, tmp_path, who, after):
    """Two processes, one of which is killed in the second epoch; the run is resumed by ``after`` processes."""
    workdir = tmp_path / "run"
    results = train_together(configure(workdir), 2, "SIGKILL", who, MIDDLE)
    assert results[who].status == -9, results
    check_ended(results, who, 1, "error: another process of the run has ended")
    assert int(state_of(workdir).step) == STEPS_PER_EPOCH
    results = train_together(configure(workdir, resume=True), after)
    assert [result.status for result in results] == [0] * after, results[0].stderr
    found, expected = state_of(workdir), state_of(undisturbed / "2")
    if after == 2:
        assert_trees_equal(found, expected)
    else:
        assert_trees_close(found.params, expected.params, rtol=1e-5, atol=1e-5)


def test_a_signal_to_one_process_saves_in_the_middle_and_ends_all(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    results = train_together(configure(workdir), 2, "SIGTERM", 1, MIDDLE)
    check_ended(results, None, 143, r"stopped: saved at step \d+ in .*; to continue, add --workdir")
    assert int(state_of(workdir).step) % STEPS_PER_EPOCH
    results = train_together(configure(workdir, resume=True), 2)
    assert [result.status for result in results] == [0, 0], results[0].stderr
    assert_trees_equal(state_of(workdir), state_of(undisturbed / "2"))


def test_a_callback_of_one_process_stops_all(tmp_path):
    results = train_together(configure(tmp_path / "run"), 2, "stop", 1)
    assert [result.stdout for result in results] == ["1 2\n"] * 2, results[0].stderr


def test_an_exception_in_one_process_ends_all(tmp_path):
    results = train_together(configure(tmp_path / "run"), 2, "raise", 1, MIDDLE)
    check_ended(results, 1, 1, "error: another process of the run has ended")
    assert results[1].status == 1
    assert results[1].stderr.endswith("RuntimeError: a fault of one process\n")


def test_a_process_that_hangs_ends_the_others(tmp_path):
    results = train_together(configure(tmp_path / "run"), 2, "SIGSTOP", 1, MIDDLE, seconds=65)
    assert results[0].seconds < 60
    assert results[0].status == -6  # JAX aborts the process
    assert "Terminating process because the JAX distributed service detected fatal errors" in results[0].stderr
    assert results[1].status == -9  # by this test


TRAIN = ["-m", "mnist_jax.train", "--data", "digits", "--hidden-sizes", "8", "--epochs", "1", "--quiet"]


def test_bad_input_in_one_process_ends_all(tmp_path):
    """Each in a directory that holds a run already, of which only the first process knows; and other flags."""
    workdir = tmp_path / "run"
    flags = [*TRAIN, "--workdir", str(workdir)]
    results = run_together([flags, [*flags, "--seed", "1"]])
    check_ended(results, None, 2, "error: the flags must be the same in all processes: that of process 1 differs")
    assert results[1].stderr.startswith("process 1: error: ")
    assert not workdir.exists()
    results = run_together([flags, [*flags, "--epochs", "0"]], environment={"MNIST_JAX_START_TIMEOUT": "10"})
    assert [result.status for result in results] == [2, 2]
    message = (
        r"error: processes: not all of them met at 127\.0\.0\.1:\d+ within 10 s; "
        r"MNIST_JAX_START_TIMEOUT sets another time\n"
    )
    assert re.fullmatch(message, results[0].stderr)
    assert results[1].stderr == "error: epochs must be at least 1, got 0\n"


def test_the_command_reports_once(tmp_path):
    results = run_together([[*TRAIN, "--workdir", str(tmp_path / "run")]] * 2)
    assert [result.status for result in results] == [0, 0], results[1].stderr
    assert "mlp on digits" in results[0].stdout and "2 x cpu" in results[0].stdout
    assert results[1].stdout == ""
    assert [result.stderr for result in results] == ["", ""]
    assert np.isfinite(json.loads((tmp_path / "run" / "summary.json").read_text())["test_loss"])
