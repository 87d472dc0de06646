"""Defines the multilayer perceptron.

model = MLP(hidden_sizes=(512, 256), dropout_rate=0.2)
logits = model.apply({"params": params}, image)   # float32[B, K] from float32[B, height, width, channels]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.models.dropout import dropout


class MLP(nn.Module):
    """Defines a multilayer perceptron with ReLU and dropout after each hidden layer.

    Attributes:
        hidden_sizes: units per hidden layer.
        batch_norm: whether to normalise each unit over the batch before the ReLU.
        dropout_rate: share of hidden units dropped in training.
        num_classes: K.
        dtype: dtype of the layers; parameters and logits stay float32. None takes that of images and parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = MLP(hidden_sizes=(16,))
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> model.apply(variables, jnp.zeros((5, 28, 28, 1))).shape
        (5, 10)
    """

    hidden_sizes: Sequence[int] = (512, 256)
    batch_norm: bool = False
    dropout_rate: float = 0.2
    num_classes: int = 10
    dtype: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))  # lists are not hashable
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Maps ``float32[B, 28, 28, 1]`` to logits ``float32[B, K]``."""
        x = image.reshape(image.shape[0], -1)
        for size in self.hidden_sizes:
            x = nn.Dense(size, use_bias=not self.batch_norm, dtype=self.dtype)(x)
            x = nn.relu(batch_norm(x, train) if self.batch_norm else x)
            if train and self.dropout_rate:
                x = dropout(x, self.dropout_rate, self.make_rng("dropout"))
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x)
        return logits if self.dtype is None else logits.astype(jnp.float32)


def batch_norm(x: jax.Array, train: bool, axis: int = -1) -> jax.Array:
    """Applies batch norm as a layer of the calling module; its offset replaces the bias of the layer before."""
    return nn.BatchNorm(use_running_average=not train, axis=axis, dtype=x.dtype)(x)
