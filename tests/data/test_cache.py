import os

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


def test_a_cache_that_cannot_be_written_is_done_without(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    arrays = make_arrays()
    assert_loads(load_cached([source], lambda: arrays), arrays)
