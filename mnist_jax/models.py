"""The two models, as Flax modules that map images to logits.

model = MLP(hidden_sizes=(512, 256), dropout_rate=0.2)
model = build_model(TrainConfig(model="cnn"))
count_parameters(state.params)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.config import TrainConfig
from mnist_jax.conv import conv_pool_features
from mnist_jax.errors import InputError


class MLP(nn.Module):
    """Fully connected: ReLU and dropout after each hidden layer.

    Attributes:
        hidden_sizes: units per hidden layer.
        dropout_rate: share of hidden units dropped in training.
        num_classes: K.
        dtype: what the layers compute in, with float32 parameters and logits; None: what images and parameters have.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = MLP(hidden_sizes=(16,))
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> model.apply(variables, jnp.zeros((5, 28, 28, 1))).shape
        (5, 10)
    """

    hidden_sizes: Sequence[int] = (512, 256)
    dropout_rate: float = 0.2
    num_classes: int = 10
    dtype: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))  # a list has no hash
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Maps ``float32[B, 28, 28, 1]`` to logits ``float32[B, K]``."""
        x = image.reshape(image.shape[0], -1)
        for size in self.hidden_sizes:
            x = nn.relu(nn.Dense(size, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x)
        return logits if self.dtype is None else logits.astype(jnp.float32)


class CNN(nn.Module):
    """Convolutions without padding, each followed by 2x2 max-pooling and ReLU; then a dense layer with dropout.

    Attributes:
        channels: per convolution.
        kernel_sizes: height and width of the kernel, per convolution.
        dense_size: units of the dense layer before the logits.
        dropout_rate: share of its units dropped in training.
        num_classes: K.
        dtype: what the layers compute in, with float32 parameters and logits; None: what images and parameters have.

    Reference: the layer sizes are those of https://github.com/tuomaso/train_mnist_fast.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = CNN(channels=(4, 8), dense_size=16)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> model.apply(variables, jnp.zeros((5, 28, 28, 1))).shape
        (5, 10)
    """

    channels: Sequence[int] = (24, 32)
    kernel_sizes: Sequence[int] = (5, 3)
    dense_size: int = 256
    dropout_rate: float = 0.2
    num_classes: int = 10
    dtype: Any = None

    def __post_init__(self) -> None:
        for name in ("channels", "kernel_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list has no hash
        super().__post_init__()

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Maps ``float32[B, 28, 28, 1]`` to logits ``float32[B, K]``."""
        side, features, layers = image.shape[1], image.shape[-1], []
        for index, (channels, size) in enumerate(zip(self.channels, self.kernel_sizes, strict=True)):
            if side <= size:
                raise InputError(f"kernel_sizes must leave something of the image to pool, got {self.kernel_sizes}")
            layers.append(_Kernel((size, size, features, channels), name=f"Conv_{index}")())
            side, features = (side - size + 1) // 2, channels
        if self.dtype is not None:
            image, layers = jax.tree.map(lambda x: x.astype(self.dtype), (image, layers))
        x = conv_pool_features(image, layers)
        x = nn.relu(nn.Dense(self.dense_size, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x)
        return logits if self.dtype is None else logits.astype(jnp.float32)


class _Kernel(nn.Module):
    """Kernel and bias as ``nn.Conv`` has them."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])


def build_model(config: TrainConfig) -> MLP | CNN:
    """The model that a config describes.

    Example:
        >>> build_model(TrainConfig(hidden_sizes=(100,), dropout_rate=0.1))
        MLP(
            # attributes
            hidden_sizes = (100,)
            dropout_rate = 0.1
            num_classes = 10
            dtype = None
        )
    """
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    if config.model == "mlp":
        return MLP(hidden_sizes=config.hidden_sizes, dropout_rate=config.dropout_rate, dtype=dtype)
    return CNN(
        channels=config.channels,
        kernel_sizes=config.kernel_sizes,
        dense_size=config.dense_size,
        dropout_rate=config.dropout_rate,
        dtype=dtype,
    )


def choose_microbatch_size(config: TrainConfig) -> int | None:
    """Examples whose gradient is computed at a time: what the config says, or else what is fastest here.

    That is the whole batch (None), but 32 for the CNN on CPU, whose activations then stay in the cache.

    Example:
        >>> choose_microbatch_size(TrainConfig(microbatch_size=16))
        16
    """
    if config.microbatch_size is None and config.model == "cnn" and jax.default_backend() == "cpu":
        return 32
    return config.microbatch_size


def count_parameters(params: Any) -> int:
    """Number of scalars in a parameter tree.

    Example:
        >>> count_parameters({"kernel": jax.numpy.zeros((3, 4)), "bias": jax.numpy.zeros(4)})
        16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
