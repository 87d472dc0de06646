"""A training on a full disk ends in one line, and continues as if nothing had happened once there is space."""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys

import pytest
from conftest import assert_trees_equal

from mnist_jax import TrainConfig, fit, restore_checkpoint
from mnist_jax.training.checkpoint import saved_steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.uses_adam,
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to mount a small disk"),
]
CONFIG = TrainConfig(data="digits", hidden_sizes=(4,), batch_size=450, epochs=3, quiet=True)
COMMAND = ["--data", "digits", "--hidden-sizes", "4", "--batch-size", "450", "--epochs", "3", "--quiet"]
STEPS = [3, 6, 9]  # of the checkpoints
KILOBYTES = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run on a large disk."""
    return fit(dataclasses.replace(CONFIG, workdir=str(tmp_path_factory.mktemp("large") / "run")))


@contextlib.contextmanager
def small_disk(path, size):
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("size", KILOBYTES)
def test_a_full_disk_is_one_line_and_the_run_resumes_when_there_is_space(size, straight, tmp_path):
    disk = tmp_path / "disk"
    run = disk / "run"
    with small_disk(disk, f"{size}k"):
        command = [sys.executable, "-m", "mnist_jax.train", *COMMAND, "--workdir", str(run)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        steps = saved_steps(run / "checkpoints")
        assert steps == STEPS[: len(steps)]
        assert {path.name for path in (run / "checkpoints").glob("*")} == {*map(str, steps)}
        for step in steps:
            assert int(restore_checkpoint(run, straight.state, step=step).step) == step
        if done.returncode:
            assert done.returncode == 1
            assert re.fullmatch(r"error: [^\n]*no space left[^\n]*\n", done.stderr, re.IGNORECASE)
        else:
            # A run is complete without its figure, for which there may be no space at the very end.
            notice = r"\S+/learning_curves\.png could not be drawn \([^\n]*No space left[^\n]*\); the run is complete\n"
            assert re.fullmatch(f"({notice})?", done.stderr)
            assert steps == STEPS
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        is_run = (run / "config.json").exists()
        resumed = fit(dataclasses.replace(CONFIG, workdir=str(run), resume=is_run))
        assert_trees_equal(resumed.state, straight.state.replace(recipe=resumed.state.recipe))
        assert [line["epoch"] for line in resumed.history] == [1, 2, 3]
        assert resumed.summary["test_loss"] == straight.summary["test_loss"]
        assert restore_checkpoint(run, straight.state).step == STEPS[-1]
