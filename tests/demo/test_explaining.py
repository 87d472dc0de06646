"""Training examples behind an answer: none until they are loaded, and none for a run without its data."""

import dataclasses
import shutil
import time

import numpy as np
from pages import DIGITS, SEVEN, picture, serving
from test_server import ask, fake_predictor

from mnist_jax import TrainConfig, load_explainer, load_predictor
from mnist_jax.demo.explaining import BackgroundExplainer, Example
from mnist_jax.demo.server import create_app

CONTENT = picture(SEVEN)


def wait_for(explain):
    while not explain._loading.done():
        time.sleep(0.05)


def test_the_first_call_loads_and_later_ones_find_the_strongest_examples(digits_run):
    load_explainer(digits_run.workdir)  # caches, so that loading is short
    predictor = load_predictor(digits_run.workdir)
    explain = BackgroundExplainer(digits_run.workdir, predictor)
    assert explain(CONTENT) is None
    wait_for(explain)
    found = explain(CONTENT)
    prediction = predictor(CONTENT)
    explainer = load_explainer(digits_run.workdir)
    expected = explainer(prediction.image, prediction.label).helpful
    assert [each.index for each in found] == [each.index for each in expected]
    for example in found:
        assert example.class_name == str(explainer.split.label[example.index])
        np.testing.assert_array_equal(example.image, explainer.split.image[example.index])


def test_without_the_training_data_there_are_none(digits_run, tmp_path, caplog):
    copy = tmp_path / "run"
    shutil.copytree(digits_run.workdir, copy)
    config = TrainConfig.from_json((copy / "config.json").read_text())
    (copy / "config.json").write_text(dataclasses.replace(config, num_validation=100).to_json())
    explain = BackgroundExplainer(copy, load_predictor(copy))
    assert explain(CONTENT) is None
    wait_for(explain)
    assert explain(CONTENT) is None
    assert caplog.messages == [
        f"no training digits on the page: {copy}: its training data, digits, was not found as it was when the run was "
        "trained"
    ]


def test_the_page_asks_only_a_server_that_knows_them():
    examples = [Example(17, "7", np.full((28, 28, 1), 5, np.uint8))]
    answers = iter([None, [], examples])
    with serving(create_app(fake_predictor, DIGITS, explain=lambda content: next(answers))) as address:
        expected = {"index": 17, "class_name": "7", "image": [[5] * 28] * 28}
        for found in (None, [], [expected]):
            status, _, answer = ask(address, CONTENT, path="/api/explain")
            assert (status, answer) == (200, {"examples": found})
        assert 'data-explains="true"' in ask(address, method="GET", path="/")[2]
    with serving(create_app(fake_predictor, DIGITS)) as address:
        assert ask(address, CONTENT, path="/api/explain")[0] == 404
        assert 'data-explains="false"' in ask(address, method="GET", path="/")[2]


def test_a_picture_that_is_too_large_is_refused():
    with serving(create_app(fake_predictor, DIGITS, explain=lambda content: None)) as address:
        status, _, answer = ask(address, bytes(10_000_001), path="/api/explain")
    assert (status, answer["error"]) == (413, "expected a picture of at most 10 MB, got a larger one")
