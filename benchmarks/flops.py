"""Counts the floating-point operations of the two models: 2 for each multiply-add of a matrix product.

    flops_per_example(TrainConfig(model="cnn"), train=True)

Bias, activation, normalisation, pooling, dropout, augmentation and optimizer are left out: they are bound by memory
bandwidth. The count is analytic, because XLA counts the body of a loop only once (jax-ml/jax#18672); for a single step
it is tested against XLA.
"""

from __future__ import annotations

import itertools

from mnist_jax import TrainConfig


def flops_per_example(config: TrainConfig, train: bool) -> int:
    """Returns the FLOPs of one example: the forward pass, and with ``train`` also the backward pass."""
    layers = layer_flops(config)
    if not train:
        return sum(layers)
    return 3 * sum(layers) - layers[0]  # no gradient with respect to the image


def layer_flops(config: TrainConfig) -> list[int]:
    if config.model == "mlp":
        return [2 * inputs * outputs for inputs, outputs in itertools.pairwise((784, *config.hidden_sizes, 10))]
    layers, side, channels = [], 28, 1
    pool_sizes = config.pool_sizes * (len(config.channels) // len(config.pool_sizes))
    for features, size, pool in zip(config.channels, config.kernel_sizes, pool_sizes, strict=True):
        pooled = (side - (size - 1) * (config.padding == "valid")) // pool
        layers.append(2 * size * size * channels * features * (pool * pooled) ** 2)
        side, channels = pooled, features
    if not config.dense_size:
        return [*layers, 2 * channels * 10]
    return [*layers, 2 * side * side * channels * config.dense_size, 2 * config.dense_size * 10]
