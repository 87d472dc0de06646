import hashlib
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_trees_equal

from mnist_jax import (
    InputError,
    count_parameters,
    evaluate_dataset,
    load_dataset,
    load_export,
    load_predictor,
    load_run,
)
from mnist_jax.core.calibration import Confidence
from mnist_jax.training import network

FILE = Path(network.__file__).with_name("network.safetensors")
BOX = "using the network in the box, a cnn on MNIST and scikit-learn's digits"


def test_the_file_is_the_one_that_was_measured():
    assert (
        hashlib.sha256(FILE.read_bytes()).hexdigest()
        == "9ed53bcce0488e6ed3265fd61aac7c8c57e6ee721256c12fe4c0029f6754f22d"
    )
    config, state = load_export(FILE)
    assert config.data == "mnist+digits"
    assert count_parameters(state.params) == 6926


@pytest.mark.slow
def test_its_accuracy_and_confidence_are_those_stated(mnist_dir):
    dataset = load_dataset("mnist", data_dir=mnist_dir)
    state = load_export(FILE)[1]
    num_correct = round(evaluate_dataset(state, dataset.test).accuracy * 10_000)
    assert abs(num_correct - 9946) <= 1  # rounding differs between versions of XLA
    assert "99.46 % of MNIST's test digits and 97.64 % of scikit-learn's" in network.__doc__
    digits = evaluate_dataset(state, load_dataset("digits").test)
    assert abs(round(digits.accuracy * 297) - 290) <= 1
    validation = evaluate_dataset(state, dataset.validation)
    expected = Confidence.fit(validation.logits, *dataset.validation).to_dict()
    stored = json.loads(FILE.with_name("network.confidence.json").read_text())
    assert stored.keys() == expected.keys()
    for name, values in stored.items():
        np.testing.assert_allclose(values, expected[name], rtol=0.01, atol=0.01)


@pytest.fixture
def runs(digits_run, tmp_path, monkeypatch):
    """The directory ``runs`` in the current one, with a run on digits."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_run.workdir, "runs/mine")
    return Path("runs")


def summarise(runs, **values):
    path = runs / "mine" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_newest_run_on_mnist_comes_before_the_network_in_the_box(runs, caplog):
    caplog.set_level(logging.WARNING, "mnist_jax")
    assert_trees_equal(load_predictor()._state.params, load_export(FILE)[1].params)
    summarise(runs, dataset="mnist", test_accuracy=0.98765)
    predictor = load_predictor()
    assert_trees_equal(predictor._state.params, load_run(runs / "mine")[1].params)
    assert predictor.title == "mlp on mnist, 98.77 % test accuracy"
    assert caplog.messages == [BOX, f"using the newest run on MNIST, runs/mine: {predictor.title}"]


def test_a_run_that_is_named_answers_with_its_confidence(runs, caplog):
    dataset = load_dataset("digits")
    state = load_run("runs/mine")[1]
    validation = evaluate_dataset(state, dataset.validation)
    confidence = Confidence.fit(validation.logits, *dataset.validation)
    test = evaluate_dataset(state, dataset.test)
    predictor = load_predictor("runs/mine")
    probabilities = predictor.classify(dataset.test.image)
    np.testing.assert_allclose(probabilities, confidence.probabilities(test.logits), rtol=1e-4, atol=1e-5)
    doubtful = confidence.refuses(test.logits, dataset.test.image) | (probabilities.max(axis=1) < 0.6)
    predictions = predictor.predict(dataset.test.image)
    assert [prediction.doubt is not None for prediction in predictions] == doubtful.tolist()
    assert 0 < doubtful.sum() < 60
    assert caplog.messages == []


def test_the_doubt_says_why(runs):
    (runs / "mine" / "confidence.json").write_text(json.dumps(Confidence(temperature=1e6).to_dict()))
    prediction = load_predictor("runs/mine").predict(load_dataset("digits").test.image[:1])[0]
    first, second = np.argsort(-prediction.probabilities, kind="stable")[:2]
    assert prediction.doubt == f"{first} or {second}"
    refusing = Confidence(1.0, -1.0, np.zeros((10, 13)), np.zeros((10, 13, 13)), np.zeros(10))
    (runs / "mine" / "confidence.json").write_text(json.dumps(refusing.to_dict()))
    prediction = load_predictor("runs/mine").predict(load_dataset("digits").test.image[:1])[0]
    assert prediction.doubt == "unlike the images it was trained on"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "'temperature'"),
        ("[]", "'list' object has no attribute 'items'"),
        ('{"temperature": 0}', "expected finite numbers, and a temperature above 0"),
        ('{"temperature": 1, "mean": [[1]]}', "expected a temperature, or a temperature, a threshold and Gaussians"),
        (
            json.dumps(Confidence(1.0, 0.0, np.zeros((2, 5)), np.zeros((2, 5, 5)), np.zeros(2)).to_dict()),
            "expected 10 classes, got 2",
        ),
    ],
)
def test_a_damaged_confidence_is_one_line(runs, content, reason):
    path = runs / "mine" / "confidence.json"
    path.write_text(content)
    message = f"runs/mine/confidence.json: is damaged ({reason}); delete it, and predictions are not calibrated"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_predictor("runs/mine")
    path.unlink()
    assert load_predictor("runs/mine").predict(load_dataset("digits").test.image[:1])[0].class_name


def test_an_unfinished_run_is_described_as_one(runs):
    (runs / "mine" / "summary.json").unlink()
    assert load_predictor("runs/mine").title == "mlp on digits, training not finished"
