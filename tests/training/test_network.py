import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_trees_equal

from mnist_jax import count_parameters, evaluate_dataset, load_dataset, load_export, load_predictor, load_run
from mnist_jax.core.calibration import Confidence
from mnist_jax.training import network

FILE = Path(network.__file__).with_name("network.safetensors")
BOX = "using the network in the box, a cnn on MNIST and scikit-learn's digits"


def test_the_file_is_the_one_that_was_measured():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == "SHA256"
    config, state = load_export(FILE)
    assert config.data == "mnist+digits"
    assert count_parameters(state.params) == 6926


@pytest.mark.slow
def test_its_accuracy_and_confidence_are_those_stated(mnist_dir):
    dataset = load_dataset("mnist", data_dir=mnist_dir)
    state = load_export(FILE)[1]
    num_correct = round(evaluate_dataset(state, dataset.test).accuracy * 10_000)
    assert abs(num_correct - 9944) <= 1  # rounding differs between versions of XLA
    assert f"{num_correct / 100:.1f}" in network.__doc__
    validation = evaluate_dataset(state, dataset.validation)
    confidence = Confidence.fit(validation.logits, dataset.validation.label)
    assert confidence.temperature == pytest.approx(network._CONFIDENCE.temperature, rel=1e-3)
    assert confidence.energy_threshold == pytest.approx(network._CONFIDENCE.energy_threshold, rel=1e-3)


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
    summarise(runs, temperature=2.5, energy_threshold=-3.0)
    predictor = load_predictor("runs/mine")
    image = load_dataset("digits").test.image[:5]
    logits = evaluate_dataset(load_run("runs/mine")[1], load_dataset("digits").test).logits[:5]
    np.testing.assert_allclose(predictor.classify(image), Confidence(2.5).probabilities(logits), rtol=1e-5, atol=1e-6)
    doubts = [prediction.doubt is not None for prediction in predictor.predict(image)]
    assert doubts == (Confidence(2.5, -3.0).refuses(logits) | (predictor.classify(image).max(axis=1) < 0.6)).tolist()
    assert caplog.messages == []


@pytest.mark.parametrize("temperature", [None, 0, "1", float("nan")])
def test_a_run_without_a_sound_confidence_has_that_of_its_logits(runs, temperature):
    summarise(runs, temperature=temperature)
    assert load_predictor("runs/mine")._confidence == Confidence()


def test_an_unfinished_run_is_described_as_one(runs):
    (runs / "mine" / "summary.json").unlink()
    assert load_predictor("runs/mine").title == "mlp on digits, training not finished"
