import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits as load_originals

from mnist_jax import load_dataset
from mnist_jax.data import digits
from mnist_jax.data.digits import load_digits
from mnist_jax.data.strokes import crop, render_ink


def test_the_images_are_the_originals_in_the_strokes_of_mnist():
    arrays = load_digits()
    image = np.concatenate([arrays["train_image"], arrays["test_image"]])
    label = np.concatenate([arrays["train_label"], arrays["test_label"]])
    originals = load_originals()
    order = np.random.default_rng(0).permutation(1797)
    assert image.shape == (1797, 28, 28, 1)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(label, originals.target[order])
    for index in range(0, 1797, 100):
        ink = originals.images[order[index]].astype(np.float32) / 16
        np.testing.assert_array_equal(image[index], render_ink(crop(ink, 0)))


def test_the_images_have_size_and_centre_of_mnist():
    arrays = load_digits()
    for image in np.concatenate([arrays["train_image"], arrays["test_image"]])[..., 0]:
        rows, columns = np.nonzero(image)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        assert image.max() == 255
        np.testing.assert_allclose(ndimage.center_of_mass(image), (14, 14), atol=0.501)  # rounded to 1/255


@pytest.mark.slow
def test_the_cached_copy_equals_a_fresh_one(monkeypatch):
    load_digits()
    fresh = digits._render_digits()
    monkeypatch.setattr(digits, "_render_digits", None)  # else the copy would not be used
    cached = load_digits()
    for role, array in fresh.items():
        np.testing.assert_array_equal(cached[role], array, strict=True)


def test_the_splits_are_always_the_same():
    one, other = load_dataset("digits"), load_dataset("digits")
    np.testing.assert_array_equal(one.test.image, other.test.image)
    assert [split.num_examples for split in (one.train, one.validation, one.test)] == [1350, 150, 297]
