import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_split

from mnist_jax import MLP, Metrics, NonFiniteLossError, Split, create_train_state, train_epoch, train_step
from mnist_jax.training.epochs import EpochInPieces

BATCH_SIZE = 4
SPLIT = make_split(42)  # 11 steps an epoch, the last one with 2 examples


def make_state(learning_rate=0.1):
    return create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(learning_rate), jax.random.key(0))


def run(program, state, num_steps):
    total, sizes = Metrics.zeros(), []
    for after_piece, metrics, seconds in program.run(state, num_steps):
        assert seconds > 0
        sizes.append(int(after_piece.step - state.step))
        state, total = after_piece, total + metrics
    return state, total, sizes


@pytest.mark.parametrize("piece", [1, 4, 11, 100])
def test_pieces_of_any_length_are_the_epoch(piece, monkeypatch):
    monkeypatch.setattr("mnist_jax.training.epochs._PIECE_S", 0.0)  # so that the size stays what it is set to
    state = make_state()
    expected, metrics = train_epoch(state, SPLIT, BATCH_SIZE, num_steps=11)
    program = EpochInPieces(state, SPLIT, BATCH_SIZE)
    assert program.steps_per_epoch == 11
    program._piece = piece
    found, total, sizes = run(program, state, 11)
    assert sizes[0] == min(piece, 11)
    assert_trees_equal(found.params, expected.params)
    assert_trees_close(total, metrics)
    assert total.count == 42


def test_it_can_start_in_the_middle_of_an_epoch():
    state = make_state()
    program = EpochInPieces(state, SPLIT, BATCH_SIZE)
    whole, _, _ = run(program, state, 11)
    half, _, _ = run(program, state, 5)
    rest, metrics, _ = run(program, half, 6)
    assert_trees_equal(rest.params, whole.params)
    assert metrics.count == 42 - 5 * BATCH_SIZE


@pytest.mark.parametrize(("epoch", "example"), [(0, 17), (2, 23), (2, 41)])
@pytest.mark.parametrize("piece", [1, 4, 11])
def test_the_first_loss_that_is_not_finite_is_found(epoch, example, piece):
    """One example is NaN; the batch it falls into is found by stepping through the epoch, too."""
    image = SPLIT.image.astype(np.float32) / 255
    image[example] = np.nan
    split = Split(image, SPLIT.label)
    state = make_state(1e-3).replace(step=jnp.int32(11 * epoch))
    stepped, bad = state, 0
    while np.isfinite((result := train_epoch(stepped, split, BATCH_SIZE, num_steps=1))[1].loss_sum):
        stepped, bad = result[0], bad + 1
    program = EpochInPieces(state, split, BATCH_SIZE)
    program._piece = piece
    message = f"the loss became nan in epoch {epoch + 1}, step {11 * epoch + bad + 1}: stopped"
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        run(program, state, 11)
    assert (caught.value.epoch, caught.value.step) == (epoch + 1, 11 * epoch + bad + 1)


def test_all_pieces_share_one_program():
    state = make_state()
    program = EpochInPieces(state, SPLIT, BATCH_SIZE)
    before = train_epoch._cache_size(), train_step._cache_size()
    for num_steps in (1, 2, 5):
        run(program, state, num_steps)
    assert (train_epoch._cache_size(), train_step._cache_size()) == before
