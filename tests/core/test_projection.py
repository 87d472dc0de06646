"""Projections are linear and unbiased; dot products are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_split

from mnist_jax import (
    CNN,
    Split,
    create_train_state,
    gradient_similarity,
    per_example_gradients,
    per_example_projected_gradients,
)
from mnist_jax.core.layer_rules import Factors
from mnist_jax.core.projection import _draw_map

SPLIT = make_split(7)
OTHER = make_split(3, seed=1)


@pytest.fixture(scope="module")
def state():
    return create_train_state(
        CNN(channels=(2,), kernel_sizes=(5,), pool_sizes=(4,), dense_size=6), optax.sgd(0.1), jax.random.key(0)
    )


def flat_gradients(state, split):
    leaves = jax.tree.leaves(per_example_gradients(state, split))
    return np.concatenate([np.asarray(leaf).reshape(split.num_examples, -1) for leaf in leaves], axis=1)


@pytest.mark.parametrize("other", [None, OTHER])
def test_similarities_are_dot_products(state, other):
    expected = flat_gradients(state, SPLIT) @ flat_gradients(state, SPLIT if other is None else other).T
    found = gradient_similarity(state, SPLIT, other, batch_size=3)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


FACTORED = Factors(jnp.zeros((4, 1, 30)), jnp.zeros((4, 1, 20)))  # projected on both sides
SUMMED = Factors(jnp.zeros((4, 60, 6)), jnp.zeros((4, 60, 5)))  # formed
FORMED = jnp.zeros((4, 3, 7))


@pytest.mark.parametrize("shape", [FACTORED, SUMMED, FORMED], ids=["factored", "summed", "formed"])
@pytest.mark.parametrize("size", [1, 8])
def test_dot_products_of_projections_have_the_right_mean_and_spread(shape, size):
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) + 0.3, jnp.float32), shape)
    flat = np.asarray(gradients.form() if isinstance(gradients, Factors) else gradients).reshape(4, -1)
    keys = jax.random.split(jax.random.key(1), 4000)
    projected = np.asarray(jax.jit(jax.vmap(lambda key: _draw_map(shape, key, size)(gradients)))(keys))
    assert projected.shape == (4000, 4, size)
    found = np.einsum("kid,kjd->kij", projected, projected)
    scale = np.outer(*[np.linalg.norm(flat, axis=1)] * 2)
    assert (np.abs(found.mean(axis=0) - flat @ flat.T) < 5 * np.sqrt(8 / size / 4000) * scale).all()
    assert (found.std(axis=0) < 1.05 * np.sqrt(8 / size) * scale).all()


def test_projections_are_linear_and_add_up_over_parameters(state):
    key = jax.random.key(2)
    whole = per_example_projected_gradients(state, SPLIT, key, 40, batch_size=3)
    assert (whole.shape, whole.dtype) == ((7, 40), jnp.float32)
    np.testing.assert_allclose(per_example_projected_gradients(state, SPLIT, key, 40), whole, rtol=1e-4, atol=1e-5)
    parts = [
        per_example_projected_gradients(state, SPLIT, key, 40, where=where)
        for where in ("Conv_0", "Dense_0", "Dense_1")
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-4, atol=1e-5)
    again = Split(SPLIT.image[2:4], SPLIT.label[2:4])
    np.testing.assert_allclose(per_example_projected_gradients(state, again, key, 40), whole[2:4], rtol=1e-4, atol=1e-5)
    assert np.abs(per_example_projected_gradients(state, SPLIT, jax.random.key(3), 40) - whole).max() > 1e-3


def test_a_large_projection_keeps_the_order_of_neighbours(state):
    exact = np.asarray(gradient_similarity(state, SPLIT))
    projected = np.asarray(per_example_projected_gradients(state, SPLIT, jax.random.key(4), 4096))
    scale = np.outer(*[np.sqrt(np.diag(exact))] * 2)
    assert np.abs(projected @ projected.T - exact).max() < (0.15 * scale).max()


def test_a_size_below_one_is_refused(state):
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        per_example_projected_gradients(state, SPLIT, jax.random.key(0), 0)
