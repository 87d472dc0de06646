"""The convolution as each platform does it best.

    nn.Conv(24, (5, 5), padding="VALID", conv_general_dilated=conv_general_dilated)

On GPU and TPU this is ``lax.conv_general_dilated``. On CPU it is written as patches times a matrix, because XLA runs
a convolution inside ``lax.scan`` or ``lax.fori_loop`` through a loop tens of times slower than outside: a step of the
CNN of this library at batch 64 takes 77 ms with ``lax.conv`` in a scan and 4 ms as below, on 2 cores.

Reference: https://github.com/jax-ml/jax/issues/12868.
"""

from __future__ import annotations

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
