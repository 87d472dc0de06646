"""Augments training images on the device: shift, rotation, scale, shear, elastic distortion, random erasing.

    augment = Augmentation(shift=2, rotation=10, elastic=1.5)
    image = augment(image, key)                                    # draws a distortion for each image
    state = create_train_state(model, tx, key, augment=augment)    # train_step augments each batch

Images are resampled in two 1-D passes, along rows and then along columns, instead of one 2-D pass. The second pass
accounts for the first, so affine maps are exact. Each pass is a weighted sum of a few shifted copies of the image. The
examples are innermost, ``[height, width, B]``, so all work is on whole vectors.

Reference: two-pass resampling, Catmull and Smith (1980), https://doi.org/10.1145/965105.807505; elastic distortion,
Simard, Steinkraus and Platt (2003), https://doi.org/10.1109/ICDAR.2003.1227801; random erasing, Zhong et al. (2017),
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
    """Distorts images at random: a function ``(image, key) -> image``.

    Shift, rotation, scale and shear are drawn for each image, uniformly between minus and plus the attribute.

    Attributes:
        shift: pixels along each axis, in [0, 14].
        rotation: degrees, in [0, 45].
        scale: relative change of size along each axis, in [0, 0.5].
        shear: horizontal pixels per pixel of height, in [0, 0.5].
        elastic: standard deviation of the elastic displacement in pixels, in [0, 7].
        smoothness: standard deviation in pixels of the Gaussian that smooths this displacement, in [2, 14].
        erasing: probability of erasing a rectangle with sides of 3 to 14 pixels, in [0, 1].

    Raises:
        ValueError: an attribute is out of range.

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
        """Whether any distortion is enabled."""
        return any((self.shift, self.rotation, self.scale, self.shear, self.elastic, self.erasing))

    def __call__(self, image: jax.Array, key: jax.Array) -> jax.Array:
        """Distorts each image of a batch, or one image.

        Args:
            image: ``float[B, height, width, 1]``, or one image without ``B``; pixels outside an image are 0.
            key: PRNG key, one for the whole batch.

        Returns:
            Images of the same shape and dtype.

        Raises:
            ValueError: the image has the wrong rank or number of channels, or is not floating point.
        """
        if image.ndim == 3:
            return self(image[None], key)[0]
        if image.ndim != 4 or image.shape[-1] != 1:
            raise ValueError(f"image must be [B, height, width, 1] or [height, width, 1], got {list(image.shape)}")
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(f"image must be floating point, such as image / 255, got {image.dtype}")
        warp_key, erasing_key = jax.random.split(key)
        x = image[..., 0].transpose(1, 2, 0).astype(jnp.float32)  # [height, width, B]
        if dataclasses.replace(self, erasing=0.0).changes_something:
            x = self._warp(x, warp_key)
        if self.erasing:
            x = _erase(x, erasing_key, self.erasing)
        return x.astype(image.dtype).transpose(2, 0, 1)[..., None]

    def _warp(self, image: jax.Array, key: jax.Array) -> jax.Array:
        """Applies the affine and elastic distortions to ``[height, width, B]``."""
        height, width, batch_size = image.shape
        affine_key, elastic_key = jax.random.split(key)
        across, down = self._affine(jax.random.uniform(affine_key, (6, batch_size), minval=-1.0))
        fields = _linear_fields(height, width)
        largest = self._affine(np.array(list(itertools.product((-1.0, 1.0), repeat=6)), np.float32).T)
        reach = [math.ceil(np.abs(fields @ factors).max() + 3 * self.elastic) for factors in largest]
        if self.elastic:
            basis = self.elastic * _smooth_basis(height, width, self.smoothness)
            noise = jax.random.normal(elastic_key, (2, basis.shape[1], batch_size))
            fields = np.concatenate([fields, basis], axis=1)
            across, down = jnp.concatenate([across, noise[0]]), jnp.concatenate([down, noise[1]])
        image = _resample(image, (fields @ across).reshape(image.shape), reach[0], axis=1)
        return _resample(image, (fields @ down).reshape(image.shape), reach[1], axis=0)

    def _affine(self, amount: Any) -> tuple[Any, Any]:
        """Maps amounts ``[6, B]`` in [-1, 1] to ``[3, B]`` factors of :func:`_linear_fields` for each pass."""
        xp = np if isinstance(amount, np.ndarray) else jnp
        angle, shear = self.rotation * math.pi / 180 * amount[0], self.shear * amount[1]
        wide, high = 1 / (1 + self.scale * amount[2:4])
        x, y = self.shift * amount[4:]
        # The inverse map: output pixel (x, y) samples the input at (a x + b y, c x + d y).
        a, b = xp.cos(angle) * wide, (xp.cos(angle) * shear - xp.sin(angle)) * high
        c, d = xp.sin(angle) * wide, (xp.sin(angle) * shear + xp.cos(angle)) * high
        # The first pass works in the rows of the input, so its y is c x + d y, which the second pass then samples.
        return xp.stack([a - b * c / d - 1, b / d, x - b / d * y]), xp.stack([c, d - 1, y])


