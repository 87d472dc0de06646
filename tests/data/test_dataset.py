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


@pytest.mark.parametrize("num_validation", [60, 0, -5])
def test_a_validation_split_that_leaves_nothing_is_refused(num_validation):
    message = f"num_validation must be 1 to 59, for 60 training examples of small, got {num_validation}"
    with pytest.raises(InputError, match=message):
        Dataset.from_arrays(make_arrays(60), "small", num_validation)


def test_the_identity_tells_data_sets_apart():
    identity = Dataset.from_arrays(make_arrays(), "small").identity()
    assert identity == Dataset.from_arrays(make_arrays(), "small").identity()
    sizes = (identity["num_train"], identity["num_validation"], identity["num_test"])
    assert sizes == (54, 6, 10)
    changed = make_arrays()
    changed["train_label"][3] = (changed["train_label"][3] + 1) % 10
    assert identity != Dataset.from_arrays(changed, "small").identity()
    assert identity != Dataset.from_arrays(make_arrays(), "other").identity()


def test_a_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Dataset.from_arrays(make_arrays(), "small").name = "other"


@pytest.mark.parametrize("wrong", [-1, 10])
def test_labels_are_checked(wrong):
    with pytest.raises(InputError, match=f"here: labels must be 0 to 9, got {wrong} at example 2"):
        check_labels(np.array([0, 9, wrong]), "here")
