import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close
from flax import linen as nn
from jax import lax

from mnist_jax.models.conv import conv_chwn, max_pool_chwn

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def chwn(x):
    return x.transpose(3, 1, 2, 0)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("side", [2, 3, 5])
@pytest.mark.parametrize("crop", [1, 2, 3])
def test_values_and_gradients_are_those_of_lax(padding, side, crop):
    x, w = normal(4, 11, 12, 3), normal(side, side, 3, 5, seed=1)

    def ours(x, w):
        return conv_chwn(chwn(x), w, padding, crop)

    def theirs(x, w):
        x = chwn(lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=NHWC))
        return x[:, : x.shape[1] // crop * crop, : x.shape[2] // crop * crop]

    tangents = normal(*x.shape, seed=2), normal(*w.shape, seed=3)

    @functools.partial(jax.jit, static_argnums=0)
    def values_and_derivatives(f):
        gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), argnums=(0, 1))(x, w)
        return *jax.jvp(f, (x, w), tangents), gradient

    (value, tangent, gradient), expected = values_and_derivatives(ours), values_and_derivatives(theirs)
    np.testing.assert_allclose(value, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tangent, expected[1], rtol=1e-3, atol=1e-3)
    assert_trees_close(gradient, expected[2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_a_kernel_need_not_be_square(channels, padding):
    x, w = normal(2, 9, 8, channels), normal(3, 2, channels, 4, seed=1)

    def ours(x, w):
        return jnp.sum(jnp.sin(conv_chwn(chwn(x), w, padding)))

    def theirs(x, w):
        return jnp.sum(jnp.sin(lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=NHWC)))

    ours, theirs = (jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for f in (ours, theirs))
    assert_trees_close(ours(x, w), theirs(x, w), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pooling_and_its_gradient_are_those_of_flax(size):
    x = normal(4, 6, 12, 3)

    def theirs(x):
        return chwn(nn.max_pool(x, (size, size), strides=(size, size)))

    def ours(x):
        return max_pool_chwn(chwn(x), size)

    np.testing.assert_array_equal(ours(x), theirs(x))
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_one_image_under_many_kernels_is_the_same_one_by_one():
    x, kernels = chwn(normal(9, 8, 8, 1)), normal(3, 3, 3, 1, 2, seed=1)
    together = jax.vmap(conv_chwn, in_axes=(None, 0))(x, kernels)
    np.testing.assert_allclose(together, [conv_chwn(x, w) for w in kernels], rtol=1e-5, atol=1e-5)


def test_under_vmap_and_in_a_scan_it_is_the_same():
    x, w = normal(5, 3, 9, 9, 2), normal(5, 3, 3, 3, 4)
    expected = [conv_chwn(x[index], w[index]) for index in range(5)]
    np.testing.assert_allclose(jax.vmap(conv_chwn)(x, w), expected, rtol=1e-5, atol=1e-5)
    _, scanned = lax.scan(lambda carry, pair: (carry, conv_chwn(*pair)), None, (x, w))
    np.testing.assert_allclose(scanned, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "by_lax"), [("cpu", False), ("cuda", True), ("tpu", True)])
@pytest.mark.parametrize("crop", [1, 2])
def test_each_platform_has_its_own_lowering(platform, by_lax, crop):
    x, w = normal(1, 9, 9, 8), normal(3, 3, 1, 4)

    def lower(function):
        return jax.jit(function).trace(x, w).lower(lowering_platforms=(platform,)).as_text()

    lowered = lower(lambda x, w: conv_chwn(x, w, "SAME", crop))
    assert ("stablehlo.convolution" in lowered) == by_lax
    assert f"tensor<4x{9 // crop * crop}x{9 // crop * crop}x8xf32>" in lowered
    gradient = lower(lambda x, w: jax.grad(lambda w: jnp.sum(conv_chwn(x, w, "SAME", crop) ** 2))(w))
    assert ("stablehlo.convolution" in gradient) == by_lax
