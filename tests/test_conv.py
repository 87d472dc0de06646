import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close
from flax import linen as nn
from jax import lax

from mnist_jax.conv import conv_general_dilated, conv_pool_features

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", ["VALID", "SAME", ((1, 2), (0, 3)), ((1, -1), (0, -2))])
def test_values_and_gradients_are_those_of_lax(channels, strides, padding):
    x, w = normal(2, 9, 8, channels), normal(3, 2, channels, 4, seed=1)

    def loss(conv):
        return lambda x, w: jnp.sum(jnp.sin(conv(x, w, strides, padding, dimension_numbers=NHWC)))

    ours, theirs = (
        jax.value_and_grad(loss(conv), argnums=(0, 1)) for conv in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert_trees_close(ours(x, w), theirs(x, w), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3, 4, 4), {"rhs_dilation": (2, 2), "dimension_numbers": NHWC}),
        ((3, 3, 4, 4), {"lhs_dilation": (2, 1), "dimension_numbers": NHWC}),
        ((3, 3, 2, 4), {"feature_group_count": 2, "dimension_numbers": NHWC}),
        ((4, 9, 3, 3), {}),
    ],
    ids=["dilated kernel", "dilated image", "grouped", "NCHW"],
)
def test_what_it_does_not_lower_itself_is_left_to_lax(kernel, options):
    x, w = normal(2, 9, 9, 4), normal(*kernel, seed=1)
    no_padding = ((0, 0), (0, 0))
    expected = lax.conv_general_dilated(x, w, (1, 1), no_padding, **options)
    np.testing.assert_array_equal(conv_general_dilated(x, w, (1, 1), no_padding, **options), expected)


@pytest.mark.parametrize(("platform", "by_lax"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_each_platform_gets_its_own_lowering(platform, by_lax):
    def gradient(x, w):
        return jax.grad(lambda w: jnp.sum(conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=NHWC) ** 2))(w)

    traced = jax.jit(gradient).trace(normal(2, 9, 9, 1), normal(3, 3, 1, 4))
    assert ("stablehlo.convolution" in traced.lower(lowering_platforms=(platform,)).as_text()) == by_lax


def test_the_type_of_the_result_may_be_asked_for():
    x, w = normal(2, 9, 9, 4).astype(jnp.bfloat16), normal(3, 3, 4, 4).astype(jnp.bfloat16)
    options = {"dimension_numbers": NHWC, "preferred_element_type": jnp.float32}
    found = conv_general_dilated(x, w, (1, 1), "VALID", **options)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, lax.conv_general_dilated(x, w, (1, 1), "VALID", **options), rtol=1e-2, atol=1e-2)


def test_under_vmap_and_in_a_scan_it_is_the_same():
    x, w = normal(5, 2, 9, 9, 3), normal(5, 3, 3, 3, 4)

    def conv(x, w):
        return conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=NHWC)

    expected = [conv(x[index], w[index]) for index in range(5)]
    np.testing.assert_allclose(jax.vmap(conv)(x, w), expected, rtol=1e-5, atol=1e-5)
    _, scanned = lax.scan(lambda carry, pair: (carry, conv(*pair)), None, (x, w))
    np.testing.assert_allclose(scanned, expected, rtol=1e-5, atol=1e-5)


def plain_features(image, layers):
    x = image
    for kernel, bias in layers:
        x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC) + bias[None, None, None]
        x = nn.relu(nn.max_pool(x, (2, 2), strides=(2, 2)))
    return x.reshape(x.shape[0], -1)


@pytest.mark.parametrize("batch_size", [3, 8, 11])  # fewer than 8 examples take another path
@pytest.mark.parametrize("sides", [(3, 2), (4, 3)])  # an odd row is left out after the first and the second layer
def test_features_and_their_gradients_are_those_of_plain_layers(batch_size, sides):
    image = normal(batch_size, 15, 14, 2)
    shapes = (sides[0], sides[0], 2, 3), (sides[1], sides[1], 3, 4)
    layers = [(normal(*shape, seed=seed), normal(shape[-1], seed=seed + 2)) for seed, shape in enumerate(shapes)]

    def loss(features):
        return lambda image, layers: jnp.sum(jnp.sin(features(image, layers)))

    np.testing.assert_allclose(conv_pool_features(image, layers), plain_features(image, layers), rtol=1e-4, atol=1e-4)
    ours, theirs = (jax.grad(loss(features), argnums=(0, 1)) for features in (conv_pool_features, plain_features))
    assert_trees_close(ours(image, layers), theirs(image, layers), rtol=1e-3, atol=1e-4)


def test_features_differentiate_forward_too():
    image, layers = normal(8, 6, 6, 1), [(normal(3, 3, 1, 2, seed=1), normal(2, seed=2))]
    tangents = normal(8, 6, 6, 1, seed=3), [(normal(3, 3, 1, 2, seed=4), normal(2, seed=5))]
    ours, theirs = (jax.jvp(f, (image, layers), tangents)[1] for f in (conv_pool_features, plain_features))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_features_of_many_models_are_those_of_each():
    image, kernels, biases = normal(9, 8, 8, 1), normal(3, 3, 3, 1, 2, seed=1), normal(3, 2, seed=2)
    together = jax.vmap(lambda *layer: conv_pool_features(image, [layer]))(kernels, biases)
    each = [conv_pool_features(image, [layer]) for layer in zip(kernels, biases, strict=True)]
    np.testing.assert_allclose(together, each, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "by_lax"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_features_have_a_lowering_for_each_platform(platform, by_lax):
    traced = jax.jit(conv_pool_features).trace(normal(8, 9, 9, 1), [(normal(3, 3, 1, 4), normal(4))])
    assert ("stablehlo.convolution" in traced.lower(lowering_platforms=(platform,)).as_text()) == by_lax
