"""Training examples behind a prediction: the largest scores, from the cache, without a trace in the run."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from mnist_jax import (
    Explainer,
    InputError,
    Split,
    TrainConfig,
    build_state,
    influence_features,
    load_dataset,
    load_explainer,
    precondition_features,
)
from mnist_jax.training.explanation import explainer_features

DATASET = load_dataset("digits")
IMAGE = DATASET.test.image[3]


@pytest.fixture(scope="module")
def explainer(digits_run):
    return load_explainer(digits_run.workdir)


def test_it_finds_the_examples_with_the_largest_scores(explainer, digits_run):
    explanation = explainer(IMAGE, 9, num_examples=4)
    splits = DATASET.train, Split(IMAGE[None], np.array([9], np.int32))
    trained, query = (influence_features([digits_run.state], [1.0], split, jax.random.key(0)) for split in splits)
    scores = np.asarray(precondition_features(trained, relative=True) @ query[0])
    order = np.argsort(-scores)
    assert (explanation.label, len(explanation.helpful), len(explanation.opposing)) == (9, 4, 4)
    for side, expected in ((explanation.helpful, order[:4]), (explanation.opposing, order[:-5:-1])):
        assert [each.index for each in side] == expected.tolist()
        assert [each.label for each in side] == DATASET.train.label[expected].tolist()
        np.testing.assert_allclose([each.score for each in side], scores[expected], rtol=1e-3)
    assert explanation.helpful[0].score > 0 > explanation.opposing[0].score


def test_the_second_time_it_reads_the_cache(explainer, digits_run, tmp_path, caplog, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(digits_run.workdir, copy)
    before = sorted(path.relative_to(copy) for path in copy.rglob("*"))
    expected = explainer(IMAGE, 9)
    assert load_explainer(copy)(IMAGE, 9) == expected
    assert not caplog.messages  # nothing computed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for damage in (b"", b"damaged"):
        assert load_explainer(copy)(IMAGE, 9) == expected
        (cached,) = (tmp_path / "cache" / "mnist_jax").glob("features-*.npy")
        cached.write_bytes(damage)
    assert caplog.messages == ["computing the gradients of 1,350 training examples, once for this run"] * 2
    assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == before


def test_other_training_data_is_refused(digits_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(digits_run.workdir, copy)
    config = TrainConfig.from_json((copy / "config.json").read_text())
    (copy / "config.json").write_text(dataclasses.replace(config, num_validation=100).to_json())
    with pytest.raises(InputError) as error:
        load_explainer(copy)
    assert str(error.value) == f"{copy}: its training data, digits, was not found as it was when the run was trained"


def test_an_example_helps_or_opposes_by_its_sign():
    few = Split(*(each[:5] for each in DATASET.train))
    state = build_state(TrainConfig(hidden_sizes=(4,)))
    explanation = Explainer(state, few, explainer_features(state, few))(few.image[0], int(few.label[0]))
    assert sorted(each.index for each in [*explanation.helpful, *explanation.opposing]) == [0, 1, 2, 3, 4]
    assert explanation.helpful[0].index == 0
    assert all(each.score > 0 for each in explanation.helpful)
    assert all(each.score < 0 for each in explanation.opposing)
