"""Label errors: the models never saw what they predict, the scores are the published ones, the files are complete."""

import csv
import dataclasses
import re

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.metrics import average_precision_score

from mnist_jax import (
    Dataset,
    InputError,
    LabelErrors,
    Split,
    TrainConfig,
    find_label_errors,
    load_dataset,
    train_population,
)
from mnist_jax.label_errors import main
from mnist_jax.training.label_errors import _assign_folds, join_training

SMALL = TrainConfig(
    data="digits", hidden_sizes=(8,), epochs=1, dropout_rate=0.0, optimizer="sgd", learning_rate=0.5, ema_decay=None
)
FLAGS = ["--data", "digits", "--model", "mlp", "--hidden-sizes", "32", "--epochs", "3", "--label-smoothing", "0"]


def softmax(logits):
    exponentials = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def tiny():
    """Digits whose training split has 61 examples, 7 of them for validation."""
    data = load_dataset("digits")
    cut = [Split(*(leaf[:size] for leaf in split)) for split, size in ((data.train, 54), (data.validation, 7))]
    return Dataset(*cut, Split(*(leaf[:20] for leaf in data.test)), "digits")


@pytest.mark.parametrize(("folds", "repeats"), [(2, 1), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_each_example_is_predicted_by_the_models_that_did_not_see_it(folds, repeats, tiny):
    config = dataclasses.replace(SMALL, hidden_sizes=(), batch_size=16, epochs=2, seed=5, num_devices=2)
    found = find_label_errors(config, folds=folds, repeats=repeats, dataset=tiny)
    train = join_training(tiny)
    np.testing.assert_array_equal(found.label, [*tiny.train.label, *tiny.validation.label])
    np.testing.assert_array_equal(train.image[54:], tiny.validation.image)

    rng, total = np.random.default_rng(5), np.zeros((61, 10))
    for repeat in range(repeats):
        fold = _assign_folds(train.label, folds, rng)
        for left_out in range(folds):
            own = Dataset(Split(*(leaf[fold != left_out] for leaf in train)), tiny.validation, tiny.test, "digits")
            alone = train_population(config, [5 + folds * repeat + left_out], dataset=own)
            others = Split(*(leaf[fold == left_out] for leaf in train))
            total[fold == left_out] += softmax(alone.logits(others)[0]) / repeats
    assert (found.probabilities.shape, found.probabilities.dtype) == ((61, 10), np.float32)
    np.testing.assert_allclose(found.probabilities, total, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_test_examples_are_predicted_by_all_models(tiny):
    config = dataclasses.replace(SMALL, batch_size=16)
    found = find_label_errors(config, split="test", folds=2, repeats=1, dataset=tiny)
    np.testing.assert_array_equal(found.label, tiny.test.label)
    assert found.probabilities.shape == (20, 10)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("num_examples", "folds"), [(61, 3), (60, 3), (10, 10)])
def test_folds_are_equal_and_have_equal_shares_of_the_classes(num_examples, folds):
    label = np.random.default_rng(0).integers(0, 4, num_examples)
    fold = _assign_folds(label, folds, np.random.default_rng(1))
    assert np.ptp(np.bincount(fold, minlength=folds)) <= 1
    for each in range(4):
        assert np.ptp(np.bincount(fold[label == each], minlength=folds)) <= 1
    assert not np.array_equal(fold, _assign_folds(label, folds, np.random.default_rng(2)))


def test_the_scores_are_their_definitions():
    rng = np.random.default_rng(0)
    label, probabilities = rng.integers(0, 4, 50), softmax(rng.normal(size=(50, 4))).astype(np.float32)
    errors = LabelErrors(label, probabilities)
    for index, row in enumerate(probabilities.tolist()):
        other = max(p for k, p in enumerate(row) if k != label[index])
        assert errors.self_confidence[index] == pytest.approx(row[label[index]])
        assert errors.normalised_margin[index] == pytest.approx((1 + row[label[index]] - other) / 2)
        assert errors.suggested[index] == row.index(max(row))
    assert (np.diff(errors.self_confidence[errors.ranking()]) >= 0).all()
    assert (np.diff(errors.normalised_margin[errors.ranking("normalised_margin")]) >= 0).all()


def test_equal_scores_keep_the_order_of_the_data():
    errors = LabelErrors(np.zeros(5, int), np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]], np.float32))
    assert errors.ranking().tolist() == [1, 3, 0, 2, 4]


@pytest.mark.slow
@pytest.mark.uses_adam
def test_flipped_labels_come_first():
    data, rng = load_dataset("digits"), np.random.default_rng(0)
    flipped = rng.random(data.train.num_examples) < 0.05
    label = np.where(flipped, (data.train.label + rng.integers(1, 10, len(flipped))) % 10, data.train.label)
    data = dataclasses.replace(data, train=Split(data.train.image, label.astype(np.int32)))
    config = TrainConfig(hidden_sizes=(64,), epochs=10, learning_rate=3e-3, label_smoothing=0.2)
    errors = find_label_errors(config, folds=3, repeats=1, dataset=data)
    assert average_precision_score(flipped, -errors.normalised_margin[: len(flipped)]) > 0.85
    right = (errors.suggested[:1350] == data.train.label)[flipped]
    assert right.mean() < 0.1  # the prediction is the label before


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("label_errors") / "some"
    assert main([*FLAGS, "--folds", "2", "--repeats", "1", "--workdir", str(path)]) == 0
    return path


