import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_split

from mnist_jax import MLP, Metrics, NonFiniteLossError, Split, create_train_state, train_epoch
from mnist_jax.training.epochs import ChunkedEpoch

BATCH_SIZE = 4
SPLIT = make_split(42)  # 11 steps an epoch, the last one with 2 examples


def make_state(learning_rate=0.1):
    return create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(learning_rate), jax.random.key(0))


def copy(state):
    return jax.tree.map(jnp.copy, state)


def run(epochs, state, **options):
    """Runs on a copy, since the buffers of a state are given away."""
    first_step, total, sizes = int(state.step), Metrics.zeros(), []
    before = first_step
    for chunk in epochs.run(copy(state), first_step, **options):
        assert chunk.seconds > 0
        assert chunk.step == int(chunk.state.step)
        sizes.append(chunk.step - before)
        before, state, total = chunk.step, chunk.state, total + chunk.metrics
    return state, total, sizes


@pytest.fixture(autouse=True)
def chunks_keep_their_size(monkeypatch):
    monkeypatch.setattr("mnist_jax.training.epochs._CHUNK_S", 0.0)


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_chunks_of_any_length_are_the_epoch(chunk):
    state = make_state()
    expected, metrics = train_epoch(state, SPLIT, BATCH_SIZE, num_steps=11)
    epochs = ChunkedEpoch(state, SPLIT, BATCH_SIZE)
    assert epochs.steps_per_epoch == 11
    epochs._chunk_steps = chunk
    found, total, sizes = run(epochs, state)
    assert sizes[0] == min(chunk, 11)
    assert_trees_equal(found.params, expected.params)
    assert_trees_close(total, metrics)
    assert total.count == 42


@pytest.mark.parametrize("options", [{}, {"population": True}])
def test_the_sums_of_an_epoch_do_not_depend_on_its_chunks(options):
    state = make_state()
    if options.get("population"):
        state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    epochs = ChunkedEpoch(state, SPLIT, BATCH_SIZE, **options)

    def sums(*lengths):
        """Trains an epoch in as many calls."""
        now, step, total = copy(state), 0, None
        for epochs._chunk_steps in lengths:
            (chunk,) = epochs.run(now, step, num_steps=epochs._chunk_steps, total=total)
            now, step, total = chunk.state, chunk.step, chunk.total
        return total

    whole = sums(11)
    np.testing.assert_array_equal(whole.count, 42)
    for lengths in ((1, 10), (4, 4, 2, 1), (3, 1, 1, 2, 1, 3), (1,) * 11):
        assert_trees_equal(sums(*lengths), whole)
    epochs._chunk_steps = 4
    *_, last = epochs.run(copy(state), 0)
    assert_trees_equal(last.total, whole)


def test_it_can_start_in_the_middle_and_never_passes_the_end():
    state = make_state()
    epochs = ChunkedEpoch(state, SPLIT, BATCH_SIZE)
    whole, _, _ = run(epochs, state)
    half, _, _ = run(epochs, state, num_steps=5)
    assert half.step == 5
    rest, metrics, _ = run(epochs, half, num_steps=100)
    assert rest.step == 11
    assert_trees_equal(rest.params, whole.params)
    assert metrics.count == 42 - 5 * BATCH_SIZE


def test_a_state_is_given_away():
    state = make_state()
    list(ChunkedEpoch(state, SPLIT, BATCH_SIZE).run(state, 0))
    assert state.params["Dense_0"]["kernel"].is_deleted()


@pytest.mark.parametrize(("epoch", "example"), [(0, 17), (2, 41)])
@pytest.mark.parametrize("chunk", [1, 4])
def test_the_first_loss_that_is_not_finite_is_named(epoch, example, chunk):
    """One example is NaN; the batch it falls into is found by stepping through the epoch, too."""
    image = SPLIT.image.astype(np.float32) / 255
    image[example] = np.nan
    split = Split(image, SPLIT.label)
    state = make_state(1e-3).replace(step=jnp.int32(11 * epoch))
    stepped, bad = state, 0
    on_device = jax.device_put(split)
    while np.isfinite((result := train_epoch(stepped, on_device, BATCH_SIZE, num_steps=1))[1].loss_sum):
        stepped, bad = result[0], bad + 1
    epochs = ChunkedEpoch(state, split, BATCH_SIZE)
    epochs._chunk_steps = chunk
    message = f"the loss became nan in epoch {epoch + 1}, step {11 * epoch + bad + 1}: stopped"
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        run(epochs, state)
    assert (caught.value.epoch, caught.value.step) == (epoch + 1, 11 * epoch + bad + 1)


def test_a_population_has_no_sharding():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ValueError, match="a population must have its batch unsharded"):
        ChunkedEpoch(make_state(), SPLIT, BATCH_SIZE, population=True, sharding=sharding)


@pytest.mark.parametrize("options", [{}, {"population": True}])
def test_chunks_record_each_example(options):
    state = make_state()
    _, metrics = train_epoch(state, SPLIT, BATCH_SIZE, record=True)
    if options.get("population"):
        state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    epochs = ChunkedEpoch(state, SPLIT, BATCH_SIZE, record=True, **options)
    epochs._chunk_steps = 4
    (first,) = epochs.run(copy(state), 0, num_steps=4)
    *_, last = epochs.run(first.state, 4, total=first.total, examples=first.examples)
    assert last.total.examples is last.metrics.examples is None
    for leaf, expected in zip(jax.tree.leaves(last.examples), jax.tree.leaves(metrics.examples), strict=True):
        for found in leaf if options.get("population") else [leaf]:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_order_of_its_own_may_have_gaps():
    @functools.partial(jax.jit, static_argnames="num_examples")
    def every_third(key, epoch, num_examples):
        index = jnp.arange(num_examples // 2)
        return jnp.where((index + epoch) % 3 == 0, index, -1)

    state = make_state()
    epochs = ChunkedEpoch(state, SPLIT, BATCH_SIZE, order_fn=every_third, has_gaps=True, record=True)
    assert epochs.steps_per_epoch == 6
    for epoch in (0, 1):
        *_, last = epochs.run(copy(state), 6 * epoch)
        seen = np.flatnonzero(np.isfinite(last.examples.loss))
        np.testing.assert_array_equal(seen, [index for index in range(21) if (index + epoch) % 3 == 0])
        assert last.total.count == len(seen)
