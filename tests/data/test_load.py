import logging
import sys

import numpy as np
import pytest
from conftest import make_arrays, write_idx_files

from mnist_jax import InputError, load_dataset
from mnist_jax.data.digits import load_digits


def test_a_directory_is_loaded_under_its_name(idx_dir):
    dataset = load_dataset(idx_dir, num_validation=10)
    assert dataset.name == "small"
    np.testing.assert_array_equal(dataset.train.image, make_arrays()["train_image"][:50])
    assert dataset.class_names == tuple("0123456789")


def test_a_csv_is_loaded_under_its_name(tmp_path):
    arrays = make_arrays(21)
    header = ",".join(["label", *(f"pixel{i}" for i in range(784))])
    cells = np.column_stack([arrays["train_label"], arrays["train_image"].reshape(21, -1)])
    np.savetxt(tmp_path / "kaggle.csv", cells, fmt="%d", delimiter=",", header=header, comments="")
    dataset = load_dataset(tmp_path / "kaggle.csv")
    assert (dataset.name, dataset.train.num_examples, dataset.validation.num_examples) == ("kaggle", 17, 1)
    np.testing.assert_array_equal(dataset.test.label, arrays["train_label"][18:])


def test_mnist_is_found_through_the_environment(monkeypatch, idx_dir):
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(idx_dir))
    for name in (None, "mnist"):
        dataset = load_dataset(name)
        assert (dataset.name, dataset.test.num_examples, dataset.notice) == ("mnist", 10, None)


def test_the_argument_comes_before_the_environment(monkeypatch, tmp_path, idx_dir):
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(idx_dir))
    other = write_idx_files(tmp_path / "other", make_arrays(40, 7))
    assert load_dataset("mnist", data_dir=other).test.num_examples == 7


def test_without_a_name_and_without_mnist_the_digits_are_taken_and_said(caplog):
    with caplog.at_level(logging.WARNING, "mnist_jax"):
        dataset = load_dataset()
    assert dataset.name == "digits"
    assert dataset.notice.startswith("MNIST is not on disk and could not be downloaded (https://storage.googleapis.com")
    assert dataset.notice.endswith(": using scikit-learn's 1,797 small digits instead")
    assert caplog.messages == [dataset.notice]


def test_the_digits_are_added_to_the_training_split_of_mnist(idx_dir):
    both = load_dataset("mnist+digits", data_dir=idx_dir, num_validation=7)
    mnist, digits = load_dataset("mnist", data_dir=idx_dir, num_validation=7), load_digits()
    assert (both.name, both.path, both.class_names) == ("mnist+digits", str(idx_dir), mnist.class_names)
    for name in ("image", "label"):
        expected = np.concatenate([getattr(mnist.train, name), digits[f"train_{name}"]])
        np.testing.assert_array_equal(getattr(both.train, name), expected, strict=True)
        for split in ("validation", "test"):
            expected = getattr(getattr(mnist, split), name)
            np.testing.assert_array_equal(getattr(getattr(both, split), name), expected, strict=True)
    assert both.train.num_examples == 53 + 1500


def test_by_name_nothing_else_is_taken():
    with pytest.raises(
        InputError, match="data mnist: not on disk, and the download failed: .*; put the four IDX files into"
    ):
        load_dataset("mnist")
    with pytest.raises(
        InputError, match=r"^data mnist\+digits: not on disk, and the download failed: .*; put the four IDX files into"
    ):
        load_dataset("mnist+digits")
    with pytest.raises(InputError, match="data kmnist: .*; pass a directory of its four IDX files as --data"):
        load_dataset("kmnist")


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match=r"data must be one of mnist, .*, digits, mnist\+digits, or an existing.*, got 'nowhere'"
    ):
        load_dataset("nowhere")
    with pytest.raises(InputError, match="got 'Fashion-MNIST'; did you mean fashion_mnist.$"):
        load_dataset("Fashion-MNIST")
    with pytest.raises(
        InputError, match="expected four IDX files, prepared tfds data or shards in this directory, found none"
    ):
        load_dataset(tmp_path)
    with pytest.raises(InputError, match="data_dir must be an existing directory, got 'nowhere'"):
        load_dataset("mnist", data_dir="nowhere")
    with pytest.raises(InputError, match="data_dir must be an existing directory, got ''"):
        load_dataset("mnist", data_dir="")
    with pytest.raises(InputError, match="data x{80}: cannot be read .File name too long."):
        load_dataset("x" * 300)
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", "nowhere")
    assert load_dataset("digits").name == "digits"  # does not need it
    with pytest.raises(InputError, match=r"\$MNIST_JAX_DATA_DIR must be an existing directory, got 'nowhere'"):
        load_dataset()


def test_damaged_files_never_fall_back(idx_dir):
    (idx_dir / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(InputError, match="t10k-labels"):
        load_dataset(data_dir=idx_dir)


def test_the_real_mnist(mnist_dir, run_python):
    dataset = load_dataset("mnist", data_dir=mnist_dir)
    sizes = [split.num_examples for split in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [55_000, 5_000, 10_000]
    label = np.concatenate([dataset.train.label, dataset.validation.label])
    assert np.bincount(label).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    mean = np.concatenate([dataset.train.image, dataset.validation.image]).mean() / 255
    np.testing.assert_allclose(mean, 0.1307, atol=5e-5)
    code = f"import mnist_jax, sys; mnist_jax.load_dataset('mnist', data_dir={str(mnist_dir)!r}); print(*sys.modules)"
    loaded = run_python("-c", code).stdout.split()
    assert "numpy" in loaded
    assert not {"jax", "tensorflow_datasets", "sklearn"} & set(loaded)
    assert "tensorflow" not in sys.modules


def test_own_data_has_the_classes_of_its_labels(tmp_path):
    arrays = make_arrays()
    for role in ("train_label", "test_label"):
        arrays[role] = arrays[role] % 3
    directory = write_idx_files(tmp_path / "three", arrays)
    dataset = load_dataset(directory)
    assert (dataset.num_classes, dataset.class_names) == (3, ("0", "1", "2"))
    assert dataset.path == str(directory)
    (directory / "class_names.txt").write_text("circle\nsquare\ntriangle\nstar\n\n")
    assert load_dataset(directory).class_names == ("circle", "square", "triangle", "star")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("one\ntwo\n", "class_names.txt: expected a name for each of 10 classes, got 2"),
        ("a\nb\nc\nd\n\nf\ng\nh\ni\nj\n", "class_names.txt: expected a name on each line, got an empty line 5"),
        ("a\nb\nc\nd\na\nf\ng\nh\ni\nj\n", "class_names.txt: expected each name once, got 'a' twice"),
        (b"\xff\xfe", "class_names.txt: cannot be read .*can't decode"),
    ],
)
def test_wrong_class_names_are_named(tmp_path, names, message):
    directory = write_idx_files(tmp_path / "own", make_arrays())
    (directory / "class_names.txt").write_bytes(names if isinstance(names, bytes) else names.encode())
    with pytest.raises(InputError, match=message):
        load_dataset(directory)


def test_a_stray_label_is_no_class(tmp_path):
    arrays = make_arrays()
    arrays["train_label"][5] = 200
    directory = write_idx_files(tmp_path / "own", arrays)
    message = (
        "own: expected examples of each of the classes 0 to 200, got none of 10; if that is right, name the classes"
    )
    with pytest.raises(InputError, match=message):
        load_dataset(directory)
    (directory / "class_names.txt").write_text("\n".join(f"class {index}" for index in range(201)))
    assert load_dataset(directory).num_classes == 201
