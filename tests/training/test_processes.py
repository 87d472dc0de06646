"""How a process learns of the others; whole runs are in ``tests/trials/test_several_processes.py``."""

import importlib.util
import subprocess
import sys

import jax
import pytest

from mnist_jax import InputError, LostProcessError, TrainConfig, train_population
from mnist_jax.cli.flags import parse_flags, run_command
from mnist_jax.training import processes

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """None of the variables; they are restored after the test."""
    for name in (*VARIABLES, "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def initialised(monkeypatch):
    """The arguments of each call of ``jax.distributed.initialize``, which does nothing."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append(args))
    return calls


def test_a_process_alone_connects_with_nobody(initialised):
    processes.connect()
    assert initialised == []
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    assert processes.first(lambda: "value") == processes.together(lambda: "value") == "value"
    assert (processes.smallest(3), processes.largest(3, 4)) == (3, [3, 4])
    processes.check_same("it", "text")
    processes.leave(3)


def test_the_flags_name_the_others(initialised):
    flags = ["--coordinator", "host:1234", "--num-processes", "4", "--process-id", "3", "--epochs", "2"]
    assert parse_flags(TrainConfig(), flags, "prog") == TrainConfig(epochs=2)
    processes.connect()
    assert initialised == [("host:1234", 4, 3)]


@pytest.mark.parametrize(("in_a_pod", "expected"), [(True, "deactivate"), (False, None)])
def test_in_a_pod_jax_does_not_ask_kubernetes_for_what_is_given(environment, in_a_pod, expected):
    """It would fail without a service account; SLURM and Open MPI still choose a device for each process."""
    found = []
    environment.setattr(jax.distributed, "initialize", lambda *args, **options: found.append(options))
    for name, value in zip(VARIABLES, ("host:1234", "2", "1"), strict=True):
        environment.setenv(name, value)
    if in_a_pod:
        environment.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    processes.connect()
    assert [options["cluster_detection_method"] for options in found] == [expected]


def test_what_is_missing_comes_from_the_launcher(initialised, environment):
    environment.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    processes.connect()
    assert initialised == [("host:1234", None, None)]


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2", "JAX_NUM_PROCESSES": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "host", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"KUBERNETES_SERVICE_HOST": "host"}, False),
        ({"JAX_PLATFORMS": ""}, True),  # and libtpu is installed
    ],
)
def test_launchers_are_told_by_their_variables(initialised, environment, variables, several):
    installed = ("kubernetes", "libtpu")
    find = importlib.util.find_spec
    environment.setattr(importlib.util, "find_spec", lambda name: True if name in installed else find(name))
    for name, value in variables.items():
        environment.setenv(name, value)
    processes.connect()
    assert initialised == ([(None, None, None)] if several else [])


@pytest.fixture
def undetected(monkeypatch):
    """JAX detects no launcher."""

    def initialize(*args, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)


def test_a_launcher_that_jax_does_not_detect_after_all_is_none(undetected, environment):
    environment.setenv("SLURM_STEP_NUM_TASKS", "2")  # but no other variable of SLURM
    processes.connect()
    assert processes.count() == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator", "host"], "coordinator must be HOST:PORT, got host"),
        (["--coordinator", "host:0"], "coordinator must be HOST:PORT, got host:0"),
        (["--num-processes", "two"], "num_processes must be a whole number, got two"),
        (["--num-processes", "0"], "num_processes must be at least 1, got 0"),
        (["--process-id", "-1"], "process_id must be a whole number, got -1"),
        (["--num-processes", "2", "--process-id", "2"], "process_id must be below the 2 processes, got 2"),
        (
            ["--num-processes", "2"],
            "processes: expected --coordinator, --num-processes and --process-id, or a launcher that JAX detects "
            "(coordinator_address should be defined.)",
        ),
    ],
)
def test_wrong_flags_are_named(undetected, flags, message, capsys):
    def command():
        parse_flags(TrainConfig(), flags, "prog")
        processes.connect()

    assert run_command(command) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_others_that_do_not_come_are_waited_for_so_long():
    code = "from mnist_jax.training import processes; processes._give_up('host:1234', 60)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: processes: not all of them met at host:1234 within 60 s; MNIST_JAX_START_TIMEOUT sets another time\n",
    )


@pytest.fixture
def second_of_three(monkeypatch):
    """Makes this process the second of three; the others send what the fixture's value, a list, holds."""
    others = [b'{"result": 5}', b'{"result": 2}']
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "index", lambda: 1)
    monkeypatch.setattr(processes, "_exchange", lambda own: [others[0], own, others[1]])
    return others


def fail():
    raise InputError("some fault")


def test_processes_agree(second_of_three):
    assert processes.smallest(4) == 2
    assert processes.first(fail) == 5  # which only the first one calls
    assert processes.together(lambda: "own") == "own"
    with pytest.raises(InputError, match="^some fault$"):
        processes.together(fail)
    second_of_three[:] = [b'{"result": [5, 0]}', b'{"result": [2, 1]}']
    assert processes.largest(4, 0) == [5, 1]
    second_of_three[1] = b'{"error": "a fault elsewhere"}'
    with pytest.raises(InputError, match="^process 2: a fault elsewhere$"):
        processes.together(lambda: "own")


def test_a_difference_between_processes_is_named(second_of_three):
    second_of_three[:] = [b'{"result": 1}', b'{"result": 1}']
    with pytest.raises(InputError, match="^the data must be the same in all processes: that of process 1 differs$"):
        processes.check_same("the data", "text")


def test_an_error_by_which_jax_reports_a_lost_process_becomes_one_line(second_of_three, capsys):
    def lose():
        with processes.explain_lost_process():
            raise ValueError("UNKNOWN: Gloo AllReduce failed: Connection closed by peer")

    with pytest.raises(LostProcessError) as error:
        lose()
    assert str(error.value) == (
        "another process of the run has ended (UNKNOWN: Gloo AllReduce failed: Connection closed by peer): "
        "continue from its checkpoint with --resume"
    )
    with pytest.raises(ValueError, match="^another error$"), processes.explain_lost_process():
        raise ValueError("another error")


def test_a_population_is_trained_by_one_process(second_of_three):
    with pytest.raises(InputError, match="^a population is trained by one process, got 3$"):
        train_population(TrainConfig(), [0])
