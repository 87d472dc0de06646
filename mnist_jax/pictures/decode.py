"""Reads picture files as grey pixels.

    picture = read_picture(read_file("seven.jpg"), "seven.jpg")   # float32[H, W]

Files whose header gives too large a size are rejected before decoding. Threads may decode at the same time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, _imaging

from mnist_jax.errors import InputError, one_line

_log = logging.getLogger("mnist_jax")

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
PICTURE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    *(".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
)
_MAX_PIXELS = 24_000_000
_MAX_JPEG_PIXELS = 50_000_000  # photographs of phones; the JPEG decoder scales down early
_LONGEST_SIDE = 20_000
_MAX_SCANS = 100  # of a JPEG, as in libtiff; 10 MB can hold 250,000, which take half an hour
# Marker, length and number of components; the marker alone also occurs by chance, as in the film of a "motion photo".
_SCAN_HEADER = re.compile(rb"\xff\xda\x00(?:\x06\x00|\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_MAX_SIDE = 1000  # larger pictures are scaled down
_SMALL_SIDE, _SMALL_FILE = 512, 2**16  # pixels, bytes


def read_picture(content: bytes, name: str) -> np.ndarray:
    """Converts a PNG, JPEG, WebP, BMP, GIF or TIFF picture of any mode to grey.

    Transparent pixels get a background that contrasts with the ink. EXIF data rotates photographs upright. Of several
    pages or frames the first is read, and a notice is logged.

    Args:
        content: content of the file.
        name: name of the file, for messages.

    Returns:
        ``float32[H, W]`` in [0, 255]. Larger pictures are scaled down to 1000 pixels on the longer side.

    Raises:
        InputError: the content is not such a picture, is damaged, or has more than 24 million pixels (JPEG: 50 million)
            or a side of more than 20,000.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (6, 4), "white").save(file, "PNG")
        >>> read_picture(file.getvalue(), "white.png").shape
        (4, 6)
    """
    try:
        with _SILENCE, Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_cost(image, content, name)
            image.draft(None, (_MAX_SIDE, _MAX_SIDE))  # lets the JPEG decoder scale down early
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            pixels = _to_grey(image)
            if _has_more_pages(image):
                _log.warning("%s: has several pages or frames, only the first was read", name)
            return pixels
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name, "more") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: expected a PNG, JPEG, WebP, BMP, GIF or TIFF picture, got something else") from None
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        raise InputError(f"{name}: the picture is damaged or truncated ({one_line(error)})") from None


def is_small_png(content: bytes) -> bool:
    """Returns whether a picture is a PNG that certainly takes a few milliseconds to decode; reads its header only.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (280, 280)).save(file, "PNG")
        >>> is_small_png(file.getvalue())
        True
    """
    if len(content) > _SMALL_FILE or content[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" or len(content) < 24:
        return False
    # A second header would change the size, and compressed text can be much longer than the file.
    is_plain = content.count(b"IHDR") == 1 and not any(kind in content for kind in (b"iCCP", b"iTXt", b"zTXt"))
    return is_plain and max(struct.unpack(">II", content[16:24])) <= _SMALL_SIDE


class _Silence:
    """Silences Python's warnings and libtiff's messages while any thread decodes: both belong to the whole process."""

    def __init__(self) -> None:
        self._lock, self._num_threads, self._undo = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_threads:
                self._undo.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")  # about damaged metadata, or about sizes that are rejected
                set_handler = _libtiff_error_handler()
                self._undo.callback(set_handler, set_handler(None))
            self._num_threads += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_threads -= 1
            if not self._num_threads:
                self._undo.close()


_SILENCE = _Silence()


@functools.cache
def _libtiff_error_handler() -> Callable[[int | None], int | None]:
    """Returns the function that sets the error handler of Pillow's libtiff, whose default writes to stderr."""
    try:
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):
        return lambda handler: handler  # linked statically, or without libtiff
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    return set_handler


def _check_cost(image: Image.Image, content: bytes, name: str) -> None:
    """Raises an ``InputError`` if decoding would take too much memory or time."""
    is_jpeg = image.format in ("JPEG", "MPO")
    width, height = image.size
    if image.format == "TIFF":  # a tile may be larger than the picture
        width, height = max(width, image.tag_v2.get(322, 0)), max(height, image.tag_v2.get(323, 0))  # type: ignore[attr-defined]
    if width * height > (_MAX_JPEG_PIXELS if is_jpeg else _MAX_PIXELS) or max(width, height) > _LONGEST_SIDE:
        raise _too_large(name, f"{width}x{height}")
    if is_jpeg and sum(1 for _ in _SCAN_HEADER.finditer(content)) > _MAX_SCANS:
        raise InputError(f"{name}: expected a JPEG of at most {_MAX_SCANS} scans, got more")


def _has_more_pages(image: Image.Image) -> bool:
    """Returns whether a first page is followed by others; moves to the second one of a GIF."""
    if image.format in ("JPEG", "MPO"):  # further pictures in photographs of phones are versions of the first
        return False
    with contextlib.suppress(Exception):  # damage after the first page does not matter
        return getattr(image, "is_animated", False)
    return False


def _too_large(name: str, got: str) -> InputError:
    return InputError(
        f"{name}: expected at most {_MAX_PIXELS // 10**6} million pixels (JPEG: {_MAX_JPEG_PIXELS // 10**6} million) "
        f"and sides of at most {_LONGEST_SIDE:,}, got {got}"
    )


def _to_grey(image: Image.Image) -> np.ndarray:
    # A picture may take 100 MB, so no step makes more copies than it needs.
    if image.mode[0] in "IF":  # 16 or 32 bits per pixel
        numbers = np.array(image, np.float32)
        np.nan_to_num(numbers, copy=False)
        np.clip(numbers, -1e38, 1e38, out=numbers)  # so that differences are finite
        lowest = min(float(numbers.min()), 0.0)
        numbers -= lowest
        peak = float(numbers.max())
        if peak > 1e-30 and (lowest < 0 or peak <= 1 or peak > 255):
            numbers *= 255 / peak
        image = Image.fromarray(np.minimum(numbers, 255, out=numbers))
    else:
        mode = "RGBA" if image.has_transparency_data else "L" if image.mode == "L" else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image, np.float32)
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 4:
        pixels = _flatten(pixels)
    return _project(pixels)


def _flatten(pixels: np.ndarray) -> np.ndarray:
    """Lays ``[H, W, 4]`` on a background: the median opaque colour, or black or white if only the ink is opaque."""
    colour, alpha = pixels[..., :3], pixels[..., 3:] / 255
    opaque = colour[alpha[..., 0] > 0.5]
    background: np.ndarray | float = 255.0
    if 2 * len(opaque) > alpha.size:
        background = np.median(opaque, axis=0)
    elif len(opaque) and opaque.mean() > 127:
        background = 0.0
    return colour * alpha + background * (1 - alpha)


def _project(pixels: np.ndarray) -> np.ndarray:
    """Converts ``[H, W, 3]`` to grey along its first principal component, so red on green keeps its contrast."""
    sample = pixels.reshape(-1, 3)[:: max(1, pixels.size // 30_000)].astype(np.float64)
    _, directions = np.linalg.eigh(np.cov(sample, rowvar=False) + np.eye(3) * 1e-3 + 1e-3)
    weights = directions[:, -1].astype(np.float32)
    weights *= np.sign(weights.sum() or 1.0) / np.abs(weights).sum()
    return np.clip(pixels @ weights - 255 * weights[weights < 0].sum(), 0, 255)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of a file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from None
