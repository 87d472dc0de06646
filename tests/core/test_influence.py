"""Influence scores are sums of dot products over checkpoints, and predict what a step does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_split

from mnist_jax import (
    MLP,
    Split,
    create_train_state,
    influence_features,
    influence_scores,
    per_example_gradients,
    per_example_losses,
    precondition_features,
    train_step,
)

SPLIT, QUERIES = make_split(20), make_split(3, seed=1)
TX = optax.sgd(1e-4)


@pytest.fixture(scope="module")
def states():
    model = MLP(hidden_sizes=(), dropout_rate=0.0)
    return [create_train_state(model, TX, jax.random.key(seed)) for seed in range(2)]


def dot_products(state, where=None):
    def flat(split):
        leaves = jax.tree.leaves(per_example_gradients(state, split, where=where))
        return np.concatenate([np.asarray(leaf).reshape(split.num_examples, -1) for leaf in leaves], axis=1)

    return flat(SPLIT) @ flat(QUERIES).T


@pytest.mark.parametrize("where", [None, "Dense_0/bias"])
def test_scores_are_weighted_sums_over_checkpoints(states, where):
    found = influence_scores(states, [0.5, 2.0], SPLIT, QUERIES, where=where)
    expected = 0.5 * dot_products(states[0], where) + 2 * dot_products(states[1], where)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_score_is_what_a_step_on_the_example_changes(states):
    state, rate = states[0], 1e-4
    scores = np.asarray(influence_scores([state], [rate], SPLIT, QUERIES))
    before = per_example_losses(state, QUERIES)
    for index in range(3):
        after, _ = train_step(state, {"image": SPLIT.image[[index]], "label": SPLIT.label[[index]]})
        change = np.asarray(before - per_example_losses(after, QUERIES))
        np.testing.assert_allclose(change, scores[index], rtol=0.1, atol=3e-6)


def test_features_estimate_the_scores(states):
    key, rates = jax.random.key(3), [0.5, 2.0]
    features = [influence_features(states, rates, split, key, 2048) for split in (SPLIT, QUERIES)]
    assert features[0].shape == (20, 4096)
    exact = np.asarray(influence_scores(states, rates, SPLIT, QUERIES))
    found = np.asarray(features[0] @ features[1].T)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.98
    alone = influence_features(states, rates, Split(*(each[4:5] for each in SPLIT)), key, 2048)
    np.testing.assert_allclose(alone, features[0][4:5], rtol=1e-3, atol=1e-4 * float(jnp.abs(features[0]).max()))


@pytest.mark.parametrize("function", [influence_scores, influence_features])
def test_there_is_a_learning_rate_for_each_checkpoint(states, function):
    for given, rates in ((states, [1.0]), ([], [])):
        message = f"at least one checkpoint, got {len(rates)} for {len(given)}"
        with pytest.raises(ValueError, match=message):
            function(given, rates, SPLIT, jax.random.key(0) if function is influence_features else QUERIES)


def test_preconditioning_is_the_inverse_of_the_damped_second_moment():
    rng = np.random.default_rng(0)
    features, query = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=6)
    moment = features.T.astype(np.float64) @ features
    expected = features @ np.linalg.solve(moment + 0.01 * np.trace(moment) * np.eye(6), query)
    np.testing.assert_allclose(
        precondition_features(features, 0.01) @ query.astype(np.float32), expected, rtol=1e-4, atol=1e-6
    )