@pytest.mark.uses_adam
def test_the_files_are_complete(written):
    with np.load(written / "label_errors.npz") as arrays:
        errors = LabelErrors(arrays["labels"], arrays["pred_probs"])
    with (written / "label_errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    ranking = errors.ranking()
    assert [*rows[0]] == ["rank", "index", "label", "suggested", "self_confidence", "normalised_margin"]
    assert [int(row["rank"]) for row in rows] == list(range(1, 1501))
    assert [int(row["index"]) for row in rows] == ranking.tolist()
    for name in ("label", "suggested", "self_confidence", "normalised_margin"):
        np.testing.assert_allclose([float(row[name]) for row in rows], getattr(errors, name)[ranking], rtol=1e-6)
    assert errors.label.tolist() == join_training(load_dataset("digits")).label.tolist()
    height, width = imread(written / "label_errors.png").shape[:2]
    assert height > width > 1000
    config = TrainConfig.from_json((written / "config.json").read_text())
    assert (config.hidden_sizes, config.epochs, config.learning_rate) == ((32,), 3, 0.01)
    assert sorted(path.name for path in written.iterdir()) == [
        "config.json", "label_errors.csv", "label_errors.npz", "label_errors.png",
    ]  # fmt: skip


@pytest.mark.uses_adam
def test_cleanlab_takes_the_file_as_it_is(written):
    cleanlab = pytest.importorskip("cleanlab", reason="cleanlab is no dependency")
    with np.load(written / "label_errors.npz") as arrays:
        errors = LabelErrors(arrays["labels"], arrays["pred_probs"])
        issues = cleanlab.filter.find_label_issues(**arrays, n_jobs=1)  # else it forks
    assert issues.shape == (1500,)
    args = (errors.label, errors.probabilities)
    for score in ("self_confidence", "normalized_margin"):
        expected = getattr(cleanlab.rank, f"get_{score}_for_each_label")(*args)
        np.testing.assert_allclose(getattr(errors, score.replace("z", "s")), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.uses_adam
def test_the_command_prints_the_first_and_makes_a_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--split", "test", "--folds", "2", "--repeats", "1", "--rank-by", "normalised_margin"]
    assert main([*FLAGS, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    (path,) = (tmp_path / "label_errors").iterdir()
    assert re.fullmatch(r"digits-test-\d{8}-\d{6}", path.name)
    assert re.split("  +", lines[0]) == ["label", "suggested", "index", "self-confidence", "normalised margin"]
    with (path / "label_errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["normalised_margin"]) for row in rows]
    assert scores == sorted(scores)
    for line, row in zip(lines[1:11], rows, strict=False):
        shown = [f"{float(row[name]):.4f}" for name in ("self_confidence", "normalised_margin")]
        assert line.split() == [row["label"], row["suggested"], row["index"], *shown]
    differing = sum(row["label"] != row["suggested"] for row in rows)
    assert lines[12] == f"the prediction differs from the label for {differing} of the 297 test examples of digits"
    assert lines[13].endswith(f" s; everything is in label_errors/{path.name}")


def test_nothing_is_overwritten(written, capsys):
    before = {path: path.read_bytes() for path in written.iterdir()}
    assert main([*FLAGS, "--workdir", str(written)]) == 2
    assert capsys.readouterr().err == f"error: workdir {written} exists: name another directory\n"
    assert {path: path.read_bytes() for path in written.iterdir()} == before
    file = written / "label_errors.csv"
    assert main([*FLAGS, "--workdir", str(file)]) == 2
    assert capsys.readouterr().err == f"error: workdir {file} exists: name another directory\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", "1"], "folds must be between 2 and the 1500 training examples, got 1"),
        (["--folds", "1501"], "folds must be between 2 and the 1500 training examples, got 1501"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--split", "validation"], "split must be one of train, test, got validation"),
        (["--rank-by", "margin"], "rank_by must be one of self_confidence, normalised_margin, got margin"),
        (["--resume", "--workdir", "w"], "resume has no effect on label errors: leave it out"),
        (["--stream"], "stream has no effect on label errors, whose data is in memory: leave it out"),
        (
            ["--keep-hardest", "0.5", "--scores", "s.csv"],
            "keep_hardest has no effect on label errors, which are about all examples: leave it out",
        ),
        (["--batch-size", "1100"], "batch_size must be at most the 1000 examples of a member, got 1100"),
        (["--data", "nowhere"], "data must be one of mnist, .* got 'nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*FLAGS, "--folds", "3", *flags]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(f"error: {message}\n", captured.err)
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_split_of_another_name_is_refused(tiny):
    with pytest.raises(InputError, match="^split must be one of train, test, got all$"):
        find_label_errors(SMALL, split="all", dataset=tiny)


def test_a_training_that_diverges_is_refused(tiny):
    config = dataclasses.replace(SMALL, learning_rate=1e38, batch_size=16)
    with pytest.raises(InputError, match="^the training of a model diverged: a lower learning_rate may help$"):
        find_label_errors(config, folds=2, repeats=1, dataset=tiny)


def test_names_with_dollars_are_drawn(tiny, tmp_path):
    from mnist_jax.label_errors import write_label_errors

    errors = LabelErrors(tiny.test.label, np.full((20, 10), 0.1, np.float32))
    tmp_path.joinpath("files").mkdir()
    names = [f"${name}$_" for name in "0123456789"]
    write_label_errors(tmp_path / "files", errors, errors.ranking(), tiny.test.image, names)
    assert (tmp_path / "files" / "label_errors.png").exists()
