"""Reads picture files as grey pixels.

    picture = read_picture(read_file("seven.jpg"), "seven.jpg")   # float32[H, W]

Files whose header gives too large a size are rejected before decoding.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_jax.errors import InputError

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MAX_PIXELS = 50_000_000
_ONE_AT_A_TIME = threading.Lock()  # warning filters are shared by all threads
_MAX_SIDE = 1000  # larger pictures are scaled down


def read_picture(content: bytes, name: str) -> np.ndarray:
    """Converts a PNG, JPEG, WebP, BMP, GIF or TIFF picture of any mode to grey.

    Transparent pixels get a background that contrasts with the ink. EXIF data rotates photographs upright.

    Args:
        content: content of the file.
        name: name of the file, for messages.

    Returns:
        ``float32[H, W]`` in [0, 255]. Larger pictures are scaled down to 1000 pixels on the longer side.

    Raises:
        InputError: the content is not such a picture, is damaged, or has more than 50 million pixels.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (6, 4), "white").save(file, "PNG")
        >>> read_picture(file.getvalue(), "white.png").shape
        (4, 6)
    """
    try:
        with _ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, or about sizes that are rejected below
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise InputError(
                        f"{name}: expected at most {_MAX_PIXELS // 10**6} million pixels, "
                        f"got {image.width}x{image.height}"
                    )
                image.draft(None, (_MAX_SIDE, _MAX_SIDE))  # lets the JPEG decoder scale down early
                return _to_grey(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{name}: expected at most {_MAX_PIXELS // 10**6} million pixels, got more") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: expected a PNG, JPEG, WebP, BMP, GIF or TIFF picture, got something else") from None
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        raise InputError(f"{name}: the picture is damaged or truncated ({' '.join(str(error).split())})") from None


def _to_grey(image: Image.Image) -> np.ndarray:
    if image.mode[0] in "IF":  # 16 or 32 bits per pixel
        numbers = np.nan_to_num(np.asarray(image, np.float32))
        peak = float(np.abs(numbers).max())
        image = Image.fromarray(numbers * (255 / peak if peak > 255 or 0 < peak <= 1 else 1))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode != "L":
        image = image.convert("RGB")
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
