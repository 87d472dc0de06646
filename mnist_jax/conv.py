"""The convolution as each platform does it best.

    nn.Conv(24, (5, 5), padding="VALID", conv_general_dilated=conv_general_dilated)   # in a module of your own
    features = conv_pool_features(image, [(kernel, bias), ...])                       # what the CNN is made of

On GPU and TPU this is ``lax.conv_general_dilated``. On CPU it is written as patches times a matrix, because XLA runs
a convolution inside ``lax.scan`` or ``lax.fori_loop`` through a loop tens of times slower than outside. Several layers
in a row go further: between them the examples lie innermost, ``[channels, height, width, B]``, so that patches,
pooling and their gradients are copies and comparisons of whole vectors. Measured in ``benchmarks/README.md``.

Reference: https://github.com/jax-ml/jax/issues/12868; the layout is that of cuda-convnet (Krizhevsky, 2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
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


def conv_pool_features(image: jax.Array, layers: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Convolution without padding, 2x2 max-pooling, bias and ReLU, a layer after the other; flattened at the end.

    Args:
        image: ``float32[B, height, width, channels]``.
        layers: for each layer its kernel ``[rows, columns, channels, features]`` and its bias ``[features]``. An odd
            last row or column of what comes out of a convolution is not pooled.

    Returns:
        ``float32[B, height * width * features]`` of the last layer, in this order on every platform.

    Example:
        >>> kernel, bias = jnp.ones((5, 5, 1, 8)), jnp.zeros(8)
        >>> conv_pool_features(jnp.ones((4, 28, 28, 1)), [(kernel, bias)]).shape
        (4, 1152)
    """
    # A vector of the CPU holds 8 or 16 examples. Fewer, as under a vmap over examples, take the usual layout.
    cpu = _features_by_patches if image.shape[0] >= 8 else _features
    return lax.platform_dependent(image, list(layers), cpu=cpu, default=_features)


def _features(image: jax.Array, layers: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    x = image
    for kernel, bias in layers:
        x = conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        batch, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        # As a maximum over axes: the gradient of lax.reduce_window takes four times as long.
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
        # After the pooling this is a quarter of the work, and the same result.
        x = nn.relu(x + bias[None, None, None])
    return x.reshape(x.shape[0], -1)


def _features_by_patches(image: jax.Array, layers: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    x = image.transpose(3, 1, 2, 0)  # [channels, height, width, B]
    for kernel, bias in layers:
        rows, columns, channels, features = kernel.shape
        height, width = ((size - side + 1) // 2 * 2 for size, side in zip(x.shape[1:3], (rows, columns), strict=True))
        # In two stages, rows and then columns: 10 slices instead of 25.
        x = jnp.stack([x[:, i : i + height] for i in range(rows)])
        x = jnp.stack([x[:, :, :, j : j + width] for j in range(columns)], axis=1)
        x = x.reshape(rows * columns * channels, -1)
        x = lax.dot_general(kernel.reshape(-1, features), x, (((0,), (0,)), ((), ())))
        # The gradient of a split is a concatenation, where that of a slice would be padding and adding up.
        top, bottom = jnp.split(x.reshape(features, height // 2, 2, width // 2, 2, -1), 2, axis=2)
        x = jnp.maximum(jnp.maximum(*jnp.split(top, 2, axis=4)), jnp.maximum(*jnp.split(bottom, 2, axis=4)))
        x = nn.relu(x.reshape(features, height // 2, width // 2, -1) + bias[:, None, None, None])
    return x.transpose(1, 2, 0, 3).reshape(-1, x.shape[-1]).T
