"""Gradient norms and projections for any kind of model, on devices, under ``jit`` and for populations."""

import operator

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, make_split
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mnist_jax import (
    CNN,
    MLP,
    Split,
    create_train_state,
    gradient_similarity,
    one_example_gradient_norm,
    per_example_gradient_norms,
    per_example_gradients,
    per_example_losses,
    per_example_margins,
    per_example_projected_gradients,
)
from mnist_jax.core.factors import select_parameters
from mnist_jax.core.gradient_norms import _map_norms

SPLIT = make_split(11)
TX, KEY = optax.sgd(0.1), jax.random.key(5)


def make_mlp(ema_decay=None):
    return create_train_state(MLP(hidden_sizes=(8,), batch_norm=True), TX, jax.random.key(3), ema_decay=ema_decay)


def make_cnn():
    return create_train_state(CNN(channels=(3,), kernel_sizes=(5,), pool_sizes=(4,), dense_size=8), TX, KEY)


def make_equinox():
    mlp = equinox.nn.MLP(784, 10, width_size=4, depth=1, key=KEY)
    return create_train_state(equinox.nn.Sequential([equinox.nn.Lambda(jnp.ravel), mlp]), TX, KEY)


class Net(nnx.Module):
    def __init__(self):
        self.logits = nnx.Linear(784, 10, rngs=nnx.Rngs(0))

    def __call__(self, image):
        return self.logits(image.reshape(-1, 784))


def make_nnx():
    return create_train_state(Net(), TX, KEY)


def norms_of(gradients):
    squares = (jnp.sum(leaf.reshape(leaf.shape[0], -1) ** 2, axis=1) for leaf in jax.tree.leaves(gradients))
    return jnp.sqrt(sum(squares))


@pytest.mark.parametrize("make_state", [make_mlp, make_cnn, make_equinox, make_nnx])
def test_norms_are_those_of_the_gradients(make_state):
    state = make_state()
    gradients = per_example_gradients(state, SPLIT, batch_size=4)
    assert jax.tree.structure(gradients) == jax.tree.structure(state.params)
    for leaf, param in zip(jax.tree.leaves(gradients), jax.tree.leaves(state.params), strict=True):
        assert (leaf.shape, leaf.dtype) == ((11, *param.shape), param.dtype)
    assert_trees_close(per_example_gradients(state, SPLIT), gradients)  # in one batch
    norms = per_example_gradient_norms(state, SPLIT, batch_size=4)
    assert (norms.shape, norms.dtype) == ((11,), jnp.float32)
    np.testing.assert_allclose(norms, norms_of(gradients), rtol=1e-5)


def test_parameters_are_chosen_by_path():
    state = make_cnn()
    gradients = per_example_gradients(state, SPLIT)
    for where in ("Conv_0", "Dense_1/bias", lambda name: name.endswith("kernel")):
        chosen = per_example_gradients(state, SPLIT, where=where)
        np.testing.assert_allclose(per_example_gradient_norms(state, SPLIT, where=where), norms_of(chosen), rtol=1e-5)
        assert 0 < len(jax.tree.leaves(chosen)) < len(jax.tree.leaves(gradients))
        expected = jax.tree.map(lambda x, y: None if x is None else y, chosen, gradients, is_leaf=lambda x: x is None)
        assert jax.tree.structure(chosen) == jax.tree.structure(expected)
        assert_trees_close(chosen, expected)
    assert chosen["Dense_0"]["bias"] is None
    with pytest.raises(
        ValueError, match=r"where must select a parameter, got 'Dense_9' for the parameters Conv_0/bias"
    ):
        per_example_gradient_norms(state, SPLIT, where="Dense_9")


def test_the_norm_of_one_example_is_mapped_over_many():
    state = make_cnn()
    mapped = jax.jit(jax.vmap(one_example_gradient_norm(state), in_axes=(None, 0, 0)))
    expected = per_example_gradient_norms(state, SPLIT)
    np.testing.assert_allclose(mapped(state.params, *SPLIT), expected, rtol=1e-5)


