import io
import re
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from drawing import SEVEN, distance, draw_seven, encode, grey
from PIL import Image, ImageDraw

from mnist_jax import InputError
from mnist_jax.pictures import decode
from mnist_jax.pictures.decode import is_small_png, read_picture
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
        ("TIFF", Image.fromarray(np.asarray(draw_seven(), np.float32) / 255 * 2 - 1)),
        ("TIFF", Image.fromarray(np.asarray(draw_seven(), np.int32) * 200)),
        ("TIFF", Image.fromarray(np.asarray(draw_seven(), np.int32) - 255)),
    ],
)
def test_any_format(format, image):
    picture = read_picture(encode(image, format), "seven")
    assert 0 <= picture.min() < picture.max() <= 255
    assert distance(prepare_image(picture), SEVEN) < 2


@pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP", "PNG"])
def test_of_several_pages_the_first_is_read_with_a_notice(caplog, format):
    pages = {"save_all": True, "append_images": [Image.new("L", (280, 280), 255), draw_seven(paper=0, ink=255)]}
    content = encode(draw_seven(), format, lossless=True, **pages)
    with warnings.catch_warnings(action="error"):
        picture = read_picture(content, "seven")
    assert caplog.messages == ["seven: has several pages or frames, only the first was read"]
    np.testing.assert_array_equal(picture, read_picture(encode(draw_seven(), format, lossless=True), "one"))
    assert len(caplog.messages) == 1


def test_damage_after_the_first_page_does_not_matter():
    content = encode(draw_seven(), "GIF", save_all=True, append_images=[Image.new("L", (280, 280), 255)])
    first = read_picture(content, "seven")
    for end in range(len(content) - 20, len(content)):
        np.testing.assert_array_equal(read_picture(content[:end], "cut"), first)


def test_the_second_picture_of_a_photograph_is_no_page(caplog):
    content = encode(draw_seven(), "MPO", save_all=True, append_images=[draw_seven()])
    with Image.open(io.BytesIO(content)) as image:
        assert image.is_animated
    read_picture(content, "seven.jpg")
    assert caplog.messages == []


@pytest.mark.parametrize("extremes", [(-np.inf, np.inf), (-3e38, 3e38), (0, np.inf), (np.nan, -np.inf), (0, 1e-44)])
def test_extreme_numbers_stay_finite(extremes):
    numbers = np.zeros((28, 28), np.float32)
    numbers[10, 10:12] = extremes
    picture = read_picture(encode(Image.fromarray(numbers), "TIFF"), "x")
    assert np.isfinite(picture).all()
    assert 0 <= picture.min() <= picture.max() <= 255


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


BOMB = "bomb: expected at most 24 million pixels (JPEG: 50 million) and sides of at most 20,000, got "
NO_PICTURE = "x: expected a PNG, JPEG, WebP, BMP, GIF or TIFF picture, got something else"


