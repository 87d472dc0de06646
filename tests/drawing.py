"""A drawn seven, and how far prepared images are apart."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mnist_jax.pictures.normalize import prepare_image

PHOTOGRAPH = Path(__file__).parent / "images" / "seven.jpg"


def draw_seven(side=280, paper=255, ink=0, width=18, mode="L"):
    """A seven in the upper left of a square."""
    image = Image.new(mode, (side, side), paper)
    corners = [(side * x, side * y) for x, y in ((0.15, 0.1), (0.45, 0.1), (0.3, 0.55))]
    ImageDraw.Draw(image).line(corners, fill=ink, width=width, joint="curve")
    return image


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def grey(image):
    return np.asarray(image, np.float32)


def distance(one, other):
    """Mean difference of two prepared images, of 255; the rounding of the centre may move one by a pixel."""
    moves = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return min(np.abs(np.roll(one, move, (0, 1)).astype(float) - other).mean() for move in moves)


SEVEN = prepare_image(grey(draw_seven()))
