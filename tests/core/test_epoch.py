import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_split

from mnist_jax import (
    MLP,
    AccumulatedGradient,
    Augmentation,
    ExampleMetrics,
    Metrics,
    Split,
    VirtualAdversarialLoss,
    apply_model,
    create_train_state,
    epoch_order,
    mean_gradient,
    train_epoch,
    train_step,
    train_steps,
)
from mnist_jax.core.epoch import loop_steps

SPLIT = make_split(22)  # 6 steps of 4, the last one with 2 examples


def make_state(dropout_rate=0.2, **options):
    model = MLP(hidden_sizes=(8,), dropout_rate=dropout_rate)
    return create_train_state(model, optax.sgd(0.1, momentum=0.9), jax.random.key(3), **options)


def test_the_order_is_a_permutation_of_its_own_for_each_epoch():
    key = jax.random.key(0)
    orders = [np.asarray(epoch_order(key, epoch, 50)) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(epoch_order(key, jnp.int32(2), 50), orders[2])


def by_hand(state, order, num_steps, start=0):
    total = Metrics.zeros()
    for index in range(start, start + num_steps):
        chosen = order[4 * index : 4 * index + 4]
        mask = np.arange(4) < len(chosen)
        chosen = np.concatenate([chosen, order[: 4 - len(chosen)]])
        batch = {"image": SPLIT.image[chosen], "label": SPLIT.label[chosen], "mask": mask}
        state, metrics = train_step(state, batch)
        total = total + metrics
    return state, total


@pytest.mark.parametrize("epoch", [0, 2])
def test_an_epoch_is_the_loop_over_its_order(epoch):
    state = make_state(ema_decay=0.9).replace(step=jnp.int32(6 * epoch))
    expected, total = by_hand(state, np.asarray(epoch_order(state.key, epoch, 22)), 6)
    found, metrics = train_epoch(state, SPLIT, 4)
    assert_trees_close((found.params, found.ema_params, metrics), (expected.params, expected.ema_params, total))


def test_steps_go_through_any_order_from_anywhere():
    state = make_state()
    order = np.array([5, 4, 3, 2, 1, 0, 21, 20, 19, 0, 0], np.int32)
    expected, total = by_hand(state, order, 2, start=1)
    found, metrics, nonfinite = train_steps(state, SPLIT, order, 4, start=1, num_steps=2)
    assert_trees_close((found.params, metrics), (expected.params, total))
    assert (int(found.step), int(metrics.count), int(nonfinite)) == (2, 7, -1)
    with pytest.raises(ValueError, match="batch_size must be between 1 and the 11 examples of the split, got 12"):
        train_steps(state, SPLIT, order, 12, start=0, num_steps=1)


@pytest.mark.parametrize("example", [0, 13, 21])
def test_the_first_batch_whose_loss_is_not_finite_is_carried_along(example):
    image = SPLIT.image / np.float32(255)
    image[example] = np.nan
    order = np.arange(22, dtype=np.int32)
    _, _, nonfinite = train_steps(make_state(), Split(image, SPLIT.label), order, 4, start=0, num_steps=6)
    assert nonfinite == example // 4


def test_chunks_share_one_program_and_change_nothing():
    state = make_state()
    order = epoch_order(state.key, 0, 22)
    whole, _, _ = train_steps(state, SPLIT, order, 4, start=0, num_steps=6)
    before = train_steps._cache_size()
    part, _, _ = train_steps(state, SPLIT, order, 4, start=0, num_steps=2)
    part, _, _ = train_steps(part, SPLIT, order, 4, start=2, num_steps=4)
    assert_trees_equal(part.params, whole.params)
    assert train_steps._cache_size() <= before + 1  # of the state that a program has put on its device


@pytest.mark.parametrize("options", [{}, {"gradient_fn": AccumulatedGradient(3)}])
def test_an_epoch_records_each_example_under_the_parameters_of_its_step(options):
    state = make_state(dropout_rate=0.0, **options)
    order = np.asarray(epoch_order(state.key, 0, 22))
    trained, metrics = train_epoch(state, SPLIT, 4, record=True)
    plain, sums = train_epoch(state, SPLIT, 4)
    assert_trees_equal(trained, plain)
    assert sums.examples is None
    for step in range(6):
        chosen = order[4 * step : 4 * step + 4]
        logits = np.asarray(apply_model(state, state.params, SPLIT.image[chosen])[0], np.float64)
        label = SPLIT.label[chosen]
        true = logits[np.arange(len(chosen)), label]
        others = np.where(np.arange(10) == label[:, None], -np.inf, logits).max(axis=1)
        log_confidence = true - np.log(np.exp(logits).sum(axis=1))
        expected = (-log_confidence, logits.argmax(axis=1) == label, true - others, np.exp(log_confidence))
        found = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], metrics.examples)
        assert_trees_close(found, ExampleMetrics(*expected), rtol=1e-4, atol=1e-5)
        mask = np.arange(4) < len(chosen)
        chosen = np.concatenate([chosen, order[: 4 - len(chosen)]])
        state, _ = train_step(state, {"image": SPLIT.image[chosen], "label": SPLIT.label[chosen], "mask": mask})
    np.testing.assert_allclose(metrics.loss_sum, np.sum(metrics.examples.loss), rtol=1e-5)
    assert metrics.correct == np.sum(metrics.examples.correct)


