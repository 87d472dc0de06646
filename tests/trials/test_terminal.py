"""What a training prints, and how it ends, whatever its stderr is and whatever its libraries say."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "mnist_jax.train", "--data", "digits", "--hidden-sizes", "8", "--epochs", "3"]
TABLE = ["layer", "Dense", "Dense", "total", ""]  # beginnings of the lines about the model


def start(workdir, before="", redirection=""):
    """Starts a training from a shell."""
    shell = ["bash", "-c", f'{before} exec "$@" {redirection}', "bash", *COMMAND, "--workdir", str(workdir)]
    return subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def numbers(workdir):
    """The numbers of a run that must not depend on its stderr."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in ("step", "train_loss", "validation_loss")} for line in lines]


def test_training_does_not_need_a_stderr(tmp_path):
    for name, redirection in (("plain", ""), ("full", "2> /dev/full"), ("closed", "2>&-"), ("gone", "2> >(exit)")):
        with start(tmp_path / name, redirection=redirection) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0
        assert f"everything is in {tmp_path / name}" in out
        assert [line[:5] for line in err.splitlines()] == ([*TABLE, *["epoch"] * 3] if name == "plain" else [])
        assert numbers(tmp_path / name) == numbers(tmp_path / "plain")


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path):
    """Orbax logs hundreds of lines, and its threads print tracebacks."""
    with start(tmp_path / "run", before="ulimit -f 16;") as process:
        out, err = process.communicate(timeout=120)
    *table, epoch, error = err.splitlines()
    assert [line[:5] for line in table] == TABLE
    assert (process.returncode, out) == (1, "")
    assert epoch.startswith("epoch 1/3  loss")
    assert re.fullmatch(r"error: .*run/checkpoints/11: the checkpoint cannot be written \(.*\); earlier ones .*", error)


def test_a_training_that_ignores_ctrl_c_is_not_stopped(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = start(tmp_path / "run")  # inherits that
    signal.signal(signal.SIGINT, before)
    with process:
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        out, err = process.communicate()
    assert (process.returncode, [line[:5] for line in err.splitlines()]) == (0, [*TABLE, *["epoch"] * 3])
    assert f"everything is in {tmp_path / 'run'}" in out
