"""Steps, epochs and evaluation on a mesh give the numbers of one device."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, make_split
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mnist_jax import (
    CNN,
    MLP,
    AccumulatedGradient,
    Augmentation,
    Split,
    create_train_state,
    eval_step,
    evaluate_dataset,
    train_epoch,
    train_step,
    train_steps,
)

SPLIT = make_split(45)
# Batch norm, dropout, EMA and augmentation; microbatches, batches that no number of devices here divides, and masks.
BATCH_SIZE, MICROBATCH_SIZE = 14, 5
TX = optax.sgd(0.02)


def make_mlp():
    model = MLP(hidden_sizes=(8,), batch_norm=True, dropout_rate=0.3)
    return create_train_state(model, TX, jax.random.key(3), ema_decay=0.9, augment=Augmentation(shift=2.0))


def make_cnn():
    model = CNN(channels=(3,), kernel_sizes=(5,), pool_sizes=(4,), dense_size=8, batch_norm=True, dropout_rate=0.3)
    gradient_fn = AccumulatedGradient(MICROBATCH_SIZE)
    return create_train_state(model, TX, jax.random.key(3), ema_decay=0.9, gradient_fn=gradient_fn)


def run_on(make_state, num_devices, axis_type=AxisType.Auto):
    """Trains two epochs, the second in two parts, and evaluates; returns what must not depend on the devices."""
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:num_devices])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    state, split = jax.device_put((make_state(), SPLIT), NamedSharding(mesh, PartitionSpec()))
    state, first = train_epoch(state, split, BATCH_SIZE, sharding=sharding, record=True)
    for num_steps in (1, 3):
        state, metrics = train_epoch(state, split, BATCH_SIZE, jnp.int32(num_steps), sharding=sharding)
    evaluation = evaluate_dataset(state, split, BATCH_SIZE, sharding)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == num_devices
    return (
        state.params,
        state.ema_params,
        state.model_state,
        first,
        metrics,
        evaluation.loss,
        evaluation.logits,
    )


@pytest.mark.parametrize("make_state", [make_mlp, make_cnn])
def test_a_batch_spread_over_two_devices_is_the_batch(make_state):
    assert_trees_close(run_on(make_state, 2), run_on(make_state, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_explicit_mesh_gives_the_numbers_of_an_auto_mesh():
    expected = run_on(make_mlp, 1)
    assert_trees_close(run_on(make_mlp, 2, AxisType.Explicit), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_context", [False, True])
def test_a_step_takes_a_batch_on_an_explicit_mesh(in_context):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    batch = {"image": SPLIT.image[:8], "label": SPLIT.label[:8]}
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    state = make_mlp()
    expected, expected_metrics = train_step(state, batch)
    with jax.set_mesh(mesh) if in_context else contextlib.nullcontext():
        found, metrics = train_step(state, spread)
        found_again, _ = jax.jit(train_step)(found, spread)
        order = jnp.arange(8, dtype=jnp.int32)
        _, of_steps, _ = train_steps(state, Split(spread["image"], spread["label"]), order, 8, 0, 1)
        evaluated = eval_step(found, spread)
    assert_trees_close((found.params, metrics), (expected.params, expected_metrics), rtol=1e-5, atol=1e-5)
    assert_trees_close(found_again.params, train_step(expected, batch)[0].params, rtol=1e-5, atol=1e-5)
    assert_trees_close(of_steps, expected_metrics, rtol=1e-5, atol=1e-5)
    assert_trees_close(evaluated, eval_step(expected, batch), rtol=1e-5, atol=1e-5)


def test_without_a_mesh_the_numbers_are_those_of_a_mesh_of_one():
    state, metrics = train_epoch(make_mlp(), SPLIT, BATCH_SIZE, record=True)
    found = run_on(make_mlp, 1)
    assert_trees_close(metrics, found[3])
    evaluation = evaluate_dataset(state, SPLIT, BATCH_SIZE)
    assert evaluation.num_examples == 45
    whole = evaluate_dataset(state, SPLIT)
    np.testing.assert_allclose(whole.logits, evaluation.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_four_and_eight_devices_give_the_numbers_of_one(run_on_eight_devices):
    run_on_eight_devices(__file__)
