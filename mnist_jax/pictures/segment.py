"""Finds which ink belongs to which digit.

    digit, inside = select_digit(ink, mask)   # mask of the main digit, without specks and the edge of the paper
    digits = split_digits(ink, mask)          # masks of all digits, from left to right

``ink`` is the contrast with the background, ``float32[H, W]``; ``mask`` is ``bool[H, W]``, true where it is strong. A
part is a connected area of the mask. A box holds the first row and column of a part, and those after its last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mnist_jax.errors import InputError

_MIN_MASS = 0.01  # of a part, as a share of the main part
_NEAR = 0.3  # largest gap between parts of a digit, as a share of its longer side
_BREAK = 0.1  # largest gap in a stroke, as a share of the height of the line
_MIN_HEIGHT = 0.4  # of a digit, as a share of the height of the line
_MIN_STRENGTH = 0.4  # of a digit's ink, as a share of the strongest digit
_MAX_DIGITS = 20


@dataclass(frozen=True)
class _Parts:
    labels: np.ndarray  # int32[H, W], 0 outside the mask
    mass: np.ndarray  # float[P]; 0 for the edge of the paper and lines
    boxes: np.ndarray  # int[P, 2, 2]
    contact: np.ndarray  # int[P]: pixels on the border
    main: int  # the part with the largest mass


def select_digit(ink: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """Selects the parts that form the main digit; also returns whether its main part stays off the border."""
    parts = _find_parts(ink, mask)
    boxes = parts.boxes
    kept = np.zeros(len(boxes), bool)
    kept[parts.main] = True
    large = parts.mass > _MIN_MASS * parts.mass[parts.main]
    while True:
        start, stop = boxes[kept, 0].min(0), boxes[kept, 1].max(0)
        near = large & (_gap(boxes, start, stop) <= _NEAR * (stop - start).max())
        if (near <= kept).all():
            return np.append(False, kept)[parts.labels], bool(parts.contact[parts.main] == 0)
        kept |= near


def split_digits(ink: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Returns the mask of each digit, from left to right.

    Tall parts start digits; small parts, such as the bar of a five, join the nearest digit.

    Raises:
        InputError: there are more than 20 digits, or several lines.
    """
    parts = _find_parts(ink, mask)
    large = np.append(False, parts.mass > _MIN_MASS * parts.mass[parts.main])
    labels, boxes = _close_breaks(large[parts.labels])
    height, width = (boxes[:, 1] - boxes[:, 0]).T
    line_height = height.max()
    tall = np.flatnonzero(height >= _MIN_HEIGHT * line_height)
    strength = np.array([np.percentile(ink[labels == part + 1], 90) for part in tall])
    starts = tall[strength >= _MIN_STRENGTH * strength.max()].tolist()
    digits: list[list[int]] = []
    for part in sorted(starts, key=lambda part: boxes[part, :, 1].sum()):
        if digits and _is_stacked(_outline(boxes[digits[-1]]), boxes[part]):
            digits[-1].append(part)
        else:
            digits.append([part])
    if len(digits) > _MAX_DIGITS:
        raise InputError(f"expected at most {_MAX_DIGITS} digits, got {len(digits)}; crop the picture")
    outlines = np.array([_outline(boxes[digit]) for digit in digits])
    top, bottom = outlines[:, :, 0].T
    if (np.maximum(top[1:], top[:-1]) >= np.minimum(bottom[1:], bottom[:-1])).any():
        raise InputError("expected one line of digits, got several; crop the picture to one line")
    for part in np.flatnonzero((height < _MIN_HEIGHT * line_height) & (width <= line_height)).tolist():
        gap = _gap(outlines, *boxes[part]) / (outlines[:, 1] - outlines[:, 0]).max(axis=1)
        if gap.min() <= _NEAR:
            digits[int(gap.argmin())].append(part)
    return [np.isin(labels, np.array(digit) + 1) for digit in digits]


def _close_breaks(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels the parts of a mask, and returns their boxes; the pieces of a broken stroke are one part."""
    distance = ndimage.distance_transform_edt(~mask)
    line_height = 0
    while True:
        labels = mask * ndimage.label(distance <= _BREAK / 2 * line_height, np.ones((3, 3)))[0]
        boxes = _boxes(labels)
        tallest = (boxes[:, 1, 0] - boxes[:, 0, 0]).max()
        if tallest <= line_height:
            return labels, boxes
        line_height = tallest


def _is_stacked(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether one box lies above another one, straight or slanted, and close to it."""
    sizes = np.array([one[1] - one[0], other[1] - other[0]])
    rows, columns = np.maximum(one[0], other[0]) - np.minimum(one[1], other[1])  # gaps, negative where they overlap
    return bool(columns <= _BREAK * sizes.max() and -sizes[:, 0].min() / 2 <= rows <= _NEAR * sizes.max())


def _outline(boxes: np.ndarray) -> np.ndarray:
    return np.array([boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)])


def sides(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the first and last row and column of an image ``[H, W]``."""
    return image[0], image[-1], image[:, 0], image[:, -1]


def _find_parts(ink: np.ndarray, mask: np.ndarray) -> _Parts:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    mass = np.bincount(labels[mask], ink[mask], count + 1)[1:]
    boxes = _boxes(labels)
    contacts = [np.bincount(side, minlength=count + 1)[1:] for side in sides(labels)]
    contact = np.sum(contacts, axis=0)
    inside = np.where(contact == 0, mass, 0)
    if inside.max() > 0.1 * mass.max():
        across = np.count_nonzero(contacts, axis=0) > 1
        along = contact > (boxes[:, 1] - boxes[:, 0]).max(axis=1) / 3
        mass = np.where(across | along, 0, mass)
        return _Parts(labels, mass, boxes, contact, int(inside.argmax()))
    return _Parts(labels, mass, boxes, contact, int(mass.argmax()))


def _boxes(labels: np.ndarray) -> np.ndarray:
    return np.array(
        [[(rows.start, columns.start), (rows.stop, columns.stop)] for rows, columns in ndimage.find_objects(labels)]
    )


def _gap(boxes: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Returns the gap between each box and another one, negative where they overlap."""
    return np.maximum(boxes[:, 0] - stop, start - boxes[:, 1]).max(axis=1)
