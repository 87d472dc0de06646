"""Reads picture files of any kind as grey pixels.

    picture = read_picture(read_file("seven.jpg"), "seven.jpg")   # float32[H, W]

A file is trusted no further than its header: what says that it is too large is not decoded.
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
_ONE_AT_A_TIME = threading.Lock()  # what Python does about warnings is the same for all threads
_MAX_SIDE = 1000  # a larger picture is scaled down when it is read


def read_picture(content: bytes, name: str) -> np.ndarray:
    """Reads a PNG, JPEG, WebP, BMP, GIF or TIFF picture of any mode as grey.

    Transparency gets the background that the ink stands out from; a photograph is turned upright by its EXIF data.

    Args:
        content: of the file.
        name: of the file, for messages.

    Returns:
        ``float32[H, W]`` in [0, 255]; the longer side at most 1000 pixels, to which larger pictures are scaled down.

    Raises:
        InputError: it is no such picture, damaged, or of more than 50 million pixels.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (6, 4), "white").save(file, "PNG")
        >>> read_picture(file.getvalue(), "white.png").shape
        (4, 6)
    """
    try:
        with _ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, or of a size that is refused below
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise InputError(
                        f"{name}: at most {_MAX_PIXELS // 10**6} million pixels wanted, "
                        f"got {image.width}x{image.height}"
                    )
                image.draft(None, (_MAX_SIDE, _MAX_SIDE))  # lets JPEG skip what would be scaled away
                return _to_grey(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{name}: at most {_MAX_PIXELS // 10**6} million pixels wanted, got more") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: a PNG, JPEG, WebP, BMP, GIF or TIFF picture wanted, got something else") from None
    except Exception as error:  # Pillow's decoders raise of every kind over damaged files
        raise InputError(f"{name}: the picture is damaged or truncated ({' '.join(str(error).split())})") from None


def _to_grey(image: Image.Image) -> np.ndarray:
    if image.mode[0] in "IF":  # 16 or 32 bits a pixel
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
    """Lays ``[H, W, 4]`` on a background: that of the opaque part, or if that is ink alone, what contrasts with it."""
    colour, alpha = pixels[..., :3], pixels[..., 3:] / 255
    opaque = colour[alpha[..., 0] > 0.5]
    background: np.ndarray | float = 255.0
    if 2 * len(opaque) > alpha.size:
        background = np.median(opaque, axis=0)
    elif len(opaque) and opaque.mean() > 127:
        background = 0.0
    return colour * alpha + background * (1 - alpha)


def _project(pixels: np.ndarray) -> np.ndarray:
    """``[H, W, 3]`` as grey: the direction in which its colours differ most, so that red on green is seen."""
    sample = pixels.reshape(-1, 3)[:: max(1, pixels.size // 30_000)].astype(np.float64)
    _, directions = np.linalg.eigh(np.cov(sample, rowvar=False) + np.eye(3) * 1e-3 + 1e-3)
    weights = directions[:, -1].astype(np.float32)
    weights *= np.sign(weights.sum() or 1.0) / np.abs(weights).sum()
    return np.clip(pixels @ weights - 255 * weights[weights < 0].sum(), 0, 255)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Reads a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from None
