import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, make_split

from mnist_jax import (
    MLP,
    Augmentation,
    Evaluation,
    Split,
    create_train_state,
    eval_step,
    evaluate_dataset,
    evaluate_views,
    per_example_losses,
    per_example_margins,
)
from mnist_jax.core.evaluation import evaluate_arrays


@pytest.fixture(scope="module")
def state():
    return create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0), ema_decay=0.9)


def by_numpy(state, split):
    logits = np.asarray(
        state.recipe.model.module.apply({"params": state.eval_params}, split.image.astype(np.float32) / 255), np.float64
    )
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits, -log_probabilities[np.arange(len(split.label)), split.label]


@pytest.mark.parametrize("num_examples", [24, 25, 31, 3])  # 3 B, 3 B + 1, 4 B - 1, less than B
def test_every_example_counts_once(state, num_examples):
    split = make_split(num_examples)
    logits, losses = by_numpy(state, split)
    evaluation = evaluate_dataset(state, split, batch_size=8)
    assert evaluation.num_examples == num_examples
    np.testing.assert_allclose(evaluation.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(evaluation.loss, losses.mean(), rtol=1e-5)
    assert evaluation.accuracy == (logits.argmax(axis=1) == split.label).mean()
    np.testing.assert_array_equal(evaluation.predictions, logits.argmax(axis=1))
    np.testing.assert_array_equal(evaluation.label, split.label)


def test_the_running_average_is_evaluated(state):
    split = make_split(8)
    changed = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    assert evaluate_dataset(changed, split).loss == evaluate_dataset(state, split).loss
    without = changed.replace(ema_params=None)
    np.testing.assert_allclose(evaluate_dataset(without, split).loss, np.log(10), rtol=1e-6)


def test_masked_eval_step_is_the_subset(state):
    batch = make_split(9)._asdict()
    mask = np.arange(9) % 3 == 0
    subset = {name: array[mask] for name, array in batch.items()}
    assert_trees_close(eval_step(state, batch, mask), eval_step(state, subset))
    assert eval_step(state, batch).count == 9


def test_what_the_mask_hides_may_be_anything(state):
    batch = make_split(4)._asdict()
    mask = np.array([True, True, True, False])
    bad = {"image": batch["image"].astype(np.float32) / 255, "label": batch["label"]}
    bad["image"][3] = np.nan
    assert_trees_close(eval_step(state, bad, mask), eval_step(state, batch, mask))


def test_it_compiles_once_and_takes_data_from_host_and_device(state):
    split = make_split(21, seed=5)
    before = evaluate_arrays._cache_size()
    results = [evaluate_dataset(state, each, 7).loss for each in (split, split, jax.device_put(split))]
    assert len(set(results)) == 1
    assert evaluate_arrays._cache_size() - before <= 2  # uncommitted and committed arrays are told apart


def test_an_empty_split_or_batch_is_refused(state):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate_dataset(state, make_split(3), 0)
    with pytest.raises(ValueError, match="the split to evaluate must have at least one example, got none"):
        evaluate_dataset(state, Split(np.zeros((0, 28, 28, 1), np.uint8), np.zeros(0, np.int32)))


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def test_single_examples_are_those_of_the_functions_for_them(state):
    split = make_split(11)
    evaluation = evaluate_dataset(state, split)
    np.testing.assert_allclose(evaluation.probabilities, softmax(evaluation.logits), rtol=1e-5)
    np.testing.assert_allclose(evaluation.losses, per_example_losses(state, split), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(evaluation.margins, per_example_margins(state, split), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(evaluation.losses.mean(), evaluation.loss, rtol=1e-5)


def test_a_large_loss_of_one_example_is_finite():
    logits = np.array([[1000.0, 0.0, -500.0]], np.float32)
    evaluation = Evaluation(0.5, 0.0, 1, logits, np.array([2]))
    assert (evaluation.losses.tolist(), evaluation.margins.tolist()) == ([1500.0], [-1500.0])


def test_views_are_the_mean_of_the_probabilities_of_each(state):
    split, key, augment = make_split(11), jax.random.key(1), Augmentation(shift=3, rotation=20)
    image = split.image.astype(np.float32) / 255
    views = [image, *(augment(image, jax.random.fold_in(key, view)) for view in range(3))]
    probabilities = np.mean([softmax(evaluate_dataset(state, Split(x, split.label)).logits) for x in views], axis=0)
    evaluation = evaluate_views(state, split, 3, key, augment)
    np.testing.assert_allclose(softmax(evaluation.logits), probabilities, rtol=1e-4, atol=1e-6)
    assert evaluation.accuracy == (probabilities.argmax(axis=1) == split.label).mean()
    np.testing.assert_allclose(evaluation.loss, -np.log(probabilities[np.arange(11), split.label]).mean(), rtol=1e-4)
    own = evaluate_views(state.replace(recipe=dataclasses.replace(state.recipe, augment=augment)), split, 3, key)
    np.testing.assert_array_equal(own.logits, evaluation.logits)


def test_without_views_it_is_the_evaluation_itself(state):
    split = make_split(7)
    plain = evaluate_dataset(state, split)
    found = evaluate_views(state, split, 0, jax.random.key(0), Augmentation(shift=1))
    np.testing.assert_allclose(found.loss, plain.loss, rtol=1e-5)
    np.testing.assert_array_equal(found.predictions, plain.predictions)


def test_views_need_an_augmentation(state):
    with pytest.raises(ValueError, match="augment must be given for a state that was trained without augmentation"):
        evaluate_views(state, make_split(3), 2, jax.random.key(0))


def test_a_probability_of_zero_has_a_finite_loss():
    evaluation = Evaluation.from_probabilities(np.array([[1.0, 0.0]]), np.array([1]))
    np.testing.assert_allclose(evaluation.loss, -np.log(np.finfo(np.float32).tiny), rtol=1e-6)
    assert (evaluation.accuracy, evaluation.num_examples) == (0.0, 1)
