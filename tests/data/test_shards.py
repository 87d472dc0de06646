"""Shards are read back exactly, appear whole or not at all, and damage is one line."""

import importlib.util
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import make_split
from kills import count_changes, run_killed

from mnist_jax import InputError, Split, load_dataset, prepare_dataset, write_shards
from mnist_jax.data import shards

pytestmark = pytest.mark.skipif(importlib.util.find_spec("array_record") is None, reason="needs array_record")

TRAIN, TEST = make_split(100), make_split(20, seed=1)


def pieces(split, size):
    for start in range(0, split.num_examples, size):
        yield Split(split.image[start : start + size], split.label[start : start + size])


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Four shards of at most 32 examples, and one of the test split."""
    monkeypatch.setattr(shards, "_SHARD_SIZE", 32)
    return write_shards(tmp_path / "new" / "shards", pieces(TRAIN, 7), TEST, name="mine")


def assert_split_equal(found, expected):
    np.testing.assert_array_equal(found.image, expected.image, strict=True)
    np.testing.assert_array_equal(found.label, expected.label, strict=True)


def test_what_is_written_is_read(directory):
    names = [f"train-{shard:05d}-of-00004.array_record" for shard in range(4)]
    assert sorted(path.name for path in directory.iterdir()) == [
        "shards.json",
        "test-00000-of-00001.array_record",
        *names,
    ]
    assert [path.name for path in directory.parent.iterdir()] == ["shards"]
    dataset = load_dataset(directory)
    assert (dataset.name, dataset.class_names, dataset.path) == ("mine", tuple("0123456789"), str(directory))
    assert_split_equal(dataset.train, Split(TRAIN.image[:90], TRAIN.label[:90]))
    assert_split_equal(dataset.validation, Split(TRAIN.image[90:], TRAIN.label[90:]))
    assert_split_equal(dataset.test, TEST)


def test_any_examples_are_read_by_index(directory):
    dataset, whole = load_dataset(directory, stream=True), load_dataset(directory)
    assert dataset.train.num_examples == 90
    assert dataset.identity() == whole.identity()
    for split in ("validation", "test"):
        assert_split_equal(getattr(dataset, split), getattr(whole, split))
    for index in ([3], [89, 0, 32, 31, 64, 63], [5, 5, 5], np.random.default_rng(0).integers(0, 90, 200), []):
        index = np.asarray(index, np.int32)
        assert_split_equal(dataset.train.read(index), Split(TRAIN.image[index], TRAIN.label[index]))


def test_threads_share_a_reader(directory):
    train = load_dataset(directory, stream=True).train
    index = [np.random.default_rng(seed).integers(0, 90, 500) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for each, found in zip(index, pool.map(train.read, index), strict=True):
            assert_split_equal(found, Split(TRAIN.image[each], TRAIN.label[each]))


@pytest.mark.parametrize("stream", [False, True])
def test_the_validation_split_is_cut_off_the_end(tmp_path, stream):
    path = write_shards(tmp_path / "shards", [TRAIN], TEST, name="mine", num_validation=30)
    assert load_dataset(path, stream=stream).validation.num_examples == 30
    assert load_dataset(path, stream=stream, num_validation=40).validation.num_examples == 40
    with pytest.raises(
        InputError, match="^num_validation must be 1 to 99, for 100 training examples of mine, got 100$"
    ):
        load_dataset(path, stream=stream, num_validation=100)


def test_examples_with_copies_are_never_held_out(tmp_path):
    path = write_shards(tmp_path / "shards", [TRAIN], TEST, name="mine", num_validation=30, copies=2)
    assert load_dataset(path, num_validation=20).validation.num_examples == 20
    with pytest.raises(InputError) as error:
        load_dataset(path, num_validation=31)
    assert str(error.value) == (
        f"num_validation must be at most 30, got 31: {path} holds 2 copies of the examples before them"
    )


def test_an_existing_directory_is_refused(directory):
    before = sorted(path.stat().st_mtime_ns for path in directory.iterdir())
    for path in (directory, directory.parent):
        with pytest.raises(InputError, match=f"^{path} exists: name a new directory for the shards$"):
            write_shards(path, [TRAIN], TEST, name="mine")
    assert sorted(path.stat().st_mtime_ns for path in directory.iterdir()) == before


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "train: expected at least one example, got none"),
        (
            [TRAIN, Split(TRAIN.image[..., 0], TRAIN.label)],
            "train: expected uint8 images of 28x28x1, one per label, got uint8[100, 28, 28] and 100 labels",
        ),
        (
            [Split(TRAIN.image[:9], TRAIN.label)],
            "train: expected uint8 images of 28x28x1, one per label, got uint8[9, 28, 28, 1] and 100 labels",
        ),
        (
            [Split(TRAIN.image / np.float32(255), TRAIN.label)],
            "train: expected uint8 images of 28x28x1, one per label, got float32[100, 28, 28, 1] and 100 labels",
        ),
        ([Split(TRAIN.image[:2], np.array([3, 10]))], "train: labels must be 0 to 9, got 10 at example 1"),
    ],
)
def test_examples_of_another_form_are_refused(tmp_path, train, message):
    with pytest.raises(InputError) as error:
        write_shards(tmp_path / "shards", train, TEST, name="mine")
    assert str(error.value) == message
    assert [*tmp_path.iterdir()] == []


def test_an_error_of_the_source_of_examples_is_passed_on(tmp_path):
    def train():
        yield TRAIN
        raise RuntimeError("of the source")

    with pytest.raises(RuntimeError, match="^of the source$"):
        write_shards(tmp_path / "shards", train(), TEST, name="mine")
    assert [*tmp_path.iterdir()] == []


def test_up_to_256_classes(tmp_path):
    label = np.arange(100) + 156
    names = [str(number) for number in range(256)]
    split = Split(TRAIN.image, label)
    path = write_shards(tmp_path / "many", [split], split, name="many", class_names=names)
    assert_split_equal(load_dataset(path).test, Split(TRAIN.image, label.astype(np.int32)))
    with pytest.raises(InputError, match="^class_names must be 1 to 256 names, got 257$"):
        write_shards(tmp_path / "more", [split], split, name="many", class_names=[*names, "256"])


def assert_refused(directory, message):
    for stream in (False, True):
        with pytest.raises(InputError) as error:
            dataset = load_dataset(directory, stream=stream)
            dataset.train.read(np.arange(90))
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "expected a shard, found no such file; write the shards again"),
        (
            lambda path: path.write_bytes(b""),
            "cannot be read (ArrayRecord file should be at least 64KB big); write the",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "cannot be read (Corrupted Riegeli/records file: "),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "cannot be read ("),
    ],
)
@pytest.mark.parametrize("name", ["train-00001-of-00004", "test-00000-of-00001"])
def test_a_missing_or_truncated_shard_is_named(directory, name, damage, message):
    path = directory / f"{name}.array_record"
    damage(path)
    assert_refused(directory, f"{path}: {message}")


def test_a_changed_byte_is_found(directory):
    path = directory / "train-00001-of-00004.array_record"
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    assert_refused(directory, f"{path}: cannot be read (Corrupted Riegeli/records file: ")


def test_shards_of_another_directory_are_found(directory, tmp_path):
    other = write_shards(tmp_path / "other", [make_split(7)], TEST, name="mine")
    path = directory / "train-00001-of-00004.array_record"
    path.write_bytes((other / "train-00000-of-00001.array_record").read_bytes())
    assert_refused(directory, f"{path}: cannot be read (expected 32 examples as in shards.json, got 7); write the shar")


def rewrite(path, count, size, label, first=0):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for number in range(count):
        writer.write(bytes(size - 1) + bytes([label if number >= first else 0]))
    writer.close()


def test_records_of_another_size_and_labels_out_of_range_are_found_as_they_are_read(directory):
    path = directory / "train-00001-of-00004.array_record"
    rewrite(path, 32, 100, 0)
    assert_refused(
        directory, f"{path}: cannot be read (expected records of 785 bytes, got 100); write the shards again"
    )
    rewrite(path, 32, 785, 10, first=5)
    assert_refused(directory, f"{path}: labels must be 0 to 9, got 10 at example 5")
    rewrite(path, 32, 785, 7)
    with pytest.raises(InputError, match=f"^{directory}: the labels of train differ from those that were written$"):
        load_dataset(directory)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, "version must be 1, got 2"),
        ("name", 5, "name must be text, got 5"),
        ("class_names", [], "class_names must be a list of at most 256 names, got []"),
        ("image_shape", [32, 32, 3], "image_shape must be [28, 28, 1], got [32, 32, 3]"),
        ("num_validation", 0, "num_validation must be a whole number or null, got 0"),
        ("copies", None, "copies must be a whole number above 0, got None"),
        (
            "num_train",
            [2**30, 2**30],
            "num_train must be whole numbers below 2**31 in all, got [1073741824, 1073741824]",
        ),
        ("num_test", 20, "num_test must be whole numbers below 2**31 in all, got 20"),
        ("train_label_checksum", 1, "train_label_checksum must be text, got 1"),
    ],
)
def test_a_damaged_description_is_named(directory, field, value, message):
    path = directory / "shards.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    assert_refused(directory, f"{path}: {message}")
    path.write_text("[]")
    assert_refused(directory, f"{path}: expected a JSON object, got []")
    path.write_text("{")
    assert_refused(directory, f"{path}: cannot be read (")


WRITE = """
import numpy as np
from mnist_jax import Split, write_shards
import sys
split = Split(np.zeros((4, 28, 28, 1), np.uint8), np.zeros(4, np.int32))
write_shards(sys.argv[1], [split, split], split, name="blank")
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_passes_for_shards(tmp_path):
    roots = [tmp_path]
    total = count_changes(roots, WRITE, str(tmp_path / "whole"))
    assert total > 3
    for number in range(1, total + 1):
        target = tmp_path / f"killed{number}"
        run_killed(number, roots, WRITE, str(target))
        assert not target.exists() or load_dataset(target).test.num_examples == 4
        write_shards(target if not target.exists() else tmp_path / f"again{number}", [TRAIN], TEST, name="mine")


