import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from conftest import CSV_HEADER, IDX_NAMES, idx_bytes, make_arrays, write_csv, write_idx_files

from mnist_jax import InputError
from mnist_jax.data.files import find_idx_files, read_csv, read_csv_images, read_idx, read_idx_files


def read_directory(directory):
    return read_idx_files(find_idx_files(directory))


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    for role in expected:
        np.testing.assert_array_equal(found[role], expected[role])


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_give_back_what_was_written(tmp_path, compressed):
    arrays = make_arrays()
    assert_same_arrays(read_directory(write_idx_files(tmp_path, arrays, compressed)), arrays)


def test_names_may_have_a_dot_or_a_prefix_or_say_test(tmp_path):
    arrays = make_arrays()
    write_idx_files(tmp_path, arrays)
    for name in IDX_NAMES.values():
        renamed = "my-" + name.replace("t10k", "test").replace("-idx", ".idx")
        (tmp_path / f"{name}.gz").rename(tmp_path / f"{renamed}.gz")
    assert_same_arrays(read_directory(tmp_path), arrays)


def test_a_raw_file_is_taken_before_its_gz(tmp_path):
    write_idx_files(tmp_path, make_arrays())
    write_idx_files(tmp_path, make_arrays(), compressed=False)
    assert {path.suffix for path in find_idx_files(tmp_path).values()} == {""}


def test_emnist_is_turned_upright(tmp_path):
    arrays = make_arrays()
    write_idx_files(tmp_path, arrays)
    for name in IDX_NAMES.values():
        (tmp_path / f"{name}.gz").rename(tmp_path / f"emnist-digits-{name.replace('t10k', 'test')}.gz")
    found = read_directory(tmp_path)
    np.testing.assert_array_equal(found["train_image"], arrays["train_image"].transpose(0, 2, 1, 3))


def test_a_directory_without_idx_files_has_none(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert find_idx_files(tmp_path) == {}


def test_missing_and_ambiguous_files_are_named(tmp_path):
    write_idx_files(tmp_path, make_arrays())
    (tmp_path / "train-labels-idx1-ubyte.gz").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"expected four IDX files, missing train-labels-idx1-ubyte\[.gz\]"):
        find_idx_files(tmp_path)
    write_idx_files(tmp_path, make_arrays())
    (tmp_path / "x-train-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(InputError, match="expected one file for train labels, found train-l.*, x-train-labels"):
        find_idx_files(tmp_path)


GOOD = idx_bytes(np.arange(2 * 784).reshape(2, 28, 28))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\x03" + GOOD[4:], "expected magic number 00000803, got 00000d03"),
        (idx_bytes(np.zeros(3)), "expected magic number 00000803, got 00000801"),
        (b"", "expected magic number 00000803, got $"),
        (GOOD[:9], "truncated inside its header"),
        (GOOD[:-1], r"expected 1568 bytes of data after the header, got 1567 \(truncated\)"),
        (GOOD + GOOD[16:] * 9, "expected 1568 bytes of data after the header, got more"),
        (
            GOOD[:4] + struct.pack(">3I", 2**32 - 1, 28, 28),
            "expected at most 1073741824 bytes, got a header that declares 33672",
        ),
        (
            GOOD[:4] + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1),
            "expected 28x28 images, got 4294967295x4294967295",
        ),
        (GOOD[:4] + struct.pack(">3I", 10**6, 28, 28), r"expected 784000000 bytes .*, got 0 \(truncated\)"),
    ],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_file_is_one_line(tmp_path, content, message, compressed):
    path = tmp_path / ("images.gz" if compressed else "images")
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        read_idx(path, rank=3)


