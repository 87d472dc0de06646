from pathlib import Path

import numpy as np
import pytest
from drawing import SEVEN, distance, draw_seven, grey
from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.pictures import RENDERINGS, render
from mnist_jax import InputError, Split, TrainConfig, evaluate_dataset, fit, load_dataset
from mnist_jax.data.strokes import crop
from mnist_jax.pictures.decode import read_picture
from mnist_jax.pictures.normalize import prepare_image


def test_the_image_is_as_mnist_makes_them():
    assert SEVEN.shape == (28, 28, 1)
    assert SEVEN.dtype == np.uint8
    rows, columns = np.nonzero(SEVEN[..., 0])
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert SEVEN.max() == 255
    np.testing.assert_allclose(ndimage.center_of_mass(SEVEN[..., 0]), (14, 14), atol=0.5)


def test_an_image_of_mnist_stays_as_it_is(mnist_dir):
    image = load_dataset("mnist", data_dir=mnist_dir).test.image
    np.testing.assert_array_equal(np.stack([prepare_image(each) for each in image]), image)


DRAWINGS = {
    "inverted": grey(draw_seven(paper=0, ink=255)),
    "faint, light": grey(draw_seven(paper=20, ink=90)),
    "faint, dark": grey(draw_seven(paper=240, ink=200)),
    "cropped": grey(draw_seven().crop((0, 0, 200, 180))),
    "off-centre": np.pad(grey(draw_seven()), ((200, 0), (300, 0)), constant_values=255),
    "large": grey(draw_seven(side=840, width=54)),
    "small": grey(draw_seven(side=84, width=5)),
    "thick": grey(draw_seven(width=30)),
    "thin": grey(draw_seven(width=6)),
    "hairline": grey(draw_seven(width=1)),
    "with a channel": grey(draw_seven())[..., None],
    "uint8": grey(draw_seven()).astype(np.uint8),
}


@pytest.mark.parametrize("picture", DRAWINGS.values(), ids=DRAWINGS)
def test_one_drawing_is_one_image(picture):
    assert distance(prepare_image(picture), SEVEN) < 12
    assert distance(prepare_image(picture.transpose(1, 0, *range(2, picture.ndim))), SEVEN) > 40


def crop_seven(side, paper, ink):
    """The seven cropped to its ink."""
    picture = grey(draw_seven(side=1400, width=90, paper=paper, ink=ink))
    picture = crop(np.abs(picture - paper), 0) * np.sign(ink - paper) + paper
    factor = side / max(picture.shape)
    size = [round(length * factor) for length in picture.shape[::-1]]
    return grey(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


@pytest.mark.parametrize("side", [16, 40, 300])
@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (0, 255), (230, 60), (20, 200)])
def test_a_picture_may_be_cropped_to_its_ink(side, paper, ink):
    assert distance(prepare_image(crop_seven(side, paper, ink)), SEVEN) < 5


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (0, 255)])
def test_a_picture_may_have_16_pixels(paper, ink):
    picture = Image.fromarray(grey(draw_seven(side=160, width=10, paper=paper, ink=ink)))
    assert distance(prepare_image(grey(picture.resize((16, 16), Image.Resampling.BOX))), SEVEN) < 12


@pytest.mark.parametrize("width", [(0, 20), (20, 0)])
def test_the_edge_of_a_sheet_is_no_tight_crop(width):
    sheet = np.pad(crop_seven(300, paper=220, ink=20), 25, constant_values=220)
    picture = np.pad(sheet, ((0, 0), width), constant_values=40)  # the table beside it
    assert distance(prepare_image(picture), SEVEN) < 5


def test_uneven_light_and_noise_change_little():
    x, y = np.meshgrid(np.linspace(0, 1, 280), np.linspace(0, 1, 280))
    shadow = 1 - 0.4 / (1 + np.exp(-(x - y) * 40))
    noise = np.random.default_rng(0).normal(0, 8, x.shape)
    for light in (1 - 0.6 * x, 1 - 0.3 * x - 0.4 * y**2, shadow):
        assert distance(prepare_image(20 + (grey(draw_seven(paper=220)) * light) + noise), SEVEN) < 12


