import jax
import numpy as np
import pytest
from conftest import make_split

from mnist_jax import prefetch, stream_batches


@pytest.mark.parametrize(("drop_remainder", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_batches_in_order_are_slices(drop_remainder, sizes):
    split = make_split(10)
    batches = list(stream_batches(split, 4, drop_remainder=drop_remainder))
    assert [len(batch["label"]) for batch in batches] == sizes
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in batches]), split.image[: sum(sizes)])


def test_a_shuffled_epoch_has_every_example_once_and_each_its_own_order():
    split = make_split(10)._replace(label=np.arange(10))
    labels = [batch["label"] for batch in stream_batches(split, 5, seed=3, num_epochs=2)]
    first, second = np.concatenate(labels[:2]), np.concatenate(labels[2:])
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)
    again = [batch["label"] for batch in stream_batches(split, 5, seed=3)]
    np.testing.assert_array_equal(np.concatenate(again), first)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_prefetch_yields_the_same_batches_on_the_device(size):
    batches = list(stream_batches(make_split(10), 4))
    fetched = list(prefetch(iter(batches), size))
    assert all(isinstance(batch["image"], jax.Array) for batch in fetched)
    for batch, expected in zip(fetched, batches, strict=True):
        np.testing.assert_array_equal(batch["image"], expected["image"])


def test_prefetch_keeps_size_batches_ahead():
    drawn = []

    def source():
        for index in range(5):
            drawn.append(index)
            yield {"label": np.array([index])}

    batches = prefetch(source(), 2)
    assert next(batches)["label"] == 0
    assert drawn == [0, 1, 2]


def test_prefetch_leaves_text_on_the_host():
    batch = {"label": np.array([0, 1]), "id": np.array([b"a", b"b"]), "file": {"name": "a.png", "size": np.int32(9)}}
    (fetched,) = prefetch([batch])
    assert isinstance(fetched["label"], jax.Array)
    assert isinstance(fetched["file"]["size"], jax.Array)
    assert fetched["id"] is batch["id"]
    assert fetched["file"]["name"] == "a.png"
