"""Random distortions of training images, on the device: shift, rotation, scale, shear, elastic distortion, erasing.

    augment = Augmentation(shift=2, rotation=10, elastic=1.5)
    image = augment(image, key)                                              # every image of a batch differently
    state = create_train_state(model, tx, key, augment=augment)              # train_step does it to each batch

An image is resampled twice along lines instead of once over the plane: first each row, then each column, where the
second pass knows what the first has done. Both are sums over a few shifted copies of the image, with the examples
innermost, so that all work is on whole vectors. An affine map comes out exactly as it should.

Reference: the two passes are Catmull and Smith (1980), https://doi.org/10.1145/965105.807505; elastic distortion is
Simard, Steinkraus and Platt (2003), https://doi.org/10.1109/ICDAR.2003.1227801; erasing is Zhong et al.,
https://arxiv.org/abs/1708.04896.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_RANGES = {
    "shift": (0, 14),
    "rotation": (0, 45),
    "scale": (0, 0.5),
    "shear": (0, 0.5),
    "elastic": (0, 7),
    "smoothness": (2, 14),
    "erasing": (0, 1),
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A random distortion: a function from images and a key to images.

    Every amount is drawn for each image by itself, evenly between minus and plus the value here.

    Attributes:
        shift: pixels along either axis, in [0, 14].
        rotation: degrees, in [0, 45].
        scale: share of the size along either axis, in [0, 0.5].
        shear: pixels to the side per pixel of height, in [0, 0.5].
        elastic: standard deviation of the elastic displacement in pixels, in [0, 7].
        smoothness: standard deviation of the Gaussian that smooths it in pixels, in [2, 14].
        erasing: share of images that lose a rectangle of 3 to 14 pixels a side, in [0, 1].

    Raises:
        ValueError: an amount is out of its range.

    Example:
        >>> augment = Augmentation(shift=2, elastic=1.0)
        >>> augment(jnp.ones((5, 28, 28, 1)), jax.random.key(0)).shape
        (5, 28, 28, 1)
    """

    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    smoothness: float = 4.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise ValueError(f"{name} must be in [{lowest}, {highest}], got {value}")

    @property
    def changes_something(self) -> bool:
        """Whether any distortion is asked for."""
        return any((self.shift, self.rotation, self.scale, self.shear, self.elastic, self.erasing))

    def __call__(self, image: jax.Array, key: jax.Array) -> jax.Array:
        """Distorts each image of a batch, or one image.

        Args:
            image: ``float[B, height, width, 1]``, or one image without ``B``; 0 is the background, also outside.
            key: randomness of the whole batch.

        Returns:
            Images of the same shape and dtype.

        Raises:
            ValueError: the image has another number of axes or of channels, or is not of floats.
        """
        if image.ndim == 3:
            return self(image[None], key)[0]
        if image.ndim != 4 or image.shape[-1] != 1:
            raise ValueError(f"image must be [B, height, width, 1] or [height, width, 1], got {list(image.shape)}")
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(f"image must be of floats, as image / 255 is, got {image.dtype}")
        warp_key, erasing_key = jax.random.split(key)
        x = image[..., 0].transpose(1, 2, 0).astype(jnp.float32)  # [height, width, B]: the examples innermost
        if dataclasses.replace(self, erasing=0.0).changes_something:
            x = self._warp(x, warp_key)
        if self.erasing:
            x = _erase(x, erasing_key, self.erasing)
        return x.astype(image.dtype).transpose(2, 0, 1)[..., None]

    def _warp(self, image: jax.Array, key: jax.Array) -> jax.Array:
        """Shifts, turns, scales, slants and distorts ``[height, width, B]``."""
        height, width, batch_size = image.shape
        affine_key, elastic_key = jax.random.split(key)
        across, down = self._affine(jax.random.uniform(affine_key, (6, batch_size), minval=-1.0))
        fields = _linear_fields(height, width)
        largest = self._affine(np.array(list(itertools.product((-1.0, 1.0), repeat=6)), np.float32).T)
        reach = [math.ceil(np.abs(fields @ most).max() + 3 * self.elastic) for most in largest]
        if self.elastic:
            waves = self.elastic * _smooth_waves(height, width, self.smoothness)
            noise = jax.random.normal(elastic_key, (2, waves.shape[1], batch_size))
            fields = np.concatenate([fields, waves], axis=1)
            across, down = jnp.concatenate([across, noise[0]]), jnp.concatenate([down, noise[1]])
        image = _resample(image, (fields @ across).reshape(image.shape), reach[0], axis=1)
        return _resample(image, (fields @ down).reshape(image.shape), reach[1], axis=0)

    def _affine(self, amount: Any) -> tuple[Any, Any]:
        """How far each pass goes: amounts in [-1, 1], ``[6, B]``, to ``[3, B]`` factors of :func:`_linear_fields`."""
        xp = np if isinstance(amount, np.ndarray) else jnp
        angle, shear = self.rotation * math.pi / 180 * amount[0], self.shear * amount[1]
        wide, high = 1 / (1 + self.scale * amount[2:4])
        x, y = self.shift * amount[4:]
        # The output's pixel (x, y) comes from (a x + b y, c x + d y): unscaled, unslanted, turned back.
        a, b = xp.cos(angle) * wide, (xp.cos(angle) * shear - xp.sin(angle)) * high
        c, d = xp.sin(angle) * wide, (xp.sin(angle) * shear + xp.cos(angle)) * high
        # The first pass works in row c x + d y, from where the second will fetch its result.
        return xp.stack([a - b * c / d - 1, b / d, x - b / d * y]), xp.stack([c, d - 1, y])


