"""Gives ink the form of MNIST's images: strokes of the same width, 20 pixels of the longer side, centred by mass.

    image = render_ink(ink)   # float32[h, w] in [0, 1], of any size, to uint8[28, 28, 1]

Pictures of digits (:func:`mnist_jax.prepare_image`) and scikit-learn's digits pass through it.

Reference: http://yann.lecun.com/exdb/mnist/ describes how MNIST was made.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

SIDE, INK_SIDE, CENTRE = 28, 20, 14  # pixels, as in MNIST
_STROKE_WIDTH = 3.4  # pixels; MNIST's mean is 3.1, but slightly wider strokes are classified best
_UNIT = 4  # working pixels per final pixel
_LEAST_WIDTH = 0.8  # pixels, of a stroke and of a hole


def render_ink(ink: np.ndarray) -> np.ndarray:
    """Renders ink as an image of MNIST.

    Args:
        ink: ``float32[h, w]`` in [0, 1], cropped to the digit.

    Returns:
        ``uint8[28, 28, 1]``, light on dark.

    Example:
        >>> image = render_ink(np.ones((80, 10), np.float32))
        >>> rows, columns = np.nonzero(image[..., 0])
        >>> image.shape, np.unique(rows).size, np.unique(columns).size
        ((28, 28, 1), 20, 3)
    """
    return _centre(_scale(_even_strokes(ink)))


def crop(ink: np.ndarray, threshold: float) -> np.ndarray:
    """Crops an image ``[H, W]`` to its pixels above a threshold."""
    rows, columns = np.flatnonzero((ink > threshold).any(1)), np.flatnonzero((ink > threshold).any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def resize(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales an image ``float32[H, W]`` by a factor; each side keeps at least one pixel."""
    height, width = (max(1, round(length * factor)) for length in image.shape)
    filter_ = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((width, height), filter_))


def _even_strokes(ink: np.ndarray) -> np.ndarray:
    """Gives strokes a width of ``_STROKE_WIDTH`` and binarises the ink, as MNIST's scans are."""
    factor = _UNIT * INK_SIDE / max(ink.shape)
    if factor < 0.7:
        ink = ndimage.maximum_filter(ink, 3)  # else scaling down would lose hairlines
    scaled = np.pad(resize(ink, factor), 3 * _UNIT)
    mask = _threshold(scaled)
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    width = 4 * float(inside[mask].mean()) / _UNIT
    # Compensates for scaling to 20 pixels afterwards, which changes the width again.
    margin = (_STROKE_WIDTH - width) / (2 - 2 * _STROKE_WIDTH / INK_SIDE) * _UNIT
    distance = inside - outside + margin
    # Strokes that become thin keep a line along their middle, and holes that become small a gap.
    least = _LEAST_WIDTH * _UNIT
    middle = _ridge(inside) & mask & (distance < least)
    if middle.any():
        line = least - ndimage.distance_transform_edt(~middle)
        distance = np.maximum(distance, np.where(mask, line, -1))
    background, _ = ndimage.label(~mask)
    holes = ~mask & (background != background[0, 0])
    middle = _ridge(outside) & holes & (distance > -least)
    if middle.any():
        gap = ndimage.distance_transform_edt(~middle) - least
        distance = np.minimum(distance, np.where(holes, gap, distance))
    return crop(np.clip(distance + 0.5, 0, 1).astype(np.float32), 0.5)


def _threshold(ink: np.ndarray) -> np.ndarray:
    """Returns where ink is strong, or faint but connected with strong ink; the soft rim of strokes is left out.

    Reference: hysteresis thresholding, Canny, "A Computational Approach to Edge Detection", 1986,
    https://doi.org/10.1109/TPAMI.1986.4767851.
    """
    strong, faint = ink > ink.max() / 2, ink > ink.max() / 3
    beyond = faint & ~ndimage.maximum_filter(strong, _UNIT + 1)
    if not beyond.any():
        return strong
    labels, _ = ndimage.label(faint, np.ones((3, 3)))
    connected = beyond & np.isin(labels, labels[strong])
    return strong | (faint & ndimage.maximum_filter(connected, _UNIT + 1))


def _ridge(distance: np.ndarray) -> np.ndarray:
    return distance == ndimage.maximum_filter(distance, 3)


def _scale(ink: np.ndarray) -> np.ndarray:
    """Scales the longer side to 20 pixels, and the maximum to 1."""
    scaled = ink if max(ink.shape) == INK_SIDE else resize(ink, INK_SIDE / max(ink.shape))
    return np.clip(scaled / scaled.max(), 0, 1)


def _centre(ink: np.ndarray) -> np.ndarray:
    """Puts the centre of mass on pixel (14, 14) of 28x28."""
    height, width = ink.shape
    image = np.zeros((SIDE, SIDE), np.float32)
    centre = ndimage.center_of_mass(ink)
    top, left = (
        min(max(0, round(CENTRE - middle)), SIDE - length)
        for middle, length in zip(centre, (height, width), strict=True)
    )
    image[top : top + height, left : left + width] = ink
    return np.round(255 * image).astype(np.uint8)[..., None]
