"""``python -m mnist_jax.data.write``."""

import json

import numpy as np
import pytest
from conftest import make_arrays

from mnist_jax import load_dataset
from mnist_jax.data import write


@pytest.fixture
def run(capsys):
    def run(*args):
        status = write.main([*map(str, args)])
        output, errors = capsys.readouterr()
        return status, output, errors

    return run


def test_it_writes_a_data_set(run, tmp_path, idx_dir):
    status, output, _ = run(tmp_path / "shards", "--data", idx_dir, "--num-validation", 10)
    assert status == 0
    size = sum(path.stat().st_size for path in (tmp_path / "shards").iterdir())
    assert output == f"{tmp_path / 'shards'}  60 training, 10 test examples  {size:,} bytes\n"
    found, expected = load_dataset(tmp_path / "shards"), load_dataset(idx_dir, num_validation=10)
    assert (found.name, found.class_names) == ("small", expected.class_names)
    for split in ("train", "validation", "test"):
        for field in ("image", "label"):
            np.testing.assert_array_equal(
                getattr(getattr(found, split), field), getattr(getattr(expected, split), field)
            )


def test_copies_are_shifted_by_whole_pixels_and_the_validation_split_has_none(run, tmp_path, idx_dir):
    options = ("--data", idx_dir, "--num-validation", 10, "--copies", 3, "--shift", 2)
    assert run(tmp_path / "shards", *options)[0] == 0
    dataset, arrays = load_dataset(tmp_path / "shards"), make_arrays()
    assert (dataset.train.num_examples, dataset.validation.num_examples) == (150, 10)
    np.testing.assert_array_equal(dataset.validation.image, arrays["train_image"][50:])
    image, label = (leaf.reshape(3, 50, *leaf.shape[1:]) for leaf in dataset.train)
    shifts = set()
    for copy in range(3):
        np.testing.assert_array_equal(label[copy], arrays["train_label"][:50])
        for found, original in zip(image[copy, ..., 0], arrays["train_image"][:50, ..., 0], strict=True):
            padded = np.pad(original, 2)
            matches = [
                (row, column)
                for row in range(5)
                for column in range(5)
                if np.array_equal(padded[row : row + 28, column : column + 28], found)
            ]
            assert len(matches) == 1
            shifts.add((copy, *matches[0]))
    assert {shift for shift in shifts if shift[0] == 0} == {(0, 2, 2)}
    assert len({shift[1:] for shift in shifts}) > 20
    assert json.loads((tmp_path / "shards" / "shards.json").read_text())["copies"] == 3
    run(tmp_path / "again", *options)
    np.testing.assert_array_equal(load_dataset(tmp_path / "again").train.image, dataset.train.image)
    run(tmp_path / "other", *options, "--seed", 1)
    assert not np.array_equal(load_dataset(tmp_path / "other").train.image, dataset.train.image)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--copies", "0"), "copies must be 1 to 2147483647, got 0"),
        (("--shift", "15"), "shift must be 0 to 14, got 15"),
        (("--seed", "-1"), "seed must be 0 to 4294967295, got -1"),
        (("--copies", "2000000"), "copies must leave fewer than 2**31 examples, got 2000000 of 1350"),
        (("--copies", "many"), "argument --copies: invalid int value: 'many'"),
        (("--copy", "2"), "unknown flag --copy; did you mean --copies?"),
        (("--data", "nmist"), "data must be one of mnist, fashion_mnist"),
    ],
)
def test_bad_flags_are_one_line(run, tmp_path, args, message):
    status, output, errors = run(tmp_path / "shards", "--data", "digits", *args)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert not (tmp_path / "shards").exists()


def test_an_existing_directory_is_one_line(run, tmp_path):
    message = f"error: {tmp_path} exists: name a new directory for the shards\n"
    assert run(tmp_path, "--data", "digits") == (2, "", message)


def test_the_help_does_not_wait_for_jax(run_python):
    code = "import sys; from mnist_jax.data.write import main; main(['--help'])"
    done = run_python("-c", f"import atexit, sys; atexit.register(lambda: print('jax' in sys.modules)); {code}")
    assert done.stdout.endswith("False\n"), done.stderr
    assert "usage: python -m mnist_jax.data.write" in done.stdout
