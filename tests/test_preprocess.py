import io
import zlib

import jax
import numpy as np
import pytest
from conftest import MNIST_DIR
from PIL import Image
from scipy import ndimage

from mnist_jax import InputError, Predictor, TrainConfig, fit, load_dataset
from mnist_jax.preprocess import prepare_image, read_picture

NUM_DIGITS = 400


def to_bytes(picture, format="PNG", **options):
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, format, **options)
    return file.getvalue()


def render(image, seed, scale=8, side=400, thickness=0.0, light_ink=False, gradient=0.0, noise=0.0):
    """A digit of MNIST, enlarged, off-centre on a canvas ``uint8[side, side]``.

    ``thickness`` is what the strokes gain in width, as a share of it: negative for thin ones.
    """
    rng = np.random.default_rng(seed)
    size = 28 * scale
    ink = np.asarray(Image.fromarray(image[..., 0]).resize((size, size), Image.Resampling.BICUBIC), float) / 255
    if thickness:
        mask = np.pad(ink > 0.5, 3 * scale)
        inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
        width = 4 * inside[mask].mean()
        ink = ndimage.gaussian_filter((inside - outside > -thickness * width / 2).astype(float), scale / 10)
    rows, columns = np.nonzero(ink.max(axis=1) > 0.03)[0], np.nonzero(ink.max(axis=0) > 0.03)[0]
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    canvas = np.zeros((side, side))
    top, left = (rng.integers(2, side - length - 1) for length in ink.shape)
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    dark, light = rng.uniform(0, 70), rng.uniform(185, 255)
    grey = dark + (light - dark) * (canvas if light_ink else 1 - canvas)
    grey *= 1 - gradient * np.linspace(0, 1, side)[:, None] ** rng.uniform(0.5, 2)
    return np.clip(grey + rng.normal(0, noise, grey.shape), 0, 255).astype(np.uint8)


RENDERINGS = {
    "off-centre": {},
    "inverted": {"light_ink": True},
    "small on a large canvas": {"scale": 3, "side": 800},
    "large": {"scale": 15, "side": 800},
    "thick": {"thickness": 0.5},
    "very thick, inverted": {"thickness": 0.8, "light_ink": True},
    "thin": {"thickness": -0.25},
    "very thin": {"thickness": -0.5, "scale": 10},
    "uneven light": {"gradient": 0.5},
    "uneven light, inverted": {"gradient": 0.5, "light_ink": True},
    "noise": {"noise": 12},
    "thick, uneven light, noise": {"thickness": 0.5, "gradient": 0.5, "noise": 8},
}


@pytest.fixture(scope="module")
def digits():
    if MNIST_DIR is None:
        pytest.skip("needs the real MNIST: set MNIST_JAX_DATA_DIR to a directory with its four IDX files")
    return load_dataset("mnist", data_dir=MNIST_DIR).test


@pytest.fixture(scope="module")
def predictor(digits, tmp_path_factory):
    """An MLP as the command trains it, for half as long."""
    workdir = str(tmp_path_factory.mktemp("run") / "run")
    with jax.numpy_dtype_promotion("standard"):
        run = fit(TrainConfig(data="mnist", data_dir=MNIST_DIR, epochs=5, workdir=workdir, quiet=True))
    return Predictor(run.state)


@pytest.mark.parametrize("options", RENDERINGS.values(), ids=RENDERINGS)
def test_rendered_digits_are_read(predictor, digits, options):
    images = [prepare_image(render(image, seed, **options)) for seed, image in enumerate(digits.image[:NUM_DIGITS])]
    predictions = predictor.classify(np.stack(images)).argmax(axis=1)
    assert (predictions == digits.label[:NUM_DIGITS]).mean() >= 0.97


def test_images_of_mnist_stay_as_they_are(predictor, digits):
    images = digits.image[:NUM_DIGITS]
    prepared = np.stack([prepare_image(image) for image in images])
    label = digits.label[:NUM_DIGITS]
    plain = (predictor.classify(images).argmax(axis=1) == label).sum()
    assert abs((predictor.classify(prepared).argmax(axis=1) == label).sum() - plain) <= 1
    shares = [np.abs(one.astype(float) - other).mean() / 255 for one, other in zip(images, prepared, strict=True)]
    assert np.mean(shares) < 0.01


def square(side=100, ink=0, paper=255):
    """A ring, which is a digit of sorts."""
    rows, columns = np.mgrid[:side, :side] - side // 2
    radius = np.hypot(rows, columns) / side
    return np.where((radius > 0.2) & (radius < 0.3), ink, paper).astype(np.uint8)


def difference(one, other):
    """Mean over the pixels, in [0, 255]; a centre on the edge of two pixels may go to either."""
    shifts = [(rows, columns) for rows in (-1, 0, 1) for columns in (-1, 0, 1)]
    moved = (np.roll(one, shift, axis=(0, 1)).astype(float) for shift in shifts)
    return min(np.abs(each - other).mean() for each in moved)


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0), (60, 90), (90, 60), (200, 255), (40, 0)])
def test_the_ink_is_20_pixels_and_its_centre_in_the_middle(ink, paper):
    image = prepare_image(square(ink=ink, paper=paper))
    assert (image.shape, image.dtype, image.max()) == ((28, 28, 1), np.uint8, 255)
    rows, columns = np.nonzero(image[..., 0] > 30)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    centre = ndimage.center_of_mass(image[..., 0])
    np.testing.assert_allclose(centre, 14, atol=0.51)
    assert image[0].max() == image[14, 14].max() == 0


def test_size_place_and_polarity_do_not_matter():
    reference = prepare_image(square(100))
    for picture in (square(400), 255 - square(250), np.pad(square(100), ((0, 300), (200, 0)), constant_values=255)):
        assert difference(prepare_image(picture), reference) < 6