def _linear_fields(height: int, width: int) -> np.ndarray:
    """``float32[height * width, 3]``: for each pixel its x, its y, and one, from the centre of the image."""
    y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (height, width)), indexing="ij")
    return np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3).astype(np.float32)


def _resample(image: jax.Array, displacement: jax.Array, reach: int, axis: int) -> jax.Array:
    """Linear interpolation at ``displacement`` pixels from each pixel along one axis, ``reach`` at most."""
    length = image.shape[axis]
    displacement = jnp.clip(displacement, -reach, reach) + reach
    padded = jnp.pad(image, [(reach, reach) if i == axis else (0, 0) for i in range(image.ndim)])

    def add_neighbour(step: jax.Array, total: jax.Array) -> jax.Array:
        weight = jax.nn.relu(1 - jnp.abs(displacement - step.astype(displacement.dtype)))
        return total + weight * lax.dynamic_slice_in_dim(padded, step, length, axis=axis)

    # A loop, because XLA on CPU would compute parts of a plain sum again for whatever uses it.
    return lax.fori_loop(0, 2 * reach + 1, add_neighbour, jnp.zeros_like(image))


def _smooth_waves(height: int, width: int, smoothness: float) -> np.ndarray:
    """``float32[height * width, n]``: times n normal numbers, noise of unit variance smoothed by a Gaussian.

    These are the principal components of such noise, without the last hundredth of its variance.
    """
    axes = []
    for length in (height, width):
        distance = np.arange(length)[:, None] - np.arange(length)
        variance, waves = np.linalg.eigh(np.exp(-((distance / (2 * smoothness)) ** 2)))
        axes.append((np.maximum(variance, 0), waves))
    (variance_y, waves_y), (variance_x, waves_x) = axes
    variance = np.outer(variance_y, variance_x).ravel()
    largest = np.argsort(-variance)
    explained = np.cumsum(variance[largest]) / variance.sum()
    kept = largest[: np.searchsorted(explained, 0.99) + 1]
    waves = np.einsum("ya,xb->yxab", waves_y, waves_x).reshape(height * width, -1)[:, kept]
    waves = waves * np.sqrt(variance[kept])
    return (waves * math.sqrt(height * width / np.square(waves).sum())).astype(np.float32)


def _erase(image: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Sets a rectangle to the background in a ``share`` of the images ``[height, width, B]``."""
    height, width, batch_size = image.shape
    chance, centre_y, size_y, centre_x, size_x = jax.random.uniform(key, (5, 1, 1, batch_size))
    erased = chance < share
    y, x = (jnp.arange(length, dtype=jnp.float32) + 0.5 for length in (height, width))
    for position, length, centre, size in (
        (y[:, None, None], height, centre_y, size_y),
        (x[None, :, None], width, centre_x, size_x),
    ):
        erased = erased & (jnp.abs(position - length * centre) < (3 + 11 * size) / 2)
    return jnp.where(erased, 0.0, image)
