import os
import time

import numpy as np
import pytest
from conftest import make_arrays

from mnist_jax.data.cache import load_cached


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "source"
    path.write_text("data")
    return path


def cache_files(tmp_path):
    return list((tmp_path / "cache" / "mnist_jax").iterdir())


def must_not_decode():
    raise AssertionError("decoded again")


def assert_loads(arrays, expected):
    for role, array in expected.items():
        np.testing.assert_array_equal(arrays[role], array, strict=True)


def test_the_second_load_does_not_decode(source, tmp_path):
    arrays = make_arrays()
    assert_loads(load_cached([source], lambda: arrays), arrays)
    assert_loads(load_cached([source], must_not_decode), arrays)
    assert len(cache_files(tmp_path)) == 1


def test_a_copy_is_private(source, tmp_path):
    load_cached([source], make_arrays)
    (copy,) = cache_files(tmp_path)
    assert copy.stat().st_mode & 0o077 == 0


def test_a_changed_source_is_decoded_again(source):
    load_cached([source], make_arrays)
    os.utime(source, ns=(1, 1))
    arrays = make_arrays(3)
    assert_loads(load_cached([source], lambda: arrays), arrays)


@pytest.mark.parametrize("damage", [b"", b"PK no zip", None])
def test_a_damaged_copy_is_replaced(source, tmp_path, damage):
    arrays = make_arrays()
    load_cached([source], lambda: arrays)
    (copy,) = cache_files(tmp_path)
    copy.write_bytes(copy.read_bytes()[:-500] if damage is None else damage)
    assert_loads(load_cached([source], lambda: arrays), arrays)
    assert_loads(load_cached([source], must_not_decode), arrays)


def damaged(role, change):
    arrays = make_arrays()
    return {**arrays, role: change(arrays[role])}


@pytest.mark.parametrize(
    "found",
    [
        damaged("train_image", lambda image: image[:-1]),
        damaged("test_label", lambda label: label[:-1]),
        damaged("test_image", lambda image: image.reshape(-1, 784)),
        damaged("train_image", lambda image: image / 255),
        damaged("train_image", lambda image: image.astype(np.int8)),
        damaged("train_label", lambda label: label.astype(float)),
        damaged("train_label", lambda label: label[:, None]),
        damaged("train_label", lambda label: label + 10),
        damaged("train_label", lambda label: label - 10),
        damaged("test_image", lambda image: image.astype(object)),
        {role: array[:0] for role, array in make_arrays().items()},
        {"train_image": make_arrays()["train_image"]},
    ],
    ids=range(12),
)
def test_a_copy_with_other_arrays_is_replaced(source, tmp_path, found):
    arrays = make_arrays()
    load_cached([source], lambda: arrays)
    (copy,) = cache_files(tmp_path)
    np.savez(copy, **found)
    assert_loads(load_cached([source], lambda: arrays), arrays)
    assert_loads(load_cached([source], must_not_decode), arrays)


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_with_a_changed_byte_is_the_same_or_replaced(source, tmp_path, seed):
    arrays = make_arrays(3, 2)
    load_cached([source], lambda: arrays)
    (copy,) = cache_files(tmp_path)
    content = copy.read_bytes()
    for place in np.random.default_rng(seed).integers(0, len(content), 40):
        copy.write_bytes(content[:place] + bytes([content[place] ^ 1 << seed]) + content[place + 1 :])
        assert_loads(load_cached([source], lambda: arrays), arrays)


def test_labels_beyond_the_classes_are_no_copy_of_the_data(source):
    arrays = {**make_arrays(), "train_label": np.full(60, 20)}
    assert_loads(load_cached([source], lambda: arrays, num_classes=21), arrays)
    assert_loads(load_cached([source], must_not_decode, num_classes=21), arrays)
    assert_loads(load_cached([source], make_arrays, num_classes=20), make_arrays())


def test_what_killed_processes_left_goes_with_the_next_copy(source, tmp_path):
    load_cached([source], make_arrays)
    for name, age_s in (("a.0badf00d.part", 7200), ("b.0badf00d.part", 60)):
        path = tmp_path / "cache" / "mnist_jax" / name
        path.write_text("half")
        os.utime(path, (time.time() - age_s,) * 2)
    source.write_text("other")
    load_cached([source], make_arrays)
    assert sorted(path.suffix for path in cache_files(tmp_path)) == [".npz", ".npz", ".part"]


def test_a_cache_that_cannot_be_written_is_done_without(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    arrays = make_arrays()
    assert_loads(load_cached([source], lambda: arrays), arrays)
