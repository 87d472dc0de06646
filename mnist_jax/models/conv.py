"""The convolution as each platform does it best.

    nn.Conv(24, (5, 5), padding="VALID", conv_general_dilated=conv_general_dilated)   # in a module of your own
    x = max_pool_examples_innermost(conv_examples_innermost(x, kernel), 2)            # what the CNN is made of

On GPU and TPU this is ``lax.conv_general_dilated``. On CPU it is written as patches times a matrix, because XLA runs
a convolution inside ``lax.scan`` or ``lax.fori_loop`` through a loop tens of times slower than outside. The CNN goes
further: its examples lie innermost, ``[channels, height, width, B]``, so that patches, pooling and their gradients
are copies and comparisons of whole vectors. Measured in ``benchmarks/README.md``.

Reference: https://github.com/jax-ml/jax/issues/12868; the layout is that of cuda-convnet (Krizhevsky, 2012).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """``lax.conv_general_dilated``, lowered as the platform that it is compiled for does it best.

    Args:
        lhs: images ``[B, height, width, channels]``.
        rhs: kernel ``[rows, columns, channels, features]``.
        window_strides: as for ``lax.conv_general_dilated``.
        padding: as for ``lax.conv_general_dilated``.
        **options: as for ``lax.conv_general_dilated``. A dilated, grouped or otherwise laid out convolution is left
            to it on every platform.

    Returns:
        ``[B, height, width, features]``.
    """

    def by_lax(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)

    def by_patches(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return _conv_by_patches(
            lhs, rhs, window_strides, padding, options.get("precision"), options.get("preferred_element_type")
        )

    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    nhwc_hwio = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    dilated = {*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())} - {1}
    grouped = {options.get("feature_group_count", 1), options.get("batch_group_count", 1)} - {1}
    if layout != nhwc_hwio or dilated or grouped:
        return by_lax(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=by_patches, default=by_lax)


def _conv_by_patches(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, precision: Any, preferred_element_type: Any
) -> jax.Array:
    rows, columns, channels, features = rhs.shape
    down, right = window_strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], (rows, columns), window_strides, padding)
    lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(low, high, 0) for low, high in ((0, 0), *padding, (0, 0))])
    bottom, end = lhs.shape[1] - rows + 1, lhs.shape[2] - columns + 1
    patches = jnp.stack(
        [lhs[:, i : i + bottom : down, j : j + end : right] for i in range(rows) for j in range(columns)], axis=3
    )  # [B, height, width, rows * columns, channels]
    kernel = rhs.reshape(rows * columns, channels, features)
    return lax.dot_general(
        patches,
        kernel,
        (((3, 4), (0, 1)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def conv_examples_innermost(x: jax.Array, kernel: jax.Array, padding: str = "VALID", crop: int = 1) -> jax.Array:
    """A convolution of stride 1 with the examples innermost.

    Args:
        x: ``[channels, height, width, B]``.
        kernel: ``[rows, columns, channels, features]``.
        padding: ``VALID``, or ``SAME`` for zeros around the image.
        crop: leave out the last rows and columns of the result that are no multiple of this, as pooling would.

    Returns:
        ``[features, height, width, B]``.

    Example:
        >>> conv_examples_innermost(jnp.ones((1, 28, 28, 4)), jnp.ones((5, 5, 1, 8))).shape
        (8, 24, 24, 4)
    """

    def by_lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # XLA chooses where the axes lie in memory, so their names here cost nothing.
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


def max_pool_examples_innermost(x: jax.Array, size: int) -> jax.Array:
    """The maximum over squares of ``size`` pixels a side, of ``[channels, height, width, B]``.

    Height and width must be multiples of ``size``.
    """
    # The gradient of a split is a concatenation, where that of a slice would be padding and adding up, and that of
    # lax.reduce_window takes four times as long.
    channels, height, width, _ = x.shape
    x = x.reshape(channels, height // size, size, width // size, size, -1)
    for axis in (2, 4):
        x = functools.reduce(jnp.maximum, jnp.split(x, size, axis=axis))
    return x.reshape(channels, height // size, width // size, -1)
