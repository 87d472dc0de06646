"""Converts a picture of a handwritten digit to the format of MNIST.

    image = prepare_image(picture)     # grey [H, W] in [0, 255] to uint8[28, 28, 1], light on dark
    images = prepare_images(picture)   # the same for several digits: uint8[D, 28, 28, 1], from left to right

MNIST images are black and white scans, cropped to the ink, scaled so that the longer side is 20 pixels, and shifted so
that its centre of mass is pixel (14, 14). A classifier knows only such images, so other pictures are converted first:
find the ink, correct uneven light, give all strokes the width of MNIST, then scale and centre.

Reference: http://yann.lecun.com/exdb/mnist/ describes how MNIST was made.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from mnist_jax.data.strokes import CENTRE, INK_SIDE, SIDE, crop, render_ink, resize
from mnist_jax.errors import InputError
from mnist_jax.pictures.segment import select_digit, sides, split_digits

_MIN_SIDE = 8
_WORKING_SIDE = 240  # longer side in pixels at which ink is searched
_MAP_SIDE = 64  # longer side at which the background is estimated
_WINDOWS = (0.4, 0.2, 0.1)  # largest stroke widths, as shares of the longer side; the first that works is used
_LINE_SIDE, _LINE_WINDOWS = 480, (0.2, 0.1)  # the same for a line of digits
_MIN_CONTRAST = 16.0  # of 255
# A picture of two tones is a tight crop if it is small, or its ink comes close to all four sides.
_MIN_SEPARABILITY = 0.75
_SMALL_SIDE = 64  # longer side in pixels
_MAX_GAP = 0.1  # between ink and each side, as a share of the longer side
_PADDING = 0.2  # as a share of the longer side


def prepare_image(picture: np.ndarray) -> np.ndarray:
    """Converts a picture of one digit, dark on light or light on dark, to the format of MNIST.

    Args:
        picture: ``[H, W]`` or ``[H, W, 1]``, grey in [0, 255].

    Returns:
        ``uint8[28, 28, 1]``, light on dark. MNIST images are returned unchanged, or nearly so.

    Raises:
        InputError: no ink is found, the picture is smaller than 8x8 pixels, or a pixel is not finite.

    Example:
        >>> paper = np.full((300, 400), 230, np.uint8)
        >>> paper[60:220, 90:110] = 40  # a dark 1, off-centre
        >>> image = prepare_image(paper)
        >>> rows, columns = np.nonzero(image[..., 0])
        >>> image.shape, image.max().item(), np.unique(rows).size, np.unique(columns).size
        ((28, 28, 1), 255, 20, 3)
    """
    grey = _check(picture)
    if _is_prepared(grey):
        return grey.astype(np.uint8)[..., None]
    contrast, _, digit = _find_ink(grey)
    return _render(contrast, digit)


def prepare_images(picture: np.ndarray) -> np.ndarray:
    """Converts a picture of digits written side by side to the format of MNIST, one image per digit.

    Pieces of ink belong to one digit if they almost touch, or lie close above one another. Specks, points and the edge
    of the paper are left out. Digits that touch each other cannot be separated: they are returned as one.

    Args:
        picture: ``[H, W]`` or ``[H, W, 1]``, grey in [0, 255], with one line of 1 to 20 digits.

    Returns:
        ``uint8[D, 28, 28, 1]``, the digits from left to right. One digit gives the image of :func:`prepare_image`.

    Raises:
        InputError: as :func:`prepare_image`, or there are several lines or more than 20 digits.

    Example:
        >>> paper = np.full((300, 400), 230, np.uint8)
        >>> paper[60:220, 90:110] = paper[60:220, 200:220] = 40  # 11
        >>> prepare_images(paper).shape
        (2, 28, 28, 1)
    """
    grey = _check(picture)
    if _is_prepared(grey):
        return prepare_image(grey)[None]
    contrast, mask, main_digit = _find_ink(grey)
    digits = split_digits(contrast, mask)
    if len(digits) > 1:  # each is small in the picture
        line, mask, _ = _find_ink(grey, _LINE_SIDE, _LINE_WINDOWS)
        digits = split_digits(line, mask)
    if len(digits) == 1:
        return _render(contrast, main_digit)[None]
    return np.stack([_render(line, digit) for digit in digits])


def _check(picture: np.ndarray) -> np.ndarray:
    """Returns a picture as ``float32[H, W]``."""
    grey = np.asarray(picture, np.float32)
    if grey.ndim == 3 and grey.shape[2] == 1:
        grey = grey[..., 0]
    if grey.ndim != 2 or min(grey.shape) < _MIN_SIDE:
        raise InputError(f"expected a picture of at least {_MIN_SIDE}x{_MIN_SIDE} grey pixels, got {list(grey.shape)}")
    if not np.isfinite(grey).all():
        raise InputError("expected finite pixels, got NaN or infinity")
    return grey


def _is_prepared(grey: np.ndarray) -> bool:
    """Returns whether an image already has the background, scale and centre of MNIST."""
    if grey.shape != (SIDE, SIDE) or grey.max() < 200:
        return False
    centre = ndimage.center_of_mass(grey)
    return max(crop(grey, 0.5).shape) in (INK_SIDE - 1, INK_SIDE) and all(
        abs(middle - CENTRE) <= 1 for middle in centre
    )


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Scales down so that the longer side is at most ``side`` pixels."""
    factor = side / max(image.shape)
    return image if factor >= 1 else resize(image, factor)


