import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, make_split

from mnist_jax import MLP, Split, create_train_state, eval_step, evaluate_dataset
from mnist_jax.evaluate import CompiledEvaluation, _evaluate


@pytest.fixture(scope="module")
def state():
    return create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0), ema_decay=0.9)


def by_numpy(state, split):
    logits = np.asarray(
        state.model.apply({"params": state.eval_params}, split.image.astype(np.float32) / 255), np.float64
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
    before = _evaluate._cache_size()
    results = [evaluate_dataset(state, each, 7).loss for each in (split, split, jax.device_put(split))]
    assert len(set(results)) == 1
    assert _evaluate._cache_size() - before <= 2  # uncommitted and committed arrays are told apart


def test_an_empty_split_or_batch_is_refused(state):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate_dataset(state, make_split(3), 0)
    with pytest.raises(ValueError, match="the split to evaluate must have at least one example, got none"):
        evaluate_dataset(state, Split(np.zeros((0, 28, 28, 1), np.uint8), np.zeros(0, np.int32)))


def test_compiled_ahead_it_is_the_same(state):
    split = make_split(20)
    shapes = jax.eval_shape(lambda: state)
    ahead, at_once = CompiledEvaluation(shapes, split, batch_size=8)(state), evaluate_dataset(state, split, 8)
    np.testing.assert_array_equal(ahead.logits, at_once.logits)
    assert (ahead.loss, ahead.accuracy, ahead.num_examples) == (at_once.loss, at_once.accuracy, 20)
