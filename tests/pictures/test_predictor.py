import concurrent.futures

import jax
import numpy as np
import pytest
from drawing import PHOTOGRAPH
from PIL import Image

from mnist_jax import InputError, Predictor, TrainConfig, build_state, evaluate_dataset, load_dataset, predict_image
from mnist_jax.pictures.decode import read_picture
from mnist_jax.pictures.normalize import prepare_image
from mnist_jax.pictures.predictor import _program


@pytest.fixture(scope="module")
def state():
    return build_state(TrainConfig(hidden_sizes=(8,)))


@pytest.mark.parametrize("num_images", [1, 2, 99, 100, 101, 297])
def test_each_image_is_classified_once(state, num_images):
    test = load_dataset("digits").test
    expected = jax.nn.softmax(evaluate_dataset(state, test).logits)[:num_images]
    found = Predictor(state).classify(test.image[:num_images])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_two_programs_are_compiled_whatever_the_number_of_images(state):
    image = load_dataset("digits").test.image
    _program().clear_cache()
    for num_images in (1, 1, 2, 50, 100, 101, 297):
        Predictor(state).classify(image[:num_images])
    assert _program()._cache_size() == 2


def test_the_average_of_the_parameters_is_what_predicts(state):
    averaged = state.replace(params=jax.tree.map(lambda x: 0 * x, state.params), ema_params=state.params)
    image = load_dataset("digits").test.image[:3]
    np.testing.assert_array_equal(Predictor(averaged).classify(image), Predictor(state).classify(image))


def test_a_picture_may_be_an_array_or_bytes_or_a_path(state):
    content = PHOTOGRAPH.read_bytes()
    grey = read_picture(content, "seven.jpg")
    image = prepare_image(grey)
    expected = Predictor(state).classify(image[None])[0]
    for picture in (PHOTOGRAPH, str(PHOTOGRAPH), content, grey):
        prediction = predict_image(state, picture, class_names=tuple("abcdefghij"))
        np.testing.assert_array_equal(prediction.probabilities, expected)
        np.testing.assert_array_equal(prediction.image, image)
        assert prediction.label == expected.argmax()
        assert prediction.class_name == "abcdefghij"[prediction.label]


def test_threads_may_share_a_predictor(state):
    predictor, image = Predictor(state), load_dataset("digits").test.image[:40]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predictor, image))
    one_by_one = [predictor(each).probabilities for each in image]
    np.testing.assert_array_equal([each.probabilities for each in found], one_by_one)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("missing.png", r"^missing.png: cannot be read \(No such file or directory\)$"),
        (b"hello", "^the picture: expected a PNG, .* or TIFF picture, got something else$"),
        (np.zeros((28, 28)), "^no ink found"),
    ],
)
def test_what_cannot_be_read_is_one_line(state, picture, message):
    with pytest.raises(InputError, match=message):
        predict_image(state, picture)


def test_the_sample_picture_is_a_small_photograph_of_a_seven():
    assert PHOTOGRAPH.stat().st_size < 30_000
    with Image.open(PHOTOGRAPH) as image:
        assert (image.mode, image.size) == ("RGB", (480, 360))