def _enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Scales up so that the longer side is at least ``side`` pixels."""
    factor = side / max(image.shape)
    return image if factor <= 1 else resize(image, factor)


def _pad_tight_crop(grey: np.ndarray) -> np.ndarray:
    """Adds paper around a small picture, or one that was cropped to its ink; others stay as they are."""
    threshold, separability = _otsu(grey)
    if separability < _MIN_SEPARABILITY:
        return grey
    ink = grey < threshold
    if np.concatenate(sides(ink)).mean() > 0.5:
        ink = ~ink
    if max(ink.shape) > _SMALL_SIDE:
        rows, columns = np.nonzero(ink)
        height, width = ink.shape
        gap = max(rows.min(), height - 1 - rows.max(), columns.min(), width - 1 - columns.max())
        # The edge of a sheet fills a side, as a narrow crop of a 1 may.
        has_edge = min(ink.shape) > 0.4 * max(ink.shape) and any(side.all() for side in sides(ink))
        if gap > _MAX_GAP * max(ink.shape) or has_edge:
            return grey
    return np.pad(grey, round(_PADDING * max(ink.shape)), constant_values=np.median(grey[~ink]))


def _otsu(image: np.ndarray) -> tuple[float, float]:
    """Returns the threshold that separates the pixels best, and the share of their variance that it explains.

    Reference: Otsu, "A Threshold Selection Method from Gray-Level Histograms", 1979,
    https://doi.org/10.1109/TSMC.1979.4310076.
    """
    lowest, unit = float(image.min()), float(np.ptp(image)) / 255
    if not unit:
        return lowest, 0.0
    count = np.bincount(np.rint((image - lowest) / unit).astype(np.uint8).ravel(), minlength=256) / image.size
    level = np.arange(256)
    below, mean = np.cumsum(count)[:-1], np.cumsum(count * level)
    between = (mean[-1] * below - mean[:-1]) ** 2 / (below * (1 - below))  # both classes have pixels
    best = int(between.argmax())
    variance = float(count @ (level - mean[-1]) ** 2)
    return lowest + unit * (best + 0.5), float(between[best] / variance)


def _find_ink(
    grey: np.ndarray, side: int = _WORKING_SIDE, windows: tuple[float, ...] = _WINDOWS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the contrast with the background, the mask of the ink, and the mask of the main digit."""
    grey = _enlarge(_pad_tight_crop(_shrink(grey, side)), _SMALL_SIDE)
    if _roughness(grey) > 1:
        grey = ndimage.gaussian_filter(grey, 1.0)
    small = _shrink(grey, _MAP_SIDE)
    dark = _has_dark_ink(small)
    found = []
    for window in windows:
        contrast = _contrast(grey, _background(small, dark, window), dark)
        noise = _roughness(contrast)
        peak = float(contrast.max())
        if peak < max(_MIN_CONTRAST, 14 * noise):
            raise _no_ink()
        mask = contrast > max(0.2 * peak, 4 * noise)
        digit, inside = select_digit(contrast, mask)
        found.append((contrast, mask, digit))
        if inside and _stroke_width(digit) < 0.6 * window * max(grey.shape):
            break
    else:
        # Either the ink touches the border, or there is none and light falls off there, without sharp edges.
        if np.abs(grey - ndimage.gaussian_filter(grey, 2.0, mode="nearest")).max() < _MIN_CONTRAST / 2:
            raise _no_ink()
        found = found[:1]
    return found[-1]


def _render(contrast: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Renders the ink of one digit, and its soft rim."""
    peak = float(np.percentile(contrast[mask], 90))
    near = ndimage.maximum_filter(mask.view(np.uint8), 3) > 0
    ink = np.where(near, np.clip(contrast / peak, 0, 1), 0)
    return render_ink(crop(ink, 0.04))


def _no_ink() -> InputError:
    return InputError("no ink found: expected a digit that stands out from its background")


def _roughness(image: np.ndarray) -> float:
    """Estimates the standard deviation of the noise, assumed to be independent between neighbours."""
    return 1.05 * float(np.median(np.abs(np.diff(image, axis=1))))


def _stroke_width(mask: np.ndarray) -> float:
    """Returns the mean width of the strokes in pixels: twice their area over the length of their edges."""
    inner = ndimage.minimum_filter(mask.view(np.uint8), 3)
    return 2 * np.count_nonzero(mask) / np.count_nonzero(mask > inner)


def _has_dark_ink(small: np.ndarray) -> bool:
    """Returns whether ink is dark, by the skewness of detail: strokes deviate to one side, edges of paper to both."""
    skewness = 0.0
    for scale in (0.03, 0.06, 0.12, 0.2):
        detail = small - ndimage.gaussian_filter(small, scale * max(small.shape), mode="nearest")
        square = detail**2
        skewness += float(np.mean(detail * square) / (np.mean(square) + 1e-9) ** 1.5)  # `detail**3` is far slower
    return skewness < 0


def _background(small: np.ndarray, dark: bool, window: float) -> np.ndarray:
    """Removes everything narrower than ``window``, a share of the longer side, by grey morphology."""
    size = max(3, round(window * max(small.shape)))
    morphology = ndimage.grey_closing if dark else ndimage.grey_opening
    return morphology(small, size=(size, size), mode="nearest")


def _contrast(grey: np.ndarray, background: np.ndarray, dark: bool) -> np.ndarray:
    """Returns the contrast of each pixel with the background, positive for ink, about 0 to 255."""
    height, width = grey.shape
    background = np.asarray(Image.fromarray(background).resize((width, height), Image.Resampling.BILINEAR))
    # Dark ink on paper reflects a fraction of the light, so the contrast is relative.
    contrast = 255 * (1 - grey / np.maximum(background, 32)) if dark else grey - background
    flat = contrast[contrast < _MIN_CONTRAST]
    return contrast - np.median(flat) if flat.size else contrast