def test_specks_the_edge_of_the_paper_and_a_line_are_left_out():
    picture = grey(draw_seven(paper=220))
    picture[30, 250] = picture[270:273, 10:13] = picture[140:142, 150:152] = 0
    picture[:, 265:] = 60
    picture[200:202] = 120
    assert distance(prepare_image(picture), SEVEN) < 2


def test_the_separate_bar_of_a_five_is_kept():
    image = Image.new("L", (280, 280), 255)
    pen = ImageDraw.Draw(image)
    pen.line([(90, 80), (90, 130)], fill=0, width=14)
    pen.arc([70, 115, 190, 235], -120, 140, fill=0, width=14)
    without = prepare_image(grey(image))
    pen.line([(125, 60), (195, 60)], fill=0, width=12)
    prepared = prepare_image(grey(image))
    assert ndimage.label(prepared[..., 0] > 128, np.ones((3, 3)))[1] == 2
    assert distance(prepared, without) > 10


def test_ink_may_go_on_beyond_the_picture():
    picture = grey(draw_seven(side=280))[28:]  # without the upper edge of its bar
    assert distance(prepare_image(picture), SEVEN) < 15


BLANK = {
    "white": np.full((300, 400), 255),
    "black": np.zeros((28, 28)),
    "noise": np.random.default_rng(0).normal(200, 5, (300, 400)),
    "strong noise": np.random.default_rng(0).normal(128, 30, (100, 100)),
    "small noise": np.random.default_rng(0).normal(128, 3, (28, 28)),
    "falling light": np.tile(np.linspace(80, 240, 400), (300, 1)),
}


@pytest.mark.parametrize("picture", BLANK.values(), ids=BLANK)
def test_a_blank_picture_is_one_line(picture):
    with pytest.raises(InputError, match="^no ink found: expected a digit that stands out from its background$"):
        prepare_image(np.clip(picture, 0, 255))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((28, 28, 3)), r"expected a picture of at least 8x8 grey pixels, got \[28, 28, 3\]"),
        (np.zeros((300, 7)), r"expected a picture of at least 8x8 grey pixels, got \[300, 7\]"),
        (np.zeros(784), r"expected a picture of at least 8x8 grey pixels, got \[784\]"),
        (np.full((28, 28), np.nan), "expected finite pixels, got NaN or infinity"),
    ],
)
def test_what_is_no_picture_is_one_line(picture, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        prepare_image(picture)


@pytest.fixture(scope="module")
def trained(mnist_dir, tmp_path_factory):
    """The network that the command trains, and the test split."""
    workdir = str(tmp_path_factory.mktemp("runs") / "run")
    run = fit(TrainConfig(data="mnist", data_dir=mnist_dir, workdir=workdir, quiet=True))
    return run.state, load_dataset("mnist", data_dir=mnist_dir).test


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RENDERINGS.keys() - {"very thick"}))  # which closes the holes of 8 and 9
def test_a_trained_network_reads_pictures(trained, name):
    state, test = trained
    rng = np.random.default_rng(0)
    chosen = rng.permutation(test.num_examples)[: 1000 if name == "very thin" else 300]  # which comes close to the bar
    image = np.stack([prepare_image(render(test.image[i], rng, **RENDERINGS[name])) for i in chosen])
    assert evaluate_dataset(state, Split(image, test.label[chosen])).accuracy >= 0.97


@pytest.mark.slow
def test_a_trained_network_reads_the_photograph(trained):
    content = (Path(__file__).parent.parent / "images" / "seven.jpg").read_bytes()
    image = prepare_image(read_picture(content, "seven.jpg"))
    assert evaluate_dataset(trained[0], Split(image[None], np.array([7]))).predictions == [7]