def test_the_directory_of_a_killed_writer_is_deleted_by_a_later_one(tmp_path):
    abandoned = tmp_path / "shards.0badf00d.part"
    abandoned.mkdir()
    (abandoned / "train-0").write_bytes(b"part")
    os.utime(abandoned, (0, 0))
    write_shards(tmp_path / "shards", [TRAIN], TEST, name="mine")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


FULL = """
import resource, sys
import numpy as np
from mnist_jax import InputError, Split, write_shards
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
image = np.random.default_rng(0).integers(0, 256, (20_000, 28, 28, 1), np.uint8)
split = Split(image, np.zeros(20_000, np.int32))
try:
    write_shards(sys.argv[1], [split], split, name="noise")
except InputError as error:
    print(error)
"""


def test_a_full_disk_is_one_line(tmp_path, run_python):
    target = tmp_path / "full" / "shards"
    done = run_python("-c", FULL, str(target))
    assert done.stdout.startswith(f"{target}: cannot be written ("), done.stderr
    assert [*target.parent.iterdir()] == []


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="/file/shards: cannot be written .(File exists|Not a directory).$"):
        write_shards(tmp_path / "file" / "shards", [TRAIN], TEST, name="mine")


def test_without_array_record_there_is_one_line(directory, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    message = "^shards need the package array_record, which has wheels for Linux and for macOS on arm64$"
    with pytest.raises(InputError, match=message):
        write_shards(tmp_path / "other", [TRAIN], TEST, name="mine")
    with pytest.raises(InputError, match=message):
        load_dataset(directory)


def test_prepared_tfds_data_is_read_by_index(tmp_path, idx_dir):
    path = prepare_dataset("mnist", idx_dir, tmp_path / "tfds")
    dataset, whole = load_dataset(path, stream=True, num_validation=10), load_dataset(path, num_validation=10)
    index = np.array([49, 0, 7, 7], np.int32)
    assert_split_equal(dataset.train.read(index), Split(whole.train.image[index], whole.train.label[index]))
    for split in ("validation", "test"):
        assert_split_equal(getattr(dataset, split), getattr(whole, split))
    assert (dataset.name, dataset.path) == ("mnist", str(path))
    assert dataset.identity()["label_checksum"].startswith("files-")
    (shard,) = path.glob("*train*")
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        InputError, match=f"^{path}: expected readable prepared data .*; delete the directory to prepar"
    ):
        dataset = load_dataset(path, stream=True, num_validation=10)
        dataset.train.read(np.arange(50))
