import numpy as np
from sklearn.datasets import load_digits as load_originals

from mnist_jax import load_dataset
from mnist_jax.data.digits import load_digits


def test_the_images_are_the_originals_enlarged():
    arrays = load_digits()
    image = np.concatenate([arrays["train_image"], arrays["test_image"]])
    label = np.concatenate([arrays["train_label"], arrays["test_label"]])
    originals = load_originals()
    assert image.shape == (1797, 28, 28, 1)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(label), np.bincount(originals.target))
    assert not image[:, :4].any() and not image[:, :, -4:].any()
    # The mean over each image is kept, and identifies it: 20x20 pixels for 8x8, 255 for 16.
    means = image[..., 0].sum(axis=(1, 2)) / 400 / 255 * 16
    np.testing.assert_allclose(np.sort(means), np.sort(originals.images.mean(axis=(1, 2))), atol=0.02)


def test_the_splits_are_always_the_same():
    one, other = load_dataset("digits"), load_dataset("digits")
    np.testing.assert_array_equal(one.test.image, other.test.image)
    assert [split.num_examples for split in (one.train, one.validation, one.test)] == [1350, 150, 297]
