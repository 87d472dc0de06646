import dataclasses

import jax
import pytest
from conftest import make_split

from mnist_jax import InputError, TrainConfig, build_state, create_train_state, fit, train_population
from mnist_jax.models.mlp import MLP
from mnist_jax.training import memory
from mnist_jax.training.epochs import ChunkedEpoch
from mnist_jax.training.optimizer import build_optimizer

# 400 TB of parameters: the operating system refuses at once what is that much more than it has.
TOO_LARGE = TrainConfig(data="digits", hidden_sizes=(10**7, 10**7), epochs=1, optimizer="sgd", ema_decay=None)
SMALL = TrainConfig(hidden_sizes=(16,), batch_size=64, optimizer="sgd", ema_decay=None)


def needed_bytes(microbatch_size):
    config = dataclasses.replace(SMALL, microbatch_size=microbatch_size)
    return ChunkedEpoch(build_state(config), make_split(128), config.batch_size).num_bytes()


def test_a_model_that_does_not_fit_is_one_line(tmp_path):
    message = r"^out of memory on cpu, which has [\d.]+ GB: parameters and optimizer state need 40\d,\d{3}.\d GB; use a"
    with pytest.raises(InputError, match=message + " smaller model$"):
        fit(dataclasses.replace(TOO_LARGE, workdir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_population_that_does_not_fit_is_one_line():
    with pytest.raises(InputError, match=r"^out of memory on cpu, which has .* GB: train fewer members at a time$"):
        train_population(TOO_LARGE, seeds=[0])


def test_the_largest_microbatch_that_fits_is_named(monkeypatch):
    needed = needed_bytes(16)
    assert needed_bytes(32) > needed
    monkeypatch.setattr(memory, "memory_limit", lambda: needed + 1)
    advice = memory.advise_on_batch(SMALL, make_split(128), 10)
    assert advice == f"use microbatch_size 16, for which an epoch needs {needed / 1e6:.1f} MB, or a smaller batch_size"


@pytest.mark.parametrize(
    ("limit", "advice"),
    [
        (10**15, "an epoch needs 0.2 MB; another program may be using the device"),
        (110_000, "an epoch needs 0.2 MB even with microbatch_size 1; use a smaller model"),
        (1_000, "parameters and optimizer state need 0.1 MB; use a smaller model"),
    ],
)
def test_other_advice(limit, advice, monkeypatch):
    monkeypatch.setattr(memory, "memory_limit", lambda: limit)
    config = dataclasses.replace(SMALL, batch_size=2)
    assert memory.advise_on_batch(config, make_split(128), 10) == advice


def test_the_users_own_model_and_state(monkeypatch, tmp_path):
    def fail(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")

    monkeypatch.setattr(ChunkedEpoch, "run", fail)
    model, tx = MLP((4,)), build_optimizer(SMALL, 1)
    config = TrainConfig(data="digits", epochs=1, quiet=True, workdir=str(tmp_path / "model"))
    with pytest.raises(InputError, match=" MB; another program may be using the device"):
        fit(config, model=model, tx=tx)
    config = dataclasses.replace(config, workdir=str(tmp_path / "state"))
    with pytest.raises(InputError, match="GB: use a smaller batch_size or model$"):
        fit(config, state=create_train_state(model, tx, jax.random.key(0)))


def test_advice_that_runs_out_of_memory_itself_is_one_line():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    def advise():
        raise error

    with (
        pytest.raises(InputError, match="GB: use a smaller batch_size or model$"),
        memory.explain_out_of_memory(advise),
    ):
        raise error


def test_other_errors_of_the_device_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="^INTERNAL: cosmic ray$"), memory.explain_out_of_memory(str):
        raise jax.errors.JaxRuntimeError("INTERNAL: cosmic ray")
