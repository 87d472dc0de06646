"""Implements convolution and pooling for the CNN with the examples innermost (``CHWN``), as in cuda-convnet.

    x = max_pool_chwn(conv_chwn(x, kernel), 2)   # [channels, height, width, B]

On GPU and TPU the convolution is ``lax.conv_general_dilated``. On CPU it is a matrix product of patches, because XLA
runs a convolution inside ``lax.scan`` or ``lax.fori_loop`` tens of times slower than outside. With the examples
innermost, patches, pooling and their gradients copy and compare whole vectors. ``benchmarks/README.md`` has the
measurements.

Reference: https://github.com/jax-ml/jax/issues/12868; the layout is from cuda-convnet (Krizhevsky, 2012).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def conv_chwn(x: jax.Array, kernel: jax.Array, padding: str = "VALID", crop: int = 1) -> jax.Array:
    """Convolves images with a kernel, with stride 1.

    Args:
        x: ``[channels, height, width, B]``.
        kernel: ``[rows, columns, channels, features]``.
        padding: ``VALID``, or ``SAME`` to pad the image with zeros.
        crop: crops height and width of the result to multiples of this number, as pooling would.

    Returns:
        ``[features, height, width, B]``.

    Example:
        >>> conv_chwn(jnp.ones((1, 28, 28, 4)), jnp.ones((5, 5, 1, 8))).shape
        (8, 24, 24, 4)
    """

    def by_lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # XLA chooses the memory layout itself, so the logical order of the axes costs nothing.
        x = lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("CHWN", "HWIO", "CHWN"))
        return x[:, : x.shape[1] // crop * crop, : x.shape[2] // crop * crop]

    def by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
        rows, columns, _, features = kernel.shape
        pads = lax.padtype_to_pads(x.shape[1:3], (rows, columns), (1, 1), padding)
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        height, width = ((n - k + 1) // crop * crop for n, k in zip(x.shape[1:3], (rows, columns), strict=True))
        # In two stages, rows and then columns: 10 slices for a 5x5 kernel instead of 25.
        x = jnp.stack([x[:, i : i + height] for i in range(rows)])
        x = jnp.stack([x[:, :, :, j : j + width] for j in range(columns)], axis=1)
        x = x.reshape(kernel.size // features, -1)
        x = lax.dot_general(kernel.reshape(-1, features), x, (((0,), (0,)), ((), ())))
        return x.reshape(features, height, width, -1)

    return lax.platform_dependent(x, kernel, cpu=by_patches, default=by_lax)


def max_pool_chwn(x: jax.Array, size: int) -> jax.Array:
    """Takes the maximum over squares of ``size`` x ``size`` pixels of ``[channels, height, width, B]``.

    Height and width must be multiples of ``size``.
    """
    # The gradient of a split is one concatenation; slices pad and add, and the gradient of lax.reduce_window takes
    # four times as long.
    channels, height, width, _ = x.shape
    x = x.reshape(channels, height // size, size, width // size, size, -1)
    for axis in (2, 4):
        x = functools.reduce(jnp.maximum, jnp.split(x, size, axis=axis))
    return x.reshape(channels, height // size, width // size, -1)


class ConvCHWN(nn.Module):
    """Convolves ``[channels, height, width, B]`` with the parameters of an ``nn.Conv``, and takes maxima."""

    features: int
    size: int
    pool: int
    padding: str
    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[channels, height, width, B]`` to ``[features, height, width, B]``, smaller by ``pool``."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size, self.size, x.shape[0], self.features))
        x = max_pool_chwn(self.convolve(x, kernel), self.pool)
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return x + bias.astype(x.dtype)[:, None, None, None]  # after pooling: less work, the same result

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolves without bias; a method, so that per-example gradients can intercept it."""
        return conv_chwn(x, kernel.astype(x.dtype), self.padding, crop=self.pool)
