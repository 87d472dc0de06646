import dataclasses
import re

import jax
import numpy as np
import pytest
from conftest import assert_trees_equal

from mnist_jax import (
    AccumulatedGradient,
    Augmentation,
    CrossEntropy,
    InputError,
    TrainConfig,
    VirtualAdversarialLoss,
    build_augmentation,
    build_model,
    build_state,
    choose_microbatch_size,
    create_train_state,
    cross_entropy,
    fit,
    load_run,
    train_population,
)

CONFIG = TrainConfig(hidden_sizes=(4,), optimizer="sgd", schedule="cosine", learning_rate=0.5, seed=3)


def test_a_state_has_what_the_config_says():
    config = TrainConfig(
        hidden_sizes=(4,),
        ema_decay=0.5,
        label_smoothing=0.25,
        microbatch_size=8,
        augment_rotation=10,
        augment_shift=1,
        augment_scale=0.1,
        augment_shear=0.2,
        augment_elastic=1.5,
        augment_smoothness=3,
        augment_erasing=0.5,
        adversarial_radius=2,
    )
    state = build_state(config)
    assert state.recipe.augment == Augmentation(1, 10, 0.1, 0.2, 1.5, 3, 0.5)
    assert (state.recipe.ema_decay, state.recipe.gradient_fn) == (0.5, AccumulatedGradient(8))
    assert state.recipe.loss_fn == VirtualAdversarialLoss(2, CrossEntropy(0.25))
    assert (state.recipe.example_loss, state.recipe.model.module) == (cross_entropy, build_model(config))


def test_the_seed_is_that_of_the_config_unless_a_key_is_given():
    state = build_state(CONFIG)
    assert_trees_equal(state.params, build_state(CONFIG, key=jax.random.key(3)).params)
    by_hand = create_train_state(build_model(CONFIG), state.recipe.tx, jax.random.key(4))
    assert_trees_equal(build_state(CONFIG, key=jax.random.key(4)).params, by_hand.params)


def test_the_schedule_spans_the_steps():
    state = build_state(CONFIG, num_steps=10)
    gradient = jax.tree.map(np.ones_like, state.params)
    updates = []
    with jax.numpy_dtype_promotion("standard"):  # which optax's schedules need
        for _ in range(6):
            update, opt_state = state.recipe.tx.update(gradient, state.opt_state, state.params)
            state = state.replace(opt_state=opt_state)
            updates.append(float(update["Dense_0"]["bias"][0]))
    np.testing.assert_allclose(updates, -0.25 * (1 + np.cos(np.pi * np.arange(6) / 10)), rtol=1e-5)


@pytest.mark.uses_adam
def test_a_run_comes_back_with_its_config_and_newest_state(tmp_path):
    config = TrainConfig(
        data="digits", hidden_sizes=(4,), batch_norm=True, schedule="cosine", epochs=2, workdir=str(tmp_path / "run")
    )
    run = fit(config)
    found, state = load_run(run.workdir)
    assert found == run.config
    assert_trees_equal(state, run.state)
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"run/config.json: config: not JSON"):
        load_run(run.workdir)


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match="empty: expected a run with a config.json, found none"):
        load_run(tmp_path / "empty")


def test_without_amounts_there_is_no_augmentation():
    assert build_augmentation(TrainConfig(epochs=3)) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainConfig(), None),
        (TrainConfig(model="cnn"), 32),
        (TrainConfig(model="cnn", microbatch_size=64), 64),
        (TrainConfig(microbatch_size=64), 64),
    ],
)
def test_the_microbatch_is_what_the_config_says_or_what_is_fastest_on_cpu(config, expected):
    assert choose_microbatch_size(config) == expected


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Augmentation)])
@pytest.mark.parametrize("value", [-1, 100])
def test_config_and_augmentation_have_the_same_ranges(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be in \[\d+, [\d.]+\], got {value}$") as refused:
        Augmentation(**{name: value})
    allowed = str(refused.value).partition(", got")[0]
    with pytest.raises(InputError, match=f"^augment_{re.escape(allowed)}, got {value}\\.0$"):
        TrainConfig(**{f"augment_{name}": value})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "no NVIDIA GPU is visible"),
        (RuntimeError("Unable to initialize backend 'tpu': no (set JAX_PLATFORMS='')\nmore"), "Unable to .*: no"),
    ],
)
def test_a_missing_device_is_one_line(monkeypatch, tmp_path, error, reason):
    def fail():
        raise error

    config = TrainConfig(data="digits", hidden_sizes=(4,), workdir=str(tmp_path / "run"), quiet=True)
    monkeypatch.setattr(jax, "devices", fail)
    for call in (lambda: fit(config), lambda: train_population(config, [0])):
        end = "; install JAX for it, or use --device cpu"
        with pytest.raises(InputError, match=rf"^device: expected a device of cpu, found none \({reason}\){end}$"):
            call()
    assert [*tmp_path.iterdir()] == []
