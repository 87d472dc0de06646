import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close
from flax import linen as nn
from jax import lax

from mnist_jax.models.conv import conv_examples_innermost, conv_general_dilated, max_pool_examples_innermost

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


def innermost(x):
    return x.transpose(3, 1, 2, 0)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("side", [2, 3, 5])
@pytest.mark.parametrize("crop", [1, 2, 3])
def test_with_the_examples_innermost_it_is_that_of_lax(padding, side, crop):
    x, w = normal(4, 11, 12, 3), normal(side, side, 3, 5, seed=1)

    def ours(x, w):
        return conv_examples_innermost(innermost(x), w, padding, crop)

    def theirs(x, w):
        x = innermost(lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=NHWC))
        return x[:, : x.shape[1] // crop * crop, : x.shape[2] // crop * crop]

    np.testing.assert_allclose(ours(x, w), theirs(x, w), rtol=1e-4, atol=1e-4)
    gradients = (jax.grad(lambda x, w, f=f: jnp.sum(jnp.sin(f(x, w))), argnums=(0, 1))(x, w) for f in (ours, theirs))
    assert_trees_close(*gradients, rtol=1e-3, atol=1e-4)
    tangents = normal(*x.shape, seed=2), normal(*w.shape, seed=3)
    forward = (jax.jvp(f, (x, w), tangents)[1] for f in (ours, theirs))
    assert_trees_close(*forward, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pooling_and_its_gradient_are_those_of_flax(size):
    x = normal(4, 6, 12, 3)

    def theirs(x):
        return innermost(nn.max_pool(x, (size, size), strides=(size, size)))

    def ours(x):
        return max_pool_examples_innermost(innermost(x), size)

    np.testing.assert_array_equal(ours(x), theirs(x))
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_with_the_examples_innermost_many_kernels_are_those_of_each():
    x, kernels = innermost(normal(9, 8, 8, 1)), normal(3, 3, 3, 1, 2, seed=1)
    together = jax.vmap(conv_examples_innermost, in_axes=(None, 0))(x, kernels)
    np.testing.assert_allclose(together, [conv_examples_innermost(x, w) for w in kernels], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "by_lax"), [("cpu", False), ("cuda", True), ("tpu", True)])
@pytest.mark.parametrize("crop", [1, 2])
def test_with_the_examples_innermost_each_platform_has_a_lowering(platform, by_lax, crop):
    x, w = normal(1, 9, 9, 8), normal(3, 3, 1, 4)
    traced = jax.jit(conv_examples_innermost, static_argnums=(2, 3)).trace(x, w, "SAME", crop)
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in lowered) == by_lax
    assert f"tensor<4x{9 // crop * crop}x{9 // crop * crop}x8xf32>" in lowered