def test_a_gz_file_that_is_cut_or_is_none_is_one_line(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(GOOD)[:-20])
    with pytest.raises(InputError, match="images.gz: cannot be read"):
        read_idx(path, rank=3)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match=r"images.gz: cannot be read \(Not a gzipped file"):
        read_idx(path, rank=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_label": np.zeros(59)}, "expected 60 labels, one per image, got 59"),
        ({"train_label": np.full(60, 11)}, "labels must be 0 to 9, got 11 at example 0"),
        ({"test_image": np.zeros((10, 28, 27, 1))}, "expected 28x28 images, got 28x27"),
        (
            {"test_image": np.zeros((0, 28, 28, 1)), "test_label": np.zeros(0)},
            "expected at least one example, got none",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_named(tmp_path, change, message):
    write_idx_files(tmp_path, make_arrays() | change)
    with pytest.raises(InputError, match=message):
        read_directory(tmp_path)


def test_memory_is_bounded_by_what_a_file_has(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(GOOD[:4] + struct.pack(">3I", 10**6, 28, 28) + bytes(10**6))
    csv = write_csv(tmp_path / "train.csv", [1], [[0] * 784])
    csv.write_text(csv.read_text() + "1" * 10**8)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"expected 784000000 bytes of data .*, got 1000000 \(truncated\)"):
            read_idx(path, rank=3)
        with pytest.raises(InputError, match="whole numbers in every cell .*a line has more than 16384 characters"):
            read_csv(csv)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_a_csv_gives_back_what_was_written(tmp_path):
    arrays = make_arrays(14)
    image, label = arrays["train_image"], arrays["train_label"]
    found = read_csv(write_csv(tmp_path / "train.csv", label, image.reshape(14, -1)))
    np.testing.assert_array_equal(np.concatenate([found["train_image"], found["test_image"]]), image)
    np.testing.assert_array_equal(np.concatenate([found["train_label"], found["test_label"]]), label)
    assert len(found["test_label"]) == 2


def test_a_csv_may_begin_with_a_byte_order_mark(tmp_path):
    path = write_csv(tmp_path / "train.csv", range(4), np.zeros((4, 784), int), header="\ufeff" + CSV_HEADER)
    assert read_csv(path)["train_label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("\n1,0", "\n#1,0", 1), "expected whole numbers in every cell.*'#1'"),
        (lambda text: text.replace("label,", "", 1), "label is missing .a file without labels is for prediction"),
        (lambda text: text.replace(",pixel7,", ",", 1), "missing pixel7$"),
        (lambda text: text.replace("pixel7,pixel8", "pixel8,pixel7", 1), "in this order, got 785 columns"),
        (lambda text: text.replace("\n1,0", "\n1,zero", 1), "expected whole numbers in every cell.*'zero'"),
        (lambda text: text.replace("\n1,0", "\n11,0", 1), "labels must be 0 to 9, got 11 at example 1"),
        (lambda text: text.replace("\n1,0", "\n1,256", 1), "pixels must be 0 to 255, got 256 at example 1, pixel0"),
        (lambda text: text.replace("\n1,0", "\n1", 1), "expected whole numbers in every cell"),
        (lambda text: text.splitlines()[0] + "\n", "expected at least 2 rows of 785 cells"),
        (lambda text: "", "missing label and 784 more"),
        (lambda text: "\udcff", "expected columns label,pixel0,...,pixel783|can't decode"),
    ],
)
def test_a_damaged_csv_is_one_line(tmp_path, change, message):
    path = write_csv(tmp_path / "train.csv", range(4), np.zeros((4, 784), int))
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with pytest.raises(InputError, match=message) as caught:
        read_csv(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("num_rows", [1, 14])
def test_images_of_a_csv_give_back_what_was_written(tmp_path, labels, num_rows):
    image = make_arrays(num_rows)["train_image"]
    content = write_csv(tmp_path / "test.csv", range(num_rows), image.reshape(num_rows, -1)).read_text()
    if not labels:
        content = "\n".join(line.split(",", 1)[1] for line in content.splitlines())
    np.testing.assert_array_equal(read_csv_images(b"\xef\xbb\xbf" + content.encode(), "test.csv"), image, strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected columns pixel0,...,pixel783, missing pixel0 and 783 more"),
        (CSV_HEADER.replace(",pixel7,", ","), "expected columns pixel0,...,pixel783, missing pixel7"),
        (CSV_HEADER + ",more", "expected columns pixel0,...,pixel783 in this order, got 786 columns"),
        (CSV_HEADER, r"expected at least 1 row of 785 cells, got .*"),
        (CSV_HEADER + "\n" + ",".join(["1"] * 784), r"expected at least 1 row of 785 cells, got \(1, 784\)"),
        (CSV_HEADER + "\n" + ",".join(["-1"] * 785), "pixels must be 0 to 255, got -1 at example 0, pixel0"),
        (CSV_HEADER + "\n" + ",".join(["x"] * 785), "expected whole numbers in every cell below the header (.*'x'.*)"),
        (b"\xff\xff", "expected whole numbers in every cell below the header .*can't decode.*"),
    ],
)
def test_images_of_a_damaged_csv_are_one_line(content, message):
    with pytest.raises(InputError, match=f"^test.csv: {message}$"):
        read_csv_images(content if isinstance(content, bytes) else content.encode(), "test.csv")
