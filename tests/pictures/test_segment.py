import numpy as np
import pytest
from drawing import PHOTOGRAPH, SEVEN, distance, draw_seven, grey
from PIL import Image, ImageDraw

from benchmarks.pictures import render
from mnist_jax import InputError, load_dataset, prepare_image, prepare_images
from mnist_jax.pictures.decode import read_picture


def draw(*drawings, size=(900, 300), width=16):
    """Draws digits, each a list of strokes, in cells of 100x200 pixels; the first two numbers are the cell's corner."""
    image = Image.new("L", size, 235)
    pen = ImageDraw.Draw(image)
    for left, top, *strokes in drawings:
        for stroke in strokes:
            pen.line([(left + x, top + y) for x, y in stroke], fill=30, width=width, joint="curve")
    return grey(image)


def arc(x, y, radius, start, stop):
    angle = np.radians(np.linspace(start, stop, 30))
    return [(x + radius * np.cos(each), y + radius * np.sin(each)) for each in angle]


ONE = [[(50, 0), (50, 200)]]
FOUR = [[(25, 10), (0, 120), (72, 120)], [(90, 10), (90, 200)]]  # its two strokes do not touch
FIVE = [[(20, 45), (20, 90), *arc(40, 140, 55, -90, 120)], [(35, 12), (100, 8)]]  # with a separate bar
SEVEN_STROKES = [[(0, 10), (95, 10), (40, 200)]]
ZERO = [arc(60, 100, 90, 95, 265), arc(60, 100, 90, -85, 85)]  # broken at the top and the bottom
SLASH = [[(90, 0), (56, 85)], [(44, 115), (10, 200)]]  # a slanted 1, broken in the middle
DIGITS = {"1": ONE, "/": SLASH, "4": FOUR, "5": FIVE, "7": SEVEN_STROKES, "0": ZERO}


@pytest.mark.parametrize("number", ["1", "4", "5", "7", "0", "11", "47", "540", "/", "7/15", "1040"])
def test_each_digit_is_as_it_is_alone(number):
    lefts = 50 + 210 * np.arange(len(number))
    tops = [40, 60, 30, 50][: len(number)]
    cells = [(left, top, *DIGITS[digit]) for left, top, digit in zip(lefts, tops, number, strict=True)]
    images = prepare_images(draw(*cells))
    assert images.shape == (len(number), 28, 28, 1)
    assert images.dtype == np.uint8
    for image, cell in zip(images, cells, strict=True):
        assert distance(image, prepare_image(draw(cell))) < 12
    for image, light in zip(images, prepare_images(255 - draw(*cells)), strict=True):
        assert distance(image, light) < 8


def test_one_digit_is_the_image_of_prepare_image(mnist_dir):
    digits = load_dataset("mnist", data_dir=mnist_dir).test.image[:20]
    rng = np.random.default_rng(0)
    pictures = [
        digits[0],
        *(render(digit, rng, noise=4) for digit in digits),
        grey(draw_seven()),
        read_picture(PHOTOGRAPH.read_bytes(), "seven.jpg"),
    ]
    for picture in pictures:
        np.testing.assert_array_equal(prepare_images(picture), prepare_image(picture)[None])


def test_digits_may_be_close_or_far_apart_and_slanted():
    slash = [[(60, 0), (0, 200)]]
    assert len(prepare_images(draw((50, 50, *ONE), (100, 50, *ONE)))) == 2
    assert len(prepare_images(draw((50, 50, *ONE), (750, 50, *ONE)))) == 2
    assert len(prepare_images(draw((50, 50, *slash), (100, 50, *slash)))) == 2  # their columns overlap


def test_specks_points_lines_and_the_edge_of_the_paper_are_no_digits():
    cells = (50, 50, *SEVEN_STROKES), (300, 60, *FIVE)
    clean = prepare_images(draw(*cells))
    # A point and an underline.
    picture = draw(*cells, (225, 235, [(0, 0), (10, 10)]), (40, 310, [(0, 0), (400, 0)]), size=(900, 500))
    picture[30, 600] = picture[270:273, 810:813] = 0
    picture[:, 880:] = 60
    picture[20] = 120
    images = prepare_images(picture)
    assert len(images) == 2
    for image, expected in zip(images, clean, strict=True):
        assert distance(image, expected) < 8


def test_a_wide_picture_keeps_its_detail():
    seven = grey(draw_seven(side=200, width=13))
    images = prepare_images(np.tile(seven, 12))
    assert len(images) == 12
    assert max(distance(image, SEVEN) for image in images) < 15


def test_noise_and_uneven_light_change_little():
    picture = draw(*((50 + 200 * i, 50, *digit) for i, digit in enumerate([ONE, FIVE, SEVEN_STROKES, ONE])))
    shadow = np.linspace(1, 0.5, 900)
    noise = np.random.default_rng(0).normal(0, 8, picture.shape)
    for image, expected in zip(prepare_images(picture * shadow + noise), prepare_images(picture), strict=True):
        assert distance(image, expected) < 12


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (
            draw((50, 20, *ONE), (250, 20, *FIVE), (50, 360, *FIVE), (250, 360, *ONE), size=(500, 600)),
            r"expected one line of digits, got several; crop the picture to one line",
        ),
        (
            np.tile(draw((0, 50, *ONE), size=(100, 300)), 21),
            r"expected at most 20 digits, got 21; crop the picture",
        ),
        (np.full((300, 400), 255), r"no ink found: expected a digit that stands out from its background"),
        (np.zeros((300, 7)), r"expected a picture of at least 8x8 grey pixels, got \[300, 7\]"),
    ],
    ids=["two lines", "21 digits", "blank", "narrow"],
)
def test_other_pictures_are_one_line(picture, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        prepare_images(picture)


@pytest.mark.slow
def test_single_digits_of_mnist_are_rarely_split(mnist_dir):
    rng = np.random.default_rng(0)
    digits = load_dataset("mnist", data_dir=mnist_dir).test.image[:2000]
    assert sum(len(prepare_images(render(digit, rng))) > 1 for digit in digits) <= 4
