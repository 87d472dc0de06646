import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from drawing import SEVEN, distance, draw_seven, encode, grey
from PIL import Image, ImageDraw

from mnist_jax import InputError
from mnist_jax.pictures.decode import read_picture
from mnist_jax.pictures.normalize import prepare_image

TRANSPARENT = draw_seven(paper=(0, 0, 0, 0), ink=(0, 0, 0, 255), mode="RGBA")
MODES = {
    "1": draw_seven().convert("1"),
    "L": draw_seven(),
    "LA": draw_seven(paper=(0, 0), ink=(0, 255), mode="LA"),
    "P": draw_seven().convert("P"),
    "P, transparent": TRANSPARENT.quantize(4, method=Image.Quantize.FASTOCTREE),
    "RGB": draw_seven(paper=(240, 230, 200), ink=(30, 40, 110), mode="RGB"),
    "RGB, red on green": draw_seven(paper=(0, 130, 0), ink=(255, 0, 0), mode="RGB"),
    "RGB, yellow on white": draw_seven(paper=(255, 255, 255), ink=(255, 255, 0), mode="RGB"),
    "RGBA, dark": TRANSPARENT,
    "RGBA, light": draw_seven(paper=(0, 0, 0, 0), ink=(255, 255, 255, 255), mode="RGBA"),
    "RGBA, opaque": draw_seven(paper=(255, 255, 255, 255), ink=(0, 0, 0, 255), mode="RGBA"),
    "I;16": Image.fromarray(np.asarray(draw_seven(), np.uint16) * 257),
}


@pytest.mark.parametrize("image", MODES.values(), ids=MODES)
def test_any_mode_of_a_png(image):
    picture = read_picture(encode(image), "seven.png")
    assert picture.shape == (280, 280)
    assert picture.dtype == np.float32
    assert 0 <= picture.min() < picture.max() <= 255
    assert distance(prepare_image(picture), SEVEN) < 1


@pytest.mark.parametrize(
    ("format", "image"),
    [
        ("JPEG", draw_seven()),
        ("JPEG", draw_seven().convert("CMYK")),
        ("WEBP", draw_seven().convert("RGB")),
        ("BMP", draw_seven()),
        ("GIF", draw_seven()),
        ("TIFF", draw_seven()),
        ("TIFF", Image.fromarray(np.asarray(draw_seven(), np.float32) / 255)),
        ("TIFF", Image.fromarray(np.asarray(draw_seven(), np.int32) * 200)),
    ],
)
def test_any_format(format, image):
    assert distance(prepare_image(read_picture(encode(image, format), "seven")), SEVEN) < 2


def test_grey_pixels_are_read_as_they_are():
    np.testing.assert_array_equal(read_picture(encode(draw_seven()), "seven.png"), grey(draw_seven()))


def test_what_is_transparent_around_an_opaque_picture_is_its_background():
    image = draw_seven(paper=(200, 200, 200, 255), ink=(0, 0, 0, 255), mode="RGBA")
    ImageDraw.Draw(image).rectangle((200, 200, 280, 280), fill=(0, 0, 0, 0))
    assert (
        read_picture(encode(image), "seven.png").min(where=np.indices((280, 280)).min(axis=0) > 190, initial=255) > 199
    )


def test_an_all_transparent_picture_has_no_ink():
    picture = read_picture(encode(Image.new("RGBA", (50, 50), (0, 0, 0, 0))), "nothing.png")
    with pytest.raises(InputError, match="^no ink found"):
        prepare_image(picture)


def test_a_photograph_is_turned_upright():
    lying = draw_seven().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    content = encode(lying, "JPEG", exif=exif, quality=95)
    assert distance(prepare_image(read_picture(content, "seven.jpg")), SEVEN) < 1


def test_a_large_photograph_is_scaled_down():
    content = encode(draw_seven(side=4000, width=257), "JPEG")
    picture = read_picture(content, "seven.jpg")
    assert picture.shape == (1000, 1000)
    assert distance(prepare_image(picture), SEVEN) < 2


BOMB = "bomb.png: expected at most 50 million pixels, got"
NO_PICTURE = "x: expected a PNG, JPEG, WebP, BMP, GIF or TIFF picture, got something else"


@pytest.mark.parametrize("side, got", [(7100, "7100x7100"), (10_000, "10000x10000"), (20_000, "more")])
def test_a_bomb_is_refused_by_its_header(side, got):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = encode(Image.new("1", (side, side)))
    with pytest.raises(InputError, match=f"^{BOMB} {got}$"):
        read_picture(content[:200], "bomb.png")  # nothing but the header is there


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 999])
def test_what_is_no_image_is_one_line(content):
    with pytest.raises(InputError, match=f"^{NO_PICTURE}$"):
        read_picture(content, "x")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_one_line(format, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encode(Image.fromarray(noise), format)
    with pytest.raises(InputError, match="^x: ") as caught:
        read_picture(content[: int(len(content) * share)], "x")
    assert "damaged or truncated" in str(caught.value) or str(caught.value) == NO_PICTURE
    assert "\n" not in str(caught.value)


def test_a_damaged_png_is_one_line():
    content = bytearray(encode(draw_seven()))
    content[content.index(b"IDAT") + 4] ^= 255
    with pytest.raises(InputError, match=r"^x: the picture is damaged or truncated \(.+\)$"):
        read_picture(bytes(content), "x")


def test_threads_leave_warnings_as_they_are():
    content, filters = encode(draw_seven()), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(lambda _: read_picture(content, "x"), range(200)))
    assert len({picture.tobytes() for picture in pictures}) == 1
    assert warnings.filters == filters