@pytest.mark.parametrize(
    "picture",
    [
        np.full((50, 60), 255, np.uint8),
        np.zeros((28, 28), np.uint8),
        np.full((1, 1), 7, np.uint8),
        np.random.default_rng(0).normal(200, 3, (200, 300)).clip(0, 255).astype(np.uint8),
        np.linspace(120, 220, 300 * 200).reshape(200, 300).astype(np.uint8),
    ],
    ids=["white", "black", "one pixel", "noise", "uneven light"],
)
def test_without_ink_there_is_no_digit(picture):
    with pytest.raises(InputError, match="^no ink found"):
        prepare_image(picture)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((3, 4, 5)), r"a picture must be finite numbers \[H, W\], got float32 \[3, 4, 5\]"),
        (np.zeros((0, 4)), r"a picture must be finite numbers \[H, W\], got float32 \[0, 4\]"),
        (np.full((4, 4), np.nan), r"a picture must be finite numbers \[H, W\], got float32 \[4, 4\]"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        prepare_image(picture)


def test_specks_and_the_edge_of_the_paper_are_not_ink():
    plain = square(300)
    reference = prepare_image(plain)
    specks = plain.copy()
    for row, column in np.random.default_rng(0).integers(5, 45, (6, 2)):
        specks[row : row + 2, column : column + 2] = 0
    table = plain.copy()
    table[:, :20] = 60  # beside the paper
    for picture in (specks, table):
        assert difference(prepare_image(picture), reference) < 3


def test_the_parts_of_a_digit_stay_together():
    five = np.full((200, 200), 255, np.uint8)
    five[40:50, 80:140] = 0  # the bar, apart from the rest
    five[62:100, 80:90] = five[95:105, 80:130] = five[100:150, 125:135] = five[145:155, 80:135] = 0
    image = prepare_image(five)[..., 0]
    rows = np.nonzero(image.max(axis=1) > 60)[0]
    assert rows[-1] - rows[0] + 1 in (19, 20)
    assert (image[rows[0]] > 60).sum() >= 9  # the bar


DARK, LIGHT = (20, 30, 120), (250, 245, 230)


def colour(mode):
    """The ring in a mode of Pillow's, dark on light; ``RGBA`` and ``LA`` on nothing."""
    ring = square()
    image = Image.fromarray(np.where(ring[..., None] == 0, DARK, LIGHT).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(255 - ring))
        return image
    if mode == "1":
        return Image.fromarray(ring).convert(mode)  # those colours would become patterns of dots
    if mode == "I;16":
        return Image.fromarray(ring.astype(np.uint16) * 257)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("P", "PNG"),
        ("RGB", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "PNG"),
        ("I;16", "PNG"),
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
        ("L", "JPEG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("P", "GIF"),
        ("CMYK", "TIFF"),
    ],
)
def test_all_modes_and_formats_show_the_same_digit(mode, format):
    picture = read_picture(to_bytes(colour(mode), format), "some")
    assert (picture.shape, picture.dtype) == ((100, 100), np.float32)
    assert picture.min() >= 0
    assert picture.max() <= 255
    assert difference(prepare_image(picture), prepare_image(square())) < 4


@pytest.mark.parametrize("light", [False, True])
def test_ink_on_nothing_is_seen(light):
    ring = square()
    image = np.zeros((100, 100, 4), np.uint8)
    image[ring == 0] = (255, 255, 255, 255) if light else (0, 0, 0, 255)
    picture = read_picture(to_bytes(image), "some")
    assert difference(prepare_image(picture), prepare_image(ring)) < 1


def test_colours_of_the_same_brightness_are_told_apart():
    image = np.where(square()[..., None] == 0, (255, 0, 0), (0, 130, 0)).astype(np.uint8)
    picture = read_picture(to_bytes(image), "some")
    assert difference(prepare_image(picture), prepare_image(square())) < 1


def test_a_photograph_is_turned_upright():
    picture = np.full((60, 100), 255, np.uint8)
    picture[10:50, 20:26] = picture[10:16, 20:70] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it a quarter to the right
    turned = read_picture(to_bytes(picture, "JPEG", exif=exif, quality=100), "some")
    expected = np.rot90(picture, -1)
    assert turned.shape == expected.shape
    assert np.abs(turned - expected).mean() < 3


def test_a_large_picture_is_scaled_down():
    assert read_picture(to_bytes(square(3000)), "some").shape == (1000, 1000)
    wide = np.full((500, 4000), 255, np.uint8)
    assert read_picture(to_bytes(wide, "JPEG"), "some").shape == (125, 1000)


def bomb(width, height):
    """A PNG of a few bytes that says it is large."""

    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "some.png: a PNG, JPEG, WebP, BMP, GIF or TIFF picture wanted, got something else"),
        (b"no picture", "some.png: a PNG, JPEG, WebP, BMP, GIF or TIFF picture wanted, got something else"),
        (to_bytes(square())[:150], r"some.png: the picture is damaged or truncated \(.*\)"),
        (to_bytes(square(500), "JPEG")[:2000], r"some.png: the picture is damaged or truncated \(.*\)"),
        (bomb(10_000, 6_000), "some.png: at most 50 million pixels wanted, got 10000x6000"),
        (bomb(100_000, 100_000), "some.png: at most 50 million pixels wanted, got more"),
        (bomb(100, 100), r"some.png: the picture is damaged or truncated \(.*\)"),
    ],
)
def test_damaged_and_foreign_files_are_one_line(content, message):
    with pytest.raises(InputError, match=f"^{message}$") as caught:
        read_picture(content, "some.png")
    assert "\n" not in str(caught.value)
