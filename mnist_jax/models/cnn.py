"""Defines the convolutional network.

model = CNN(channels=(24, 32), kernel_sizes=(5, 3))
logits = model.apply({"params": params}, image)   # float32[B, K] from float32[B, height, width, channels]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.errors import InputError
from mnist_jax.models.conv import ConvCHWN
from mnist_jax.models.dropout import dropout
from mnist_jax.models.mlp import batch_norm


class CNN(nn.Module):
    """Defines a convolutional network: convolutions with max-pooling and ReLU, then a dense layer with dropout.

    Attributes:
        channels: output channels of each convolution.
        kernel_sizes: side of the square kernel of each convolution.
        pool_sizes: side of the max-pooling window after each convolution, 1 for none; one for all, or one each.
        padding: ``valid``, or ``same`` to pad the image with zeros.
        dense_size: units of the dense layer before the logits; 0 replaces it by global average pooling.
        batch_norm: whether to normalise each channel before the ReLU, over the batch, or over each microbatch if
            gradients are accumulated ("ghost batch normalisation").
        dropout_rate: share of the inputs of the last layer dropped in training.
        num_classes: K.
        dtype: dtype of the layers; parameters and logits stay float32. None takes that of images and parameters.

    Reference: the default sizes are from https://github.com/tuomaso/train_mnist_fast.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = CNN(channels=(4, 8), dense_size=16)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> model.apply(variables, jnp.zeros((5, 28, 28, 1))).shape
        (5, 10)
    """

    channels: Sequence[int] = (24, 32)
    kernel_sizes: Sequence[int] = (5, 3)
    pool_sizes: Sequence[int] = (2,)
    padding: str = "valid"
    dense_size: int = 256
    batch_norm: bool = False
    dropout_rate: float = 0.2
    num_classes: int = 10
    dtype: Any = None

    def __post_init__(self) -> None:
        for name in ("channels", "kernel_sizes", "pool_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists are not hashable
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Maps ``float32[B, 28, 28, 1]`` to logits ``float32[B, K]``."""
        x = image.transpose(3, 1, 2, 0)  # [channels, height, width, B]
        if self.dtype is not None:
            x = x.astype(self.dtype)
        pool_sizes = tuple(self.pool_sizes) * (len(self.channels) if len(self.pool_sizes) == 1 else 1)
        if not len(pool_sizes) == len(self.kernel_sizes) == len(self.channels):
            raise InputError(
                f"kernel_sizes and pool_sizes must be as long as channels {self.channels}, "
                f"got {self.kernel_sizes} and {self.pool_sizes}"
            )
        for index, (features, size, pool) in enumerate(zip(self.channels, self.kernel_sizes, pool_sizes, strict=True)):
            if min(x.shape[1:3]) - (size - 1) * (self.padding == "valid") < pool:
                raise InputError(
                    "kernel_sizes and pool_sizes must fit into the image, "
                    f"got {self.kernel_sizes} and {self.pool_sizes}"
                )
            x = ConvCHWN(features, size, pool, self.padding.upper(), not self.batch_norm, name=f"Conv_{index}")(x)
            x = nn.relu(batch_norm(x, train, axis=0) if self.batch_norm else x)
        if self.dense_size:
            x = x.transpose(1, 2, 0, 3).reshape(-1, x.shape[-1]).T
            x = nn.Dense(self.dense_size, use_bias=not self.batch_norm, dtype=self.dtype)(x)
            x = nn.relu(batch_norm(x, train) if self.batch_norm else x)
        else:
            x = x.mean(axis=(1, 2)).T
        if train and self.dropout_rate:
            x = dropout(x, self.dropout_rate, self.make_rng("dropout"))
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x)
        return logits if self.dtype is None else logits.astype(jnp.float32)
