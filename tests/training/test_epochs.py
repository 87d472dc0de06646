import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_split
from flax import linen as nn

from mnist_jax import MLP, Metrics, NonFiniteLossError, Split, create_train_state, train_epoch
from mnist_jax.training.epochs import ChunkedEpoch

BATCH_SIZE = 4
SPLIT = make_split(42)  # 11 steps an epoch, the last one with 2 examples


def make_state(learning_rate=0.1, model=None):
    return create_train_state(model or MLP(hidden_sizes=(8,)), optax.sgd(learning_rate), jax.random.key(0))


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


class WithBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Dense(8)(image.reshape(image.shape[0], -1))
        return nn.Dense(10)(nn.BatchNorm(use_running_average=not train)(x))


@pytest.mark.parametrize("options", [{}, {"from_host": True, "longest": 11}, {"population": True}])
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


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_from_the_host_are_the_epoch(chunk):
    """Batch statistics show that even the examples that fill up the last batch are the same."""
    state = make_state(model=WithBatchNorm())
    on_device = ChunkedEpoch(state, SPLIT, BATCH_SIZE)
    from_host = ChunkedEpoch(state, SPLIT, BATCH_SIZE, from_host=True, longest=chunk)
    (expected, metrics, _), (found, total, sizes) = run(on_device, state), run(from_host, state)
    assert max(sizes) <= chunk
    assert_trees_close((found.params, found.model_state), (expected.params, expected.model_state))
    assert_trees_close(total, metrics)


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


@pytest.mark.parametrize("from_host", [False, True])
@pytest.mark.parametrize(("epoch", "example"), [(0, 17), (2, 41)])
@pytest.mark.parametrize("chunk", [1, 4])
def test_the_first_loss_that_is_not_finite_is_named(epoch, example, chunk, from_host):
    """One example is NaN; the batch it falls into is found by stepping through the epoch, too."""
    image = SPLIT.image.astype(np.float32) / 255
    image[example] = np.nan
    split = Split(image, SPLIT.label)
    state = make_state(1e-3).replace(step=jnp.int32(11 * epoch))
    stepped, bad = state, 0
    on_device = jax.device_put(split)
    while np.isfinite((result := train_epoch(stepped, on_device, BATCH_SIZE, num_steps=1))[1].loss_sum):
        stepped, bad = result[0], bad + 1
    epochs = ChunkedEpoch(state, split, BATCH_SIZE, from_host=from_host, longest=chunk)
    epochs._chunk_steps = chunk
    message = f"the loss became nan in epoch {epoch + 1}, step {11 * epoch + bad + 1}: stopped"
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        run(epochs, state)
    assert (caught.value.epoch, caught.value.step) == (epoch + 1, 11 * epoch + bad + 1)


def test_a_population_has_no_choice_of_data_and_sharding():
    with pytest.raises(ValueError, match="a population must have its data on the device and its batch unsharded"):
        ChunkedEpoch(make_state(), SPLIT, BATCH_SIZE, population=True, from_host=True)
