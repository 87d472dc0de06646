import dataclasses

import numpy as np
import pytest
from conftest import make_arrays

from mnist_jax import Dataset, InputError
from mnist_jax.data.dataset import check_labels


@pytest.mark.parametrize(("num_validation", "expected"), [(None, 6), (1, 1), (59, 59)])
def test_validation_is_the_end_of_the_training_set(num_validation, expected):
    arrays = make_arrays(60, 10)
    dataset = Dataset.from_arrays(arrays, "small", num_validation)
    assert dataset.validation.num_examples == expected
    for field, role in (("image", "train_image"), ("label", "train_label")):
        both = [getattr(dataset.train, field), getattr(dataset.validation, field)]
        np.testing.assert_array_equal(np.concatenate(both), arrays[role])
    np.testing.assert_array_equal(dataset.test.image, arrays["test_image"])
    assert dataset.train.label.dtype == np.int32


def test_a_validation_split_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match="num_validation must be below the 60 training examples of small, got 60"):
        Dataset.from_arrays(make_arrays(60), "small", 60)


def test_a_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Dataset.from_arrays(make_arrays(), "small").name = "other"


@pytest.mark.parametrize("wrong", [-1, 10])
def test_labels_are_checked(wrong):
    with pytest.raises(InputError, match=f"here: labels must be 0 to 9, got {wrong} at example 2"):
        check_labels(np.array([0, 9, wrong]), "here")
