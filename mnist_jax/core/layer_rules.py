"""Says how the gradients of a layer's parameters follow, for each example, from its input and its output's gradient.

rule = RULES[type(module), "__call__"]
if rule.applies(module, x, axis):   # the axis of the examples
    gradients = rule.gradients(module, rule.record(module, x), output_grad, axis)   # {"kernel": Factors(...), ...}

Reference: Goodfellow, "Efficient Per-Example Gradient Computations", https://arxiv.org/abs/1510.01799; Rochette et al.,
"Efficient Per-Example Gradient Computations in Convolutional Neural Networks", https://arxiv.org/abs/1912.06015.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import canonicalize_padding
from jax import lax

from mnist_jax.models.conv import ConvCHWN


class Factors(NamedTuple):
    """Holds the gradient of a kernel for each example, as a sum of T outer products.

    Attributes:
        inputs: ``float[B, T, in]``.
        outputs: ``float[B, T, out]``.
    """

    inputs: jax.Array
    outputs: jax.Array

    def squared_norms(self) -> jax.Array:
        """Returns the squared norms of the gradients, ``float[B]``, without forming them where that takes longer."""
        num_positions = self.inputs.shape[1]
        (_, _, num_inputs), (_, _, num_outputs) = self.inputs.shape, self.outputs.shape
        if num_positions == 1:
            return jnp.sum(self.inputs**2, axis=(1, 2)) * jnp.sum(self.outputs**2, axis=(1, 2))
        if num_positions * (num_inputs + num_outputs) < num_inputs * num_outputs:
            products = (jnp.einsum("bti,bsi->bts", each, each) for each in self)
            return jnp.sum(math.prod(products), axis=(1, 2))
        return jnp.sum(self.form() ** 2, axis=(1, 2))

    def form(self) -> jax.Array:
        """Returns the gradients, ``float[B, in, out]``."""
        return jnp.einsum("bti,bto->bio", self.inputs, self.outputs)


Gradient = Factors | jax.Array


def _dense_rule(module: Any, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    x, grad = (jnp.moveaxis(each, axis, 0) for each in (x, grad))
    grad = grad.reshape(grad.shape[0], -1, grad.shape[-1])
    return {"kernel": Factors(x.reshape(*grad.shape[:2], x.shape[-1]), grad), "bias": grad.sum(axis=1)}


def _conv_rule(module: Any, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    """Takes ``[B, ..., channels]``; strides, dilation and padding are those of an ``nn.Conv``."""
    rank = x.ndim - 2
    strides, dilation, input_dilation = (
        (each,) * rank if isinstance(each, int) else tuple(each or (1,) * rank)
        for each in (module.strides, module.kernel_dilation, module.input_dilation)
    )
    kernel_size = tuple(module.kernel_size)
    padding = canonicalize_padding(module.padding, rank)
    if isinstance(padding, str):
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[1:-1], input_dilation, strict=True)]
        windows = [(size - 1) * step + 1 for size, step in zip(kernel_size, dilation, strict=True)]
        padding = lax.padtype_to_pads(sizes, windows, strides, padding)
    pads = [(low, high, step - 1) for (low, high), step in zip(padding, input_dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    patches = []
    for offset in itertools.product(*map(range, kernel_size)):
        start = [index * step for index, step in zip(offset, dilation, strict=True)]
        stop = [low + (size - 1) * step + 1 for low, size, step in zip(start, grad.shape[1:-1], strides, strict=True)]
        patches.append(lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1)))
    grad = grad.reshape(grad.shape[0], -1, grad.shape[-1])
    inputs = jnp.stack(patches, axis=-2).reshape(*grad.shape[:2], -1)
    return {"kernel": Factors(inputs, grad), "bias": grad.sum(axis=1)}


def _chwn_kernel_rule(module: ConvCHWN, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    """Takes ``[channels, height, width, B]``."""
    rows = columns = module.size
    height, width = grad.shape[1:3]
    # Images are moved before they are cut into patches, which are many times larger.
    x, grad = (jnp.moveaxis(each, -1, 0) for each in (x, grad))
    pads = lax.padtype_to_pads(x.shape[2:], (rows, columns), (1, 1), module.padding)
    x = jnp.pad(x, ((0, 0), (0, 0), *pads))
    x = jnp.stack([x[:, :, i : i + height] for i in range(rows)], axis=1)
    x = jnp.stack([x[..., j : j + width] for j in range(columns)], axis=2)
    inputs, outputs = (each.reshape(each.shape[0], -1, height * width).swapaxes(1, 2) for each in (x, grad))
    return {"kernel": Factors(inputs, outputs)}


def _chwn_bias_rule(module: ConvCHWN, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    return {"bias": grad.sum(axis=(1, 2)).T}


def _normalize(module: Any, x: jax.Array) -> jax.Array:
    """Returns the input of a batch norm, normalised by its running averages."""
    shape = [x.shape[axis] if axis == module.axis % x.ndim else 1 for axis in range(x.ndim)]
    mean, variance = (module.get_variable("batch_stats", name).reshape(shape) for name in ("mean", "var"))
    return (x - mean) * lax.rsqrt(variance + module.epsilon)


def _batch_norm_rule(module: Any, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    x, grad = (
        jnp.moveaxis(each, (axis, module.axis), (0, -1)).reshape(each.shape[axis], -1, each.shape[module.axis])
        for each in (x, grad)
    )
    return {"scale": jnp.sum(grad * x, axis=1), "bias": grad.sum(axis=1)}


def _is_plain_dense(module: Any, x: jax.Array, axis: int) -> bool:
    return module.dot_general is None and module.dot_general_cls is None and axis != x.ndim - 1


def _is_plain_conv(module: Any, x: jax.Array, axis: int) -> bool:
    is_own = module.conv_general_dilated is not None or module.conv_general_dilated_cls is not None
    is_masked = module.mask is not None or module.feature_group_count != 1
    padding = canonicalize_padding(module.padding, len(module.kernel_size))
    is_lax = not isinstance(padding, str) or padding in ("SAME", "VALID")
    return not is_own and not is_masked and is_lax and axis == 0 and x.ndim == len(module.kernel_size) + 2


def _is_plain_batch_norm(module: Any, x: jax.Array, axis: int) -> bool:
    return isinstance(module.axis, int) and axis != module.axis % x.ndim


class Rule(NamedTuple):
    """Describes how the gradients of a layer follow from one of its methods.

    Attributes:
        parameters: names of the parameters.
        gradients: returns gradients by parameter from what was recorded and the gradient of the output.
        applies: returns whether the rule holds for a layer, its input and the axis of the examples.
        record: returns what is kept of the input.
    """

    parameters: tuple[str, ...]
    gradients: Callable[[Any, jax.Array, jax.Array, int], dict[str, Gradient]]
    applies: Callable[[Any, jax.Array, int], bool] = lambda module, x, axis: True
    record: Callable[[Any, jax.Array], jax.Array] = lambda module, x: x


RULES = {
    (nn.Dense, "__call__"): Rule(("kernel", "bias"), _dense_rule, _is_plain_dense),
    (nn.Conv, "__call__"): Rule(("kernel", "bias"), _conv_rule, _is_plain_conv),
    (nn.BatchNorm, "__call__"): Rule(("scale", "bias"), _batch_norm_rule, _is_plain_batch_norm, _normalize),
    (ConvCHWN, "__call__"): Rule(("bias",), _chwn_bias_rule),
    (ConvCHWN, "convolve"): Rule(("kernel",), _chwn_kernel_rule),
}
