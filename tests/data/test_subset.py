import numpy as np
import pytest
from conftest import make_arrays

from mnist_jax import Dataset, InputError
from mnist_jax.data.subset import choose_hardest, read_scores, take_examples

SCORE = np.array([0.5, 0.25, 1.0, 0.0])


def test_scores_are_read_from_csv_and_numpy(tmp_path):
    (tmp_path / "plain.csv").write_text("label,score\n3,0.5\n1,0.25\n4,1\n1,0\n")
    (tmp_path / "shuffled.csv").write_text("index,score\n2,1\n0,0.5\n3,0\n1,0.25\n")
    np.save(tmp_path / "score.npy", SCORE.astype(np.float32))
    np.savez(tmp_path / "score.npz", score=SCORE, other=SCORE[:2])
    for name in ("plain.csv", "shuffled.csv", "score.npy", "score.npz"):
        np.testing.assert_array_equal(read_scores(tmp_path / name, 4), SCORE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "index,aum\n0,1\n",
            "cannot be read (expected a column score, got ['index', 'aum']); expected a .csv",
        ),
        ("index,score\n0,1\n0,1\n", "cannot be read (expected each index from 0 once)"),
        ("score\n1\nx\n", "cannot be read (could not convert string to float: 'x')"),
        ("score\n1\n2\n", "expected a score for each of the 3 training examples, got [2]"),
        ("score\n1\ninf\n0\n", "expected finite scores, got inf for example 1"),
    ],
)
def test_a_csv_without_usable_scores_is_refused(tmp_path, content, message):
    path = tmp_path / "scores.csv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_scores(path, 3)
    assert f"scores {path}: {message}" in str(caught.value)


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", margin=SCORE)
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    (tmp_path / "scores.json").write_text("[1, 2]")
    for name, message in (
        ("other.npz", "expected an array score, got ['margin']"),
        ("text.npy", "expected numbers, got <U1"),
        ("scores.json", "cannot be read"),
        ("missing.csv", "no such file; python -m mnist_jax.dynamics RUN writes one"),
    ):
        with pytest.raises(InputError) as caught:
            read_scores(tmp_path / name, 2)
        assert message in str(caught.value)


@pytest.mark.parametrize(("fraction", "expected"), [(0.25, [2]), (0.5, [0, 2]), (0.6, [0, 1, 2]), (1.0, [0, 1, 2, 3])])
def test_the_hardest_have_the_highest_scores(fraction, expected):
    assert choose_hardest(SCORE, fraction).tolist() == expected


def test_of_equal_scores_the_first_are_kept():
    assert choose_hardest(np.zeros(6), 0.5).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
        choose_hardest(SCORE, 0)


def test_a_part_of_the_training_examples_is_taken():
    dataset = Dataset.from_arrays(make_arrays(), "random", 10)
    part = take_examples(dataset, np.array([3, 7], np.int32))
    np.testing.assert_array_equal(part.train.image, dataset.train.image[[3, 7]])
    np.testing.assert_array_equal(part.train.label, dataset.train.label[[3, 7]])
    assert part.validation is dataset.validation
    assert part.identity() != dataset.identity()
