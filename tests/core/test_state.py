import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_equal
from flax import linen as nn

from mnist_jax import CNN, MLP, AccumulatedGradient, create_train_state
from mnist_jax.core.apply import apply_model

MODEL = MLP(hidden_sizes=(4,))
TX = optax.sgd(0.1, momentum=0.9)


def test_the_same_key_gives_the_same_state_and_another_key_another():
    one = create_train_state(MODEL, TX, jax.random.key(1))
    assert_trees_equal(one, create_train_state(MODEL, TX, jax.random.key(1)))
    other = create_train_state(MODEL, TX, jax.random.key(2))
    assert not np.array_equal(one.params["Dense_0"]["kernel"], other.params["Dense_0"]["kernel"])


def test_it_begins_at_step_0_with_what_the_optimizer_begins_with():
    state = create_train_state(MODEL, TX, jax.random.key(0))
    assert (state.step, state.step.dtype) == (0, jnp.int32)
    assert_trees_equal(state.opt_state, TX.init(state.params))
    assert state.ema_params is None
    assert state.eval_params is state.params
    averaged = create_train_state(MODEL, TX, jax.random.key(0), ema_decay=0.9)
    assert_trees_equal(averaged.ema_params, averaged.params)
    assert averaged.eval_params is averaged.ema_params


def test_many_at_once_are_each_by_itself():
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda key: create_train_state(MODEL, TX, key))(keys)
    for index in range(3):
        alone = create_train_state(MODEL, TX, keys[index])
        assert_trees_equal(jax.tree.map(lambda leaf: leaf[index], together), alone)  # noqa: B023


@pytest.mark.uses_adam
@pytest.mark.parametrize("model", [MLP(), CNN()])
def test_compiled_cheaply_as_fit_does_it_is_the_same(model):
    tx = optax.adam(1e-3)

    def create():
        return create_train_state(model, tx, jax.random.key(3), ema_decay=0.9)

    lowered = jax.jit(create).lower()
    cheap, default = (lowered.compile({"xla_backend_optimization_level": level})() for level in ("1", "3"))
    assert_trees_equal(cheap, default)


def test_it_is_frozen_and_its_leaves_are_arrays():
    state = create_train_state(MODEL, TX, jax.random.key(0), ema_decay=0.9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.step = 1
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_lists_are_taken_by_our_models_and_named_in_others():
    state = create_train_state(MLP(hidden_sizes=[4]), TX, jax.random.key(0))
    assert state.recipe.model.module == MODEL

    class Other(nn.Module):
        sizes: list

        def __call__(self, image):
            return image

    with pytest.raises(TypeError, match="model must have hashable attributes, tuples rather than lists, got Other"):
        create_train_state(Other([1]), TX, jax.random.key(0))


@pytest.mark.parametrize("shape", [(2, 28, 28), (2, 784), (2, 28, 28, 3)])
def test_images_of_another_shape_are_refused(shape):
    state = create_train_state(MODEL, TX, jax.random.key(0))
    with pytest.raises(ValueError, match=r"image must be \[B, 28, 28, 1\], got \[2, "):
        apply_model(state, state.params, jnp.zeros(shape))


def test_a_microbatch_has_an_example():
    with pytest.raises(ValueError, match="microbatch_size must be at least 1, got 0"):
        AccumulatedGradient(microbatch_size=0)
