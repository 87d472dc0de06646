"""Dropout against a loop in NumPy over the same random words, and what it does to a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import CNN, MLP
from mnist_jax.models.dropout import dropout


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("rate", [0.2, 0.5, 1e-5, 1.0])
def test_a_number_is_kept_if_its_16_bits_are_low(rate, size):
    key, x = jax.random.key(3), np.random.default_rng(0).normal(size=(4, size)).astype(np.float32)
    words = np.asarray(jax.random.bits(key, (4, 3), jnp.uint32))
    kept = round((1 - rate) * 65536)
    expected = np.zeros_like(x)
    for row, column in np.ndindex(4, size):
        word = int(words[row, column % 3])
        if (word % 65536 if column < 3 else word // 65536) < kept:
            expected[row, column] = x[row, column] * 65536 / kept
    np.testing.assert_allclose(dropout(x, rate, key), expected, rtol=1e-6)


def test_the_share_that_is_dropped_and_the_mean():
    x = np.asarray(dropout(jnp.ones((1000, 1000)), 0.2, jax.random.key(0)))
    assert np.mean(x == 0) == pytest.approx(0.2, abs=4 * 0.4 / 1000)  # four standard errors
    assert x.mean() == pytest.approx(1, abs=4 * 0.5 / 1000)
    halves = x == 0
    np.testing.assert_allclose(np.corrcoef(halves[:, :500].ravel(), halves[:, 500:].ravel())[0, 1], 0, atol=4 / 707)


def test_each_key_of_many_gives_what_it_gives_alone():
    keys, x = jax.random.split(jax.random.key(0), 3), jnp.ones((2, 7), jnp.bfloat16)
    together = jax.vmap(lambda key: dropout(x, 0.4, key))(keys)
    assert together.dtype == jnp.bfloat16
    np.testing.assert_array_equal(together, [dropout(x, 0.4, key) for key in keys])


@pytest.mark.parametrize(
    "model", [MLP(hidden_sizes=(6,), dropout_rate=0.5), CNN((2,), (5,), (4,), dense_size=6, dropout_rate=0.5)]
)
def test_a_network_drops_the_inputs_of_its_last_layer_in_training_only(model):
    image, rngs = jnp.ones((2, 28, 28, 1)), {"dropout": jax.random.key(1)}
    params = model.init(jax.random.key(0), image)["params"]
    last = max(name for name in params if name.startswith("Dense"))
    hidden = model.bind({"params": params | {last: {"kernel": jnp.eye(6, 10), "bias": jnp.zeros(10)}}})
    expected, found = hidden(image)[:, :6], hidden.apply(hidden.variables, image, train=True, rngs=rngs)[:, :6]
    assert np.sum(np.asarray(found) != np.asarray(expected)) > 0
    for drawn, value in zip(np.ravel(found), np.ravel(expected), strict=True):
        assert drawn in (0, pytest.approx(2 * value))
    np.testing.assert_array_equal(hidden(image), hidden.apply(hidden.variables, image, rngs=rngs))
