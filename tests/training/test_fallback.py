"""Without MNIST, a run whose training was not configured trains the preset ``digits``."""

import contextlib
import dataclasses
import logging
from types import SimpleNamespace

import pytest

from mnist_jax import InputError, TrainConfig, evaluate_dataset, fit, load_dataset, mean_gradient, preset
from mnist_jax.training.fallback import complete_resumed, replace_default
from mnist_jax.training.prepare import prepare_run

pytestmark = pytest.mark.uses_adam
DIGITS = preset("digits")
OUTPUT = {"data_dir": "d", "checkpoint_every": 3, "keep_checkpoints": 1, "workdir": "w", "progress": True}
TRAINING = [name for name in TrainConfig().training_fields() if name not in ("seed", "num_validation")]


def test_seed_validation_and_output_stay():
    options = {"seed": 4, "num_validation": 7, **OUTPUT}
    assert replace_default(TrainConfig(**options)) == dataclasses.replace(DIGITS, **options)
    assert replace_default(TrainConfig()) == DIGITS


@pytest.mark.parametrize("name", TRAINING)
def test_a_field_of_the_training_that_is_set_keeps_the_others(name):
    texts = {"data": "mnist", "model": "cnn", "optimizer": "sgd", "schedule": "cosine"}
    texts |= {"padding": "same", "dtype": "bfloat16"}
    layers = dict.fromkeys(("hidden_sizes", "channels", "kernel_sizes", "pool_sizes"), (1, 1))
    values = {**texts, **layers, "batch_norm": True, "augment_smoothness": 5.0, "warmup_fraction": 0.2}
    value = values.get(name, 0.25 if isinstance(getattr(TrainConfig(), name), float) else 3)
    config = object.__new__(TrainConfig)  # unchecked, as some fields need another
    vars(config).update({**vars(TrainConfig()), name: value})
    assert vars(config)[name] != vars(TrainConfig())[name]
    assert replace_default(config) is config


def test_a_run_to_resume_is_completed():
    saved = dataclasses.replace(DIGITS, microbatch_size=32, seed=4, epochs=70)
    bare = TrainConfig(workdir="w", resume=True)
    assert complete_resumed(bare, saved) == dataclasses.replace(DIGITS, workdir="w", resume=True, epochs=70)
    longer = dataclasses.replace(bare, epochs=80, early_stopping=2)
    expected = dataclasses.replace(DIGITS, workdir="w", resume=True, epochs=80, early_stopping=2)
    assert complete_resumed(longer, saved) == expected
    for other in (dataclasses.replace(saved, learning_rate=0.1), TrainConfig(data="digits"), TrainConfig(data="mnist")):
        assert complete_resumed(bare, other) is bare
    for own in ({"data": "digits"}, {"learning_rate": 0.1}, {"model": "cnn"}):
        config = dataclasses.replace(bare, **own)
        assert complete_resumed(config, saved) is config


@pytest.fixture
def short(monkeypatch):
    """The preset ``digits`` with a small network and two epochs."""
    small = dataclasses.replace(DIGITS, channels=(2, 2), pool_sizes=(4, 2), dense_size=4, epochs=2)
    monkeypatch.setattr("mnist_jax.training.fallback.preset", {"digits": small}.__getitem__)
    return small


def prepare(config, dataset=None, own=(None, None, None)):
    """The config with which ``fit`` trains."""
    with contextlib.ExitStack() as stack:
        return prepare_run(config, dataset, own, (), stack).config


@pytest.mark.slow
def test_without_mnist_the_preset_is_trained_and_resumed(tmp_path, monkeypatch, caplog, idx_dir, short):
    monkeypatch.chdir(tmp_path)
    bare = TrainConfig(seed=1, quiet=True)
    with caplog.at_level(logging.WARNING, "mnist_jax"):
        run = fit(bare)
    first, second = caplog.messages
    assert first.endswith(": using scikit-learn's 1,797 small digits instead")
    assert second == (
        "training the CNN of --preset digits, which suits so few examples; --data digits trains the default MLP"
    )
    assert run.config.training_fields() == {
        **short.training_fields(),
        "seed": 1,
        "microbatch_size": run.config.microbatch_size,
    }
    assert TrainConfig.from_json((run.workdir / "config.json").read_text()) == run.config
    assert (run.summary["dataset"], run.summary["model"], run.summary["notice"]) == ("digits", "cnn", first)
    assert run.workdir.name.startswith("digits-cnn-")

    resume = dataclasses.replace(bare, workdir=str(run.workdir), resume=True)
    with pytest.raises(InputError, match="resume: seed must be 1 as in .*config.json, got 0$"):
        prepare(dataclasses.replace(resume, seed=0))
    assert prepare(resume) == dataclasses.replace(run.config, workdir=resume.workdir, resume=True)
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(idx_dir))  # MNIST has become available
    assert prepare(dataclasses.replace(resume, epochs=3)) == dataclasses.replace(
        run.config, workdir=resume.workdir, resume=True, epochs=3
    )


@pytest.mark.parametrize("own", ["config", "data", "dataset", "model", "tx", "state"])
def test_what_the_user_chose_is_trained(tmp_path, caplog, own):
    config = TrainConfig(**{"config": {"epochs": 3}, "data": {"data": "digits"}}.get(own, {}))
    state = SimpleNamespace(recipe=SimpleNamespace(gradient_fn=mean_gradient))
    parts = tuple(part if own == name else None for name, part in (("model", own), ("tx", own), ("state", state)))
    prepared = prepare(config, load_dataset() if own == "dataset" else None, parts)
    expected = dataclasses.replace(config, data="digits", microbatch_size=prepared.microbatch_size)
    assert prepared == expected
    assert not any("preset" in message for message in caplog.messages)


@pytest.mark.slow
def test_the_preset_reads_the_handwriting_of_others(tmp_path, mnist_dir):
    run = fit(TrainConfig(workdir=str(tmp_path / "run"), quiet=True))
    assert run.summary["dataset"] == "digits"
    assert run.summary["test_accuracy"] >= 0.97
    mnist = load_dataset("mnist", data_dir=mnist_dir).test
    assert evaluate_dataset(run.state, mnist).accuracy >= 0.86
