import functools

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close

from mnist_jax import CNN, MLP, InputError, TrainConfig, build_model, count_parameters

IMAGE = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)


def init(model):
    return jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"])


def apply(model, params):
    return jax.jit(model.apply)({"params": params}, IMAGE)


def relu(x):
    return np.maximum(x, 0)


def test_mlp_is_matrices_and_relu():
    model = MLP(hidden_sizes=(7, 5))
    params = init(model)
    x = IMAGE.reshape(3, -1)
    for name in ("Dense_0", "Dense_1"):
        x = relu(x @ params[name]["kernel"] + params[name]["bias"])
    expected = x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
    np.testing.assert_allclose(apply(model, params), expected, rtol=1e-4, atol=1e-5)


def test_cnn_is_loops_over_windows():
    model = CNN(channels=(2, 3), kernel_sizes=(5, 2), dense_size=4)
    params = init(model)
    x = IMAGE
    for name, size, pooled in (("Conv_0", 5, 12), ("Conv_1", 2, 5)):  # an 11th row and column are left out
        convolved = np.zeros((3, 2 * pooled, 2 * pooled, params[name]["bias"].size))
        for i, j in np.ndindex(2 * pooled, 2 * pooled):
            convolved[:, i, j] = np.tensordot(x[:, i : i + size, j : j + size], params[name]["kernel"], 3)
        x = np.zeros((3, pooled, pooled, params[name]["bias"].size))
        for i, j in np.ndindex(pooled, pooled):
            x[:, i, j] = convolved[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
        x = relu(x + params[name]["bias"])
    assert x.shape == (3, 5, 5, 3)
    x = relu(x.reshape(3, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    expected = x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(apply(model, params), expected, rtol=1e-4, atol=1e-5)


class Plain(fnn.Module):
    """The same CNN of Flax's own layers, which lie the usual way."""

    model: CNN

    @fnn.compact
    def __call__(self, x, train):
        model = self.model
        pool_sizes = model.pool_sizes * (len(model.channels) if len(model.pool_sizes) == 1 else 1)

        def normalise(x):
            return fnn.BatchNorm(use_running_average=not train)(x) if model.batch_norm else x

        for channels, size, pool in zip(model.channels, model.kernel_sizes, pool_sizes, strict=True):
            x = fnn.Conv(channels, (size, size), padding=model.padding.upper(), use_bias=not model.batch_norm)(x)
            x = fnn.relu(normalise(fnn.max_pool(x, (pool, pool), strides=(pool, pool))))
        if model.dense_size:
            x = fnn.Dense(model.dense_size, use_bias=not model.batch_norm)(x.reshape(x.shape[0], -1))
            x = fnn.relu(normalise(x))
        else:
            x = x.mean(axis=(1, 2))
        return fnn.Dense(model.num_classes)(x)


@pytest.mark.parametrize("sizes", [{"pool_sizes": (1, 2)}, {"pool_sizes": (1, 2, 1)}, {"kernel_sizes": (3,)}], ids=str)
def test_a_size_for_each_convolution_or_one_for_all(sizes):
    message = r"^kernel_sizes and pool_sizes must be as long as channels \(2, 2, 2, 2\), got \(3"
    with pytest.raises(InputError, match=message):
        init(CNN(**{"channels": (2,) * 4, "kernel_sizes": (3,) * 4} | sizes))


@pytest.mark.parametrize(
    ("padding", "dense_size", "batch_norm", "pool_sizes"),
    [
        ("valid", 4, False, (1, 3, 1)),
        pytest.param("same", 0, False, (2,), marks=pytest.mark.slow),
        pytest.param("valid", 0, True, (2,), marks=pytest.mark.slow),
        ("same", 4, True, (1, 3, 1)),
    ],
)
def test_cnn_is_that_of_flax(padding, dense_size, batch_norm, pool_sizes):
    model = CNN((2, 3, 4), (5, 2, 2), pool_sizes, padding, dense_size, batch_norm, dropout_rate=0.0)
    plain = Plain(model)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    shapes = jax.eval_shape(functools.partial(plain.init, train=False), jax.random.key(0), IMAGE)
    assert jax.tree.structure(variables) == jax.tree.structure(shapes)
    for train in (False, True):

        def loss(params, model, train=train):
            variables_now = {**variables, "params": params}
            logits, changed = model.apply(variables_now, IMAGE, train=train, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(logits)), (logits, changed)

        gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
        ours, theirs = (gradient(variables["params"], one) for one in (model, plain))
        assert_trees_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_mlp_with_batch_norm_normalises_over_the_batch():
    model = MLP(hidden_sizes=(7,), batch_norm=True, dropout_rate=0.0)
    variables = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), IMAGE))
    params = variables["params"]
    assert set(params["Dense_0"]) == {"kernel"}
    x = IMAGE.reshape(3, -1) @ params["Dense_0"]["kernel"]
    normal = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    for train, hidden in ((True, relu(normal)), (False, relu(x / np.sqrt(1 + 1e-5)))):
        expected = hidden @ params["Dense_1"]["kernel"]
        found, _ = model.apply(variables, IMAGE, train=train, mutable=["batch_stats"])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "model", [MLP(hidden_sizes=(400,), dropout_rate=0.5), CNN(channels=(2,), kernel_sizes=(3,), dropout_rate=0.5)]
)
def test_dropout_acts_in_training_alone_and_keeps_the_mean(model):
    params = init(model)
    plain = apply(model, params)
    keys = jax.random.split(jax.random.key(1), 400)

    def drop(key):
        return model.apply({"params": params}, IMAGE, train=True, rngs={"dropout": key})

    dropped = jax.jit(jax.vmap(drop))(keys)
    assert np.std(dropped, axis=0).min() > 0
    np.testing.assert_allclose(dropped.mean(axis=0), plain, atol=6 * np.std(dropped, axis=0).max() / np.sqrt(400))
    np.testing.assert_array_equal(apply(model, params), plain)


@pytest.mark.parametrize("kind", [MLP, CNN])
def test_bfloat16_layers_have_float32_parameters_and_logits(kind):
    params = init(kind())
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, init(kind(dtype=jnp.bfloat16))))
    exact, rounded = (apply(kind(dtype=dtype), params) for dtype in (None, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    assert np.any(exact != rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainConfig(dtype="bfloat16"), MLP(dtype=jnp.dtype("bfloat16"))),
        (TrainConfig(), MLP(hidden_sizes=(512, 256), dropout_rate=0.2)),
        (TrainConfig(hidden_sizes=(), dropout_rate=0.0), MLP(hidden_sizes=(), dropout_rate=0.0)),
        (TrainConfig(model="cnn"), CNN(channels=(24, 32), kernel_sizes=(5, 3), dense_size=256, dropout_rate=0.2)),
    ],
)
def test_build_model(config, expected):
    assert build_model(config) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (MLP(), 784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10),
        (CNN(), 25 * 24 + 24 + 9 * 24 * 32 + 32 + 800 * 256 + 256 + 256 * 10 + 10),
    ],
)
def test_count_parameters(model, expected):
    assert count_parameters(init(model)) == expected


def test_a_kernel_larger_than_what_is_left_is_named():
    for sizes in ({"kernel_sizes": (5, 13)}, {"kernel_sizes": (3, 3), "pool_sizes": (2, 20), "padding": "same"}):
        with pytest.raises(InputError, match=r"^kernel_sizes and pool_sizes must fit into the image, "):
            init(CNN(**sizes))
    assert_trees_close(init(CNN(channels=(2, 3), kernel_sizes=(5, 11)))["Conv_1"]["bias"], np.zeros(3))
