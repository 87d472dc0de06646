import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_split

from mnist_jax import MLP, Metrics, Split, create_train_state, epoch_order, train_epoch, train_step, train_steps

SPLIT = make_split(22)  # 6 steps of 4, the last one with 2 examples


def make_state(**options):
    return create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1, momentum=0.9), jax.random.key(3), **options)


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