def test_what_is_recorded_does_not_depend_on_chunks():
    state = make_state()
    _, whole = train_epoch(state, SPLIT, 4, record=True)
    part, first = train_epoch(state, SPLIT, 4, num_steps=2, record=True)
    order = np.asarray(epoch_order(state.key, 0, 22))
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(first.examples.loss)), np.sort(order[:8]))
    _, rest = train_epoch(part, SPLIT, 4, num_steps=4, record=first.examples)
    assert_trees_close(rest.examples, whole.examples)


def test_members_of_a_population_record_their_own():
    states = jax.vmap(lambda key: create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), key))(
        jax.random.split(jax.random.key(0), 2)
    )
    _, metrics = jax.vmap(lambda state: train_epoch(state, SPLIT, 4, record=True))(states)
    for member in range(2):
        _, alone = train_epoch(jax.tree.map(lambda leaf, member=member: leaf[member], states), SPLIT, 4, record=True)
        found = jax.tree.map(lambda leaf, member=member: leaf[member], metrics.examples)
        assert_trees_close(found, alone.examples, rtol=1e-4, atol=1e-5)


def test_the_loss_that_is_recorded_is_that_of_training():
    """With dropout, augmentation and a loss of its own: the values are those that the metrics sum up."""
    state = create_train_state(
        MLP(hidden_sizes=(8,), dropout_rate=0.5),
        optax.sgd(0.1),
        jax.random.key(3),
        augment=Augmentation(shift=2.0),
        loss_fn=VirtualAdversarialLoss(radius=1.0),
    )
    _, metrics = train_epoch(state, SPLIT, 5, record=True)
    np.testing.assert_allclose(metrics.loss_sum, np.sum(metrics.examples.loss), rtol=1e-5)
    assert metrics.correct == np.sum(metrics.examples.correct) == np.sum(metrics.examples.margin > 0)


def test_own_functions_without_values_of_examples_are_named():
    def gradient_fn(loss_fn, state, batch, key):
        grads, metrics, model_state = mean_gradient(loss_fn, state, batch, key)
        return grads, Metrics.zeros() + metrics, model_state

    message = "loss_fn and gradient_fn must return the values of each example in Metrics.examples, to record them"
    with pytest.raises(ValueError, match=message):
        train_epoch(make_state(gradient_fn=gradient_fn), SPLIT, 4, record=True)


def test_gaps_of_an_order_are_masked():
    state = make_state(dropout_rate=0.0)
    order = np.array([5, -1, 3, 2, -1, -1, -1, -1, 19], np.int32)
    total = Metrics.zeros().replace(examples=ExampleMetrics.empty(22))
    found, metrics, _ = loop_steps(state, SPLIT, order, 4, 0, 3, total=total, has_gaps=True)
    expected = state
    for chosen in ([5, 3, 2], [0], [19]):
        mask = np.array([chosen != [0]] * len(chosen))
        batch = {"image": SPLIT.image[chosen], "label": SPLIT.label[chosen], "mask": mask}
        expected, _ = train_step(expected, batch)
    assert_trees_close(found.params, expected.params)
    assert metrics.count == 4
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(metrics.examples.loss)), [2, 3, 5, 19])