def _linear_fields(height: int, width: int) -> np.ndarray:
    """Returns ``float32[height * width, 3]``: x and y of each pixel from the centre of the image, and 1."""
    y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (height, width)), indexing="ij")
    return np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3).astype(np.float32)


def _resample(image: jax.Array, displacement: jax.Array, reach: int, axis: int) -> jax.Array:
    """Samples each pixel ``displacement`` pixels away along one axis, at most ``reach``, by linear interpolation."""
    length = image.shape[axis]
    displacement = jnp.clip(displacement, -reach, reach) + reach
    padded = jnp.pad(image, [(reach, reach) if i == axis else (0, 0) for i in range(image.ndim)])

    def add_neighbour(step: jax.Array, total: jax.Array) -> jax.Array:
        weight = jax.nn.relu(1 - jnp.abs(displacement - step.astype(displacement.dtype)))
        return total + weight * lax.dynamic_slice_in_dim(padded, step, length, axis=axis)

    # A loop, because XLA:CPU recomputes parts of an unrolled sum for each of its uses.
    return lax.fori_loop(0, 2 * reach + 1, add_neighbour, jnp.zeros_like(image))


def _smooth_basis(height: int, width: int, smoothness: float) -> np.ndarray:
    """Returns ``float32[height * width, n]``, which maps n standard normal numbers to smooth noise of unit variance.

    The columns are the principal components that explain 99 % of the variance of noise smoothed by a Gaussian.
    """
    axes = []
    for length in (height, width):
        distance = np.arange(length)[:, None] - np.arange(length)
        variance, basis = np.linalg.eigh(np.exp(-((distance / (2 * smoothness)) ** 2)))
        axes.append((np.maximum(variance, 0), basis))
    (variance_y, basis_y), (variance_x, basis_x) = axes
    variance = np.outer(variance_y, variance_x).ravel()
    largest = np.argsort(-variance)
    explained = np.cumsum(variance[largest]) / variance.sum()
    kept = largest[: np.searchsorted(explained, 0.99) + 1]
    basis = np.einsum("ya,xb->yxab", basis_y, basis_x).reshape(height * width, -1)[:, kept]
    basis = basis * np.sqrt(variance[kept])
    return (basis * math.sqrt(height * width / np.square(basis).sum())).astype(np.float32)


def _erase(image: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Erases a random rectangle of each image of ``[height, width, B]`` with the given probability."""
    height, width, batch_size = image.shape
    chance, centre_y, size_y, centre_x, size_x = jax.random.uniform(key, (5, 1, 1, batch_size))
    erased = chance < probability
    y, x = (jnp.arange(length, dtype=jnp.float32) + 0.5 for length in (height, width))
    for position, length, centre, size in (
        (y[:, None, None], height, centre_y, size_y),
        (x[None, :, None], width, centre_x, size_x),
    ):
        erased = erased & (jnp.abs(position - length * centre) < (3 + 11 * size) / 2)
    return jnp.where(erased, 0.0, image)