def png_header(width, height):
    """The header of a PNG with 16 bits of each channel of RGBA, without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    "width, height, got",
    [
        (4900, 4900, "4900x4900"),
        (7071, 7071, "7071x7071"),
        (1, 20_001, "1x20001"),
        (20_001, 1, "20001x1"),
        (1, 50_000_000, "1x50000000"),
        (20_000, 20_000, "more"),
    ],
)
def test_a_bomb_is_refused_by_its_header(width, height, got):
    with pytest.raises(InputError, match=f"^{re.escape(BOMB + got)}$"):
        read_picture(png_header(width, height) + b"\0\0\0\0IDAT", "bomb")


def test_a_tile_larger_than_its_picture_is_refused():
    tags = [
        (256, 100),
        (257, 100),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 30_000),
        (323, 30_000),
        (324, 8),
        (325, 9),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    with pytest.raises(InputError, match=f"^{re.escape(BOMB)}30000x30000$"):
        read_picture(content, "bomb")


def test_the_scans_of_a_jpeg_are_limited():
    content = encode(draw_seven(), "JPEG", progressive=True)
    head, last = content[: content.rindex(b"\xff\xda")], content[content.rindex(b"\xff\xda") : -2]
    num_scans = content.count(b"\xff\xda")

    def repeat(count):
        return read_picture(head + (count - num_scans + 1) * last + b"\xff\xd9", "x")

    assert repeat(100).shape == (280, 280)
    with pytest.raises(InputError, match=r"^x: expected a JPEG of at most 100 scans, got more$"):
        repeat(101)


def test_bytes_after_a_jpeg_are_ignored():
    content = encode(draw_seven(), "JPEG")
    appended = np.random.default_rng(0).bytes(8_000_000)  # as long as the film of a "motion photo"
    assert appended.count(b"\xff\xda") > 100
    np.testing.assert_array_equal(read_picture(content + appended, "x"), read_picture(content, "x"))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_scans_of_any_number_of_components_are_limited(mode):
    content = encode(draw_seven().convert(mode), "JPEG")
    start = content.index(b"\xff\xda")
    with pytest.raises(InputError, match=r"^x: expected a JPEG of at most 100 scans, got more$"):
        read_picture(content[:start] + 101 * content[start:-2] + b"\xff\xd9", "x")


def test_a_jpeg_may_have_the_pixels_of_a_phone(monkeypatch):
    content, other = encode(draw_seven(), "JPEG"), encode(draw_seven())
    monkeypatch.setattr(decode, "_MAX_PIXELS", 279 * 280)
    assert read_picture(content, "seven.jpg").shape == (280, 280)
    monkeypatch.setattr(decode, "_MAX_JPEG_PIXELS", 279 * 280)
    for each in (content, other):
        with pytest.raises(InputError, match=r"^x: expected at most .* got 280x280$"):
            read_picture(each, "x")


def test_one_picture_does_not_wait_for_another(monkeypatch):
    to_grey, started, release = decode._to_grey, threading.Event(), threading.Event()

    def wait(image):
        if image.size == (280, 280):
            started.set()
            assert release.wait(60)
        return to_grey(image)

    monkeypatch.setattr(decode, "_to_grey", wait)
    filters = list(warnings.filters)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(read_picture, encode(draw_seven()), "slow")
        assert started.wait(60)
        try:
            assert read_picture(encode(draw_seven(side=100)), "fast").shape == (100, 100)
        finally:
            release.set()
        assert slow.result().shape == (280, 280)
    assert warnings.filters == filters


def insert(content, *chunks):
    """A PNG with more chunks after its header."""
    return (
        content[:33]
        + b"".join(struct.pack(">I", len(data)) + kind + data + bytes(4) for kind, data in chunks)
        + content[33:]
    )


def test_a_small_png_is_known_by_its_header():
    drawing = encode(draw_seven())
    assert is_small_png(drawing)
    assert is_small_png(insert(drawing, (b"sRGB", b"\0")))
    assert is_small_png(png_header(512, 512))
    others = [
        b"",
        drawing[:23],
        drawing + bytes(2**16),
        encode(draw_seven(), "JPEG"),
        png_header(513, 1),
        png_header(1, 513),
        insert(drawing, (b"IHDR", png_header(4000, 4000)[16:29])),
        insert(drawing, (b"zTXt", b"")),
        insert(drawing, (b"iTXt", b"")),
        insert(drawing, (b"iCCP", b"")),
    ]
    assert not any(is_small_png(content) for content in others)


def test_libtiff_does_not_write_to_the_terminal(capfd):
    content = bytearray(encode(draw_seven(), "TIFF", compression="tiff_lzw"))
    content[200:240] = b"\xff" * 40
    with pytest.raises(OSError):
        Image.open(io.BytesIO(content)).load()
    loud = capfd.readouterr().err
    with pytest.raises(InputError, match=r"^x: the picture is damaged or truncated \(.+\)$"):
        read_picture(bytes(content), "x")
    assert capfd.readouterr().err == ""
    with pytest.raises(OSError):
        Image.open(io.BytesIO(content)).load()
    assert capfd.readouterr().err == loud != ""


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
