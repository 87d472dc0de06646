import numpy as np
import pytest
from drawing import distance, grey
from PIL import Image, ImageDraw
from scipy import ndimage

from mnist_jax.data.strokes import crop, render_ink


def draw(width, side=280):
    """The ink of a cross of two strokes, cropped."""
    image = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(image)
    for line in ([(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]):
        pen.line([(side * x, side * y) for x, y in line], fill=255, width=width)
    return crop(grey(image) / 255, 0)


def draw_ring(hole, side=200):
    """A ring around a hole of a given diameter, of 200 pixels."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    radius = np.hypot(x, y)
    return ((radius <= side / 2) & (radius >= hole / 2)).astype(np.float32)


def num_holes(image):
    ink = image[..., 0] > 127
    return ndimage.label(ndimage.binary_fill_holes(ink) & ~ink)[1]


def mean_width(image):
    """Mean width of strokes in pixels, from the area of the image: a cross of two diagonals of 20 pixels."""
    return image.sum() / 255 / (2 * 20 * np.sqrt(2))


def test_the_image_is_as_mnist_makes_them():
    image = render_ink(draw(20))
    rows, columns = np.nonzero(image[..., 0])
    assert image.shape == (28, 28, 1)
    assert image.dtype == np.uint8
    assert (np.ptp(rows), np.ptp(columns), image.max()) == (19, 19, 255)
    np.testing.assert_allclose(ndimage.center_of_mass(image[..., 0]), (14, 14), atol=0.5)


@pytest.mark.parametrize("width", [2, 4, 10, 20])
def test_strokes_of_any_width_become_equally_wide(width):
    np.testing.assert_allclose(mean_width(render_ink(draw(width))), mean_width(render_ink(draw(15))), rtol=0.05)


@pytest.mark.parametrize("scale", [0.2, 0.5, 4])
def test_the_scale_of_the_ink_changes_little(scale):
    scaled = draw(round(20 * scale), side=round(280 * scale))
    assert distance(render_ink(scaled), render_ink(draw(20))) < 8


@pytest.mark.parametrize("hole", [12, 20, 60, 150])
def test_a_hole_that_would_close_keeps_a_gap(hole):
    assert num_holes(render_ink(draw_ring(hole))) == 1
    assert num_holes(render_ink(np.ones((200, 200), np.float32))) == 0


def test_a_thin_stroke_beside_a_thick_one_stays():
    ink = np.zeros((200, 100), np.float32)
    ink[:, :70] = 1
    ink[98:100, 70:] = 1  # a hairline beside a block
    image = render_ink(ink)
    columns = np.flatnonzero(image[..., 0].any(axis=0))
    assert np.ptp(columns) + 1 == 20 * 100 // 200


def test_faint_ink_counts_if_it_is_connected_with_strong_ink():
    ink = np.zeros((200, 80), np.float32)
    ink[:, :20], ink[:, 60:] = 1, 0.4
    strong = render_ink(ink[:, :20])
    np.testing.assert_array_equal(render_ink(ink), strong)
    ink[90:110, 20:60] = 0.4  # connects the two strokes
    whole = render_ink((ink > 0).astype(np.float32))
    assert distance(render_ink(ink), whole) < 1
    ink[ink == np.float32(0.4)] = 0.3  # too faint
    assert distance(render_ink(ink), strong) < 2
    assert distance(strong, whole) > 40
