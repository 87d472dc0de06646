import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import InputError, TrainConfig, build_optimizer, build_schedule
from mnist_jax.config import effective_config
from mnist_jax.training.optimizer import HYPERPARAMETERS


def make_config(**fields):
    return effective_config(fields)


pytestmark = pytest.mark.uses_adam

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([0.3, -0.7])}
RNG = np.random.default_rng(0)
GRADS = [{name: RNG.normal(size=leaf.shape) for name, leaf in PARAMS.items()} for _ in range(4)]


def run(config, grads=GRADS):
    tx = build_optimizer(config, num_steps=len(grads))
    params, opt_state = PARAMS, tx.init(PARAMS)
    for grad in grads:
        updates, opt_state = tx.update(jax.tree.map(jnp.float32, grad), opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def by_numpy(config, grads=GRADS):
    """The textbook update, a scalar formula at a time."""
    result = {}
    for name, leaf in PARAMS.items():
        p, velocity, m, v = np.asarray(leaf, np.float64), 0.0, 0.0, 0.0
        decay = config.weight_decay if name == "kernel" else 0.0
        for t, grad in enumerate(grads, start=1):
            g = grad[name]
            if config.clip_norm is not None:
                norm = math.sqrt(sum(float((each**2).sum()) for each in grad.values()))
                g = g * min(1.0, config.clip_norm / norm)
            if config.optimizer != "adamw":
                g = g + decay * p
            match config.optimizer:
                case "sgd":
                    p = p - config.learning_rate * g
                case "momentum":
                    velocity = config.momentum * velocity + g
                    p = p - config.learning_rate * velocity
                case _:
                    m = config.b1 * m + (1 - config.b1) * g
                    v = config.b2 * v + (1 - config.b2) * g**2
                    update = m / (1 - config.b1**t) / (np.sqrt(v / (1 - config.b2**t)) + 1e-8)
                    p = p - config.learning_rate * (update + (decay * p if config.optimizer == "adamw" else 0))
        result[name] = p
    return result


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_the_update_is_the_textbook_one(optimizer, clip_norm, weight_decay):
    config = make_config(optimizer=optimizer, learning_rate=0.1, momentum=0.8, b1=0.7, b2=0.95)
    config = dataclasses.replace(config, clip_norm=clip_norm, weight_decay=weight_decay)
    found, expected = run(config), by_numpy(config)
    for name in PARAMS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle", "warmup_constant", "warmup_cosine"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_the_optimizer_follows_its_schedule(optimizer, schedule):
    config = make_config(optimizer=optimizer, schedule=schedule, learning_rate=0.1, warmup_fraction=0.5)
    rate = build_schedule(config, 4)
    unscheduled = make_config(optimizer=optimizer, learning_rate=1.0)
    tx = build_optimizer(config, num_steps=4)
    plain = build_optimizer(unscheduled, num_steps=4)
    state, plain_state = tx.init(PARAMS), plain.init(PARAMS)
    for step, grad in enumerate(GRADS):
        grad = jax.tree.map(jnp.float32, grad)
        updates, state = tx.update(grad, state, PARAMS)
        plain_updates, plain_state = plain.update(grad, plain_state, PARAMS)
        np.testing.assert_allclose(updates["bias"], rate(step) * plain_updates["bias"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle", "warmup_constant", "warmup_cosine"])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_short_runs_learn(schedule, warmup_fraction, num_steps):
    rate = build_schedule(make_config(schedule=schedule, warmup_fraction=warmup_fraction), num_steps)
    rates = [float(rate(step)) for step in range(num_steps)]
    assert all(0 <= value <= 1.001e-3 for value in rates)
    assert max(rates) > 0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 1.0, 50: 1.0, 100: 1.0}),
        ("cosine", {0: 1.0, 25: (1 + math.cos(math.pi / 4)) / 2, 50: 0.5, 100: 0.0}),
        ("one_cycle", {0: 1 / 25, 30: 1.0, 100: 1 / 25 / 1e4}),
        ("warmup_constant", {0: 0.0, 5: 0.25, 20: 1.0, 100: 1.0}),
        ("warmup_cosine", {0: 0.0, 5: 0.25, 20: 1.0, 60: 0.5, 100: 0.0}),
    ],
)
def test_schedules_pass_through_their_points(schedule, expected):
    rate = build_schedule(make_config(schedule=schedule, learning_rate=1.0, warmup_fraction=0.2), num_steps=100)
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, atol=1e-6)


HELD = {"learning_rate": 0.03, "weight_decay": 0.2, "momentum": 0.6, "b1": 0.5, "b2": 0.9}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle", "warmup_constant", "warmup_cosine"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_the_state_can_hold_the_hyperparameters(optimizer, schedule):
    values = {name: HELD[name] for name in HYPERPARAMETERS[optimizer]}
    config = make_config(optimizer=optimizer, schedule=schedule, learning_rate=0.1, clip_norm=2.0)
    tx = build_optimizer(config, len(GRADS), hyperparameters=tuple(values))
    params, opt_state = PARAMS, tx.init(PARAMS)
    assert {name: float(value) for name, value in opt_state.hyperparams.items()} == {
        name: np.float32(getattr(config, name)) for name in values
    }
    opt_state = opt_state._replace(hyperparams={name: jnp.float32(value) for name, value in values.items()})
    for grad in GRADS:
        updates, opt_state = tx.update(jax.tree.map(jnp.float32, grad), opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
    expected = run(dataclasses.replace(config, **values))
    for name in PARAMS:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["momentum", "dropout_rate"])
def test_the_state_holds_only_what_the_optimizer_uses(name):
    message = f"^hyperparameters of adam must be some of learning_rate, weight_decay, b1, b2, got {name}$"
    with pytest.raises(InputError, match=message):
        build_optimizer(make_config(), 1, hyperparameters=(name,))


def test_the_same_choices_give_the_same_object_whatever_else_differs():
    config = TrainConfig(optimizer="adamw", schedule="cosine")
    tx = build_optimizer(config, 10)
    assert build_optimizer(dataclasses.replace(config, seed=3, workdir="x", batch_size=7), 10) is tx
    assert build_optimizer(config, 11) is not tx
    assert build_optimizer(dataclasses.replace(config, learning_rate=0.5), 10) is not tx
    constant = TrainConfig()
    assert build_optimizer(constant, 10) is build_optimizer(constant, 20)  # which has no schedule to span
