"""A run that was interrupted leaves the same files as one that was not, but for the seconds."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import assert_trees_equal

from mnist_jax import Callback, InputError, TrainConfig, fit, restore_checkpoint
from mnist_jax.training.epochs import ChunkedEpoch
from mnist_jax.training.run import summarise
from mnist_jax.training.runs import find_runs
from mnist_jax.training.workdir import lock_directory

pytestmark = pytest.mark.uses_adam
SMALL = TrainConfig(data="digits", hidden_sizes=(8,), epochs=2, batch_size=100, quiet=True)  # 14 steps an epoch
TINY_CNN = {"model": "cnn", "channels": (2,), "kernel_sizes": (5,), "pool_sizes": (4,), "dense_size": 4}


class HoldsTheLock(Callback):
    def on_close(self, training):
        with pytest.raises(InputError, match="is in use by another process"), lock_directory(training.directory.path):
            raise AssertionError


class InterruptEachChunk(HoldsTheLock):
    def on_chunk(self, training):
        training.signals.requested = 2  # as Ctrl-C does


def set_chunk_length(monkeypatch, num_steps):
    length = property(lambda epochs: num_steps, lambda epochs, value: None)
    monkeypatch.setattr(ChunkedEpoch, "_chunk_steps", length, raising=False)


def read_history(workdir):
    """The lines of ``metrics.jsonl`` without those parts that a clock decides."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("seconds", "examples_per_second")} for line in lines]


def check_interrupted(monkeypatch, tmp_path, lengths, **options):
    """Trains with a pause after each chunk, and compares with a run of one chunk per epoch."""
    config = dataclasses.replace(SMALL, **options)
    set_chunk_length(monkeypatch, 100)
    straight = fit(dataclasses.replace(config, workdir=str(tmp_path / "straight")))
    config = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    for length in lengths:
        set_chunk_length(monkeypatch, length)
        with pytest.raises(KeyboardInterrupt):
            fit(config, callbacks=[InterruptEachChunk()])
        config = dataclasses.replace(config, resume=True)
    assert read_history(tmp_path / "run") == read_history(straight.workdir)
    assert_trees_equal(restore_checkpoint(tmp_path / "run", straight.state), straight.state)


def test_a_run_interrupted_in_an_epoch_has_the_same_metrics_bit_for_bit(tmp_path, monkeypatch):
    check_interrupted(monkeypatch, tmp_path, [3, 11], epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, TINY_CNN])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_interrupted_at_every_border_has_the_same_metrics_bit_for_bit(tmp_path, monkeypatch, model, seed):
    lengths = [1] * 14 + (np.random.default_rng(seed).multinomial(14 - 5, [0.2] * 5) + 1).tolist()
    if model:
        model = {**model, "hidden_sizes": TrainConfig.hidden_sizes}
    check_interrupted(monkeypatch, tmp_path, lengths, seed=seed, **model)


class Killed(BaseException):
    pass


class KillAtTheBeginning(HoldsTheLock):
    def on_begin(self, training):
        raise Killed


def test_a_finished_run_that_is_killed_while_it_goes_on_is_unfinished_and_goes_on(tmp_path, monkeypatch):
    summaries = []

    def kill(training):
        summaries.append(summarise(training))
        raise Killed

    config = dataclasses.replace(SMALL, epochs=1, workdir=str(tmp_path / "run"))
    fit(config, callbacks=[HoldsTheLock()])
    config = dataclasses.replace(config, epochs=2, resume=True)
    with pytest.raises(Killed):
        fit(config, callbacks=[KillAtTheBeginning()])
    (found,) = find_runs(tmp_path)
    assert (found.num_epochs, found.summary) == (1, {})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mnist_jax.training.fit.summarise", kill)
        fit(config)
    (found,) = find_runs(tmp_path)
    assert (found.num_epochs, found.summary) == (2, {})
    assert {**fit(config).summary, "seconds": None} == {**summaries[0], "seconds": None}