def test_memory_grows_with_the_batch_not_with_the_split():
    state = make_cnn()
    split = make_split(64)
    names = select_parameters(state.params, None)

    def temporary_bytes(batch_size):
        compiled = _map_norms.lower(state, split, names, batch_size, None).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = [temporary_bytes(batch_size) for batch_size in (8, 16)]
    assert 1.5 * sizes[0] < sizes[1] < 2.5 * sizes[0]


def test_the_averaged_parameters_are_evaluated():
    state = make_mlp(ema_decay=0.9)
    average = jax.tree.map(lambda x: x * 1.5, state.params)
    expected = per_example_gradient_norms(state.replace(params=average, ema_params=None), SPLIT)
    np.testing.assert_allclose(
        per_example_gradient_norms(state.replace(ema_params=average), SPLIT), expected, rtol=1e-6
    )


def test_the_mean_is_the_gradient_of_the_mean_loss():
    state = make_mlp()
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), per_example_gradients(state, SPLIT))
    gradient = jax.jit(jax.grad(lambda params: per_example_losses(state.replace(params=params), SPLIT).mean()))
    assert_trees_close(mean, gradient(state.params), rtol=1e-5, atol=1e-6)


def test_bad_splits_and_sizes_are_refused():
    state = make_mlp()
    with pytest.raises(ValueError, match="the split to evaluate must have at least one example, got none"):
        per_example_gradient_norms(state, Split(SPLIT.image[:0], SPLIT.label[:0]))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        per_example_gradients(state, SPLIT, batch_size=0)
    with pytest.raises(ValueError, match=r"label must be in \[0, 10\), the classes of the model, got \d+"):
        gradient_similarity(state, SPLIT, SPLIT._replace(label=SPLIT.label + 11 * (SPLIT.label == SPLIT.label[0])))


def run_all(state, split=SPLIT, sharding=None):
    options = {"batch_size": 4, "sharding": sharding}
    return (
        per_example_losses(state, split, **options),
        per_example_margins(state, split, **options),
        per_example_gradient_norms(state, split, **options),
        per_example_gradients(state, split, **options),
        per_example_projected_gradients(state, split, KEY, 16, **options),
        gradient_similarity(state, split, Split(split.image[:5], split.label[:5]), **options),
    )


def run_on(make_state, num_devices, axis_type=AxisType.Auto):
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:num_devices])
    state, split = jax.device_put((make_state(), SPLIT), NamedSharding(mesh, PartitionSpec()))
    found = run_all(state, split, NamedSharding(mesh, PartitionSpec("data")))
    for leaf in jax.tree.leaves(found):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == num_devices
    return found


@pytest.mark.parametrize(
    ("make_state", "axis_type"),
    [
        (make_mlp, AxisType.Auto),
        pytest.param(make_cnn, AxisType.Auto, marks=pytest.mark.slow),
        pytest.param(make_cnn, AxisType.Explicit, marks=pytest.mark.slow),
    ],
)
def test_two_devices_give_the_numbers_of_one(make_state, axis_type):
    assert_trees_close(run_on(make_state, 2, axis_type), run_all(make_state()), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(run_on_eight_devices):
    run_on_eight_devices(__file__)


@pytest.mark.parametrize("make_state", [make_mlp, pytest.param(make_cnn, marks=pytest.mark.slow)])
def test_a_population_is_its_members_one_by_one_also_under_jit(make_state):
    states = [make_state().replace(params=jax.tree.map(lambda x, f=f: x * f, make_state().params)) for f in (1.0, 1.3)]
    population = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state.replace(key=KEY) for state in states))
    found = jax.jit(jax.vmap(run_all))(population)
    for index, state in enumerate(states):
        member = jax.tree.map(operator.itemgetter(index), found)
        assert_trees_close(member, run_all(state), rtol=1e-4, atol=1e-5)
