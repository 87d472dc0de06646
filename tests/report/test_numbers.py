import re

import numpy as np
import pytest
from sklearn.metrics import classification_report

from mnist_jax import Evaluation
from mnist_jax.report.numbers import describe_evaluation, examples_csv, results_table

DIGITS = tuple("0123456789")


def make_evaluation(num_examples=300):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 9, num_examples)  # no 9: a class without examples
    logits = rng.normal(size=(num_examples, 10)).astype(np.float32)
    logits[np.arange(num_examples), label] += 1
    return Evaluation(0.5, float((logits.argmax(axis=1) == label).mean()), num_examples, logits, label)


def test_the_scores_are_those_of_scikit_learn():
    evaluation = make_evaluation()
    expected = classification_report(
        evaluation.label, evaluation.predictions, labels=range(10), output_dict=True, zero_division=0
    )
    content = describe_evaluation(evaluation, DIGITS)
    for index, row in enumerate(content["classes"]):
        theirs = expected[str(index)]
        assert row == {
            "name": str(index),
            "num_examples": theirs["support"],
            "precision": theirs["precision"],
            "recall": theirs["recall"],
            "f1": theirs["f1-score"],
        }
    for name in ("precision", "recall"):
        shown = re.search(r"mean .*", results_table(content | {"model": "mlp", "split": "test", "dataset": "some"}))
        assert f"{expected['macro avg'][name]:.2%}" in shown.group()


def test_examples_are_counted_by_a_loop():
    evaluation = make_evaluation()
    content = describe_evaluation(evaluation, DIGITS)
    matrix = np.zeros((10, 10), int)
    wrong = []
    for index, (label, logits) in enumerate(zip(evaluation.label, evaluation.logits, strict=True)):
        matrix[label, logits.argmax()] += 1
        if label != logits.argmax():
            wrong.append(index)
    assert content["confusion_matrix"] == matrix.tolist()
    assert [each["index"] for each in content["misclassified"]] == wrong
    order = sorted(range(300), key=lambda index: -evaluation.losses[index])
    assert [each["index"] for each in content["hardest"]] == order[:36]
    for each in (*content["hardest"], *content["misclassified"]):
        logits = evaluation.logits[each["index"]].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        assert each["label"] == evaluation.label[each["index"]]
        assert each["prediction"] == probabilities.argmax()
        assert each["confidence"] == pytest.approx(probabilities.max(), rel=1e-5)
        assert each["loss"] == pytest.approx(-np.log(probabilities[each["label"]]), rel=1e-5)


def test_the_calibration_adds_up_and_an_empty_bin_is_null():
    content = describe_evaluation(make_evaluation(), DIGITS)
    bins = content["calibration"]
    assert sum(each["num_examples"] for each in bins) == 300
    assert bins[0] == {"from": 0, "to": pytest.approx(1 / 15), "num_examples": 0, "confidence": None, "accuracy": None}
    filled = [each for each in bins if each["num_examples"]]
    error = sum(each["num_examples"] / 300 * abs(each["accuracy"] - each["confidence"]) for each in filled)
    assert content["expected_calibration_error"] == pytest.approx(error)
    assert sum(each["num_examples"] * each["accuracy"] for each in filled) / 300 == pytest.approx(content["accuracy"])


def test_of_no_mistakes_none_is_the_most_frequent():
    logits = np.eye(10, dtype=np.float32)
    content = describe_evaluation(Evaluation(0.5, 1.0, 10, logits, np.arange(10)), DIGITS)
    text = results_table(content | {"model": "mlp", "split": "test", "dataset": "some"})
    assert text.splitlines()[-1].startswith("0 misclassified; expected calibration error")


def test_the_lines_of_the_csv_are_the_examples():
    evaluation = make_evaluation(3)
    header, *lines = examples_csv(evaluation, np.float32([0.5, 1e-9, 3])).splitlines()
    assert header == "index,label,prediction,loss,margin,gradient_norm"
    for index, (line, norm) in enumerate(zip(lines, ("0.5", "1e-09", "3.0"), strict=True)):
        first, label, prediction, loss, margin, last = line.split(",")
        assert (int(first), int(label), last) == (index, evaluation.label[index], norm)
        assert int(prediction) == evaluation.predictions[index]
        assert (np.float32(loss), np.float32(margin)) == (evaluation.losses[index], evaluation.margins[index])
