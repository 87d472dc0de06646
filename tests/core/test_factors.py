"""Factored gradients are those of one example at a time, and found where they should be."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_split

import mnist_jax.core.factors as core_factors
from mnist_jax import CNN, create_train_state, one_example_loss
from mnist_jax.core.factors import combine, example_gradients, parameter_names, select_parameters
from mnist_jax.core.layer_rules import Factors

IMAGE, LABEL = map(jnp.asarray, make_split(3))


class Convolutions(nn.Module):
    """Every option of a convolution, with a batch norm, and a layer norm that has no rule."""

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.max_pool(image, (2, 2), (2, 2))
        x = nn.Conv(3, (5, 5), strides=3, padding="SAME")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        options = {"kernel_dilation": (2, 1), "input_dilation": (1, 3), "padding": ((1, 2), (0, 1))}
        x = nn.Conv(4, (3, 2), strides=(1, 2), use_bias=False, **options)(x)
        return nn.Dense(10)(nn.LayerNorm()(x).reshape(x.shape[0], -1))


class Rows(nn.Module):
    """Examples on the second axis, and a circular convolution, which has no rule."""

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(2, (5,), padding="CIRCULAR")(image[..., 0]).transpose(1, 0, 2)
        x = nn.relu(nn.Dense(3)(x))
        return nn.Dense(10)(x.transpose(1, 0, 2).reshape(x.shape[1], -1))


class Merged(nn.Module):
    """The axis of the examples is merged with another one in the first layer, which is inside a transform too."""

    @nn.compact
    def __call__(self, image):
        x = nn.relu(nn.remat(nn.Dense)(4)(image.reshape(-1, 28)))
        return nn.Dense(10, name="Dense_0")(x.reshape(image.shape[0], -1))


class OwnStatistics(nn.Module):
    """A batch norm that takes the statistics of the batch in evaluation mode too: of one example here."""

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.BatchNorm(use_running_average=False)(image)
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


MODELS = {
    "convolutions": (Convolutions(), {"BatchNorm_0", "Conv_0", "Conv_1", "Dense_0"}),
    "rows": (Rows(), {"Dense_0", "Dense_1"}),
    "merged": (Merged(), {"Dense_0"}),
    "own statistics": (OwnStatistics(), set()),
    "cnn": (
        CNN(channels=(2, 3), kernel_sizes=(5, 3), pool_sizes=(3, 1), padding="same", dense_size=0, batch_norm=True),
        {"BatchNorm_0", "BatchNorm_1", "Conv_0", "Conv_1", "Dense_0"},
    ),
    "cnn in bfloat16": (
        CNN(channels=(2,), kernel_sizes=(5,), dense_size=4, dtype=jnp.bfloat16),
        {"Conv_0", "Dense_0", "Dense_1"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_they_are_the_gradients_of_one_example(name, monkeypatch):
    model, factored = MODELS[name]
    state = create_train_state(model, optax.sgd(0.1), jax.random.key(0))
    state = state.replace(model_state=jax.tree.map(lambda x: x * 1.2 + 0.1, state.model_state))
    formed_by_vmap = []
    original = core_factors._form_gradients
    monkeypatch.setattr(
        core_factors, "_form_gradients", lambda *args: formed_by_vmap.extend(args[-1]) or original(*args)
    )
    names = select_parameters(state.params, None)

    @jax.jit
    def form(params):
        gradients = example_gradients(state, params, IMAGE, LABEL, names)
        return {name: each.form() if isinstance(each, Factors) else each for name, each in gradients.items()}

    found = form(state.params)
    assert {name.rpartition("/")[0] for name in names if name not in formed_by_vmap} == factored
    gradient_of_each = jax.vmap(jax.grad(one_example_loss(state)), in_axes=(None, 0, 0))
    expected = jax.jit(gradient_of_each)(state.params, IMAGE, LABEL)
    half = getattr(model, "dtype", None) == jnp.bfloat16
    for name, each in zip(names, jax.tree.leaves(expected), strict=True):
        scale = float(jnp.abs(each).max()) + 1e-6
        difference = np.asarray(found[name].reshape(each.shape), np.float32) - each
        assert np.abs(difference).max() <= (0.05 if half else 1e-5) * scale, name


@pytest.mark.parametrize("num_positions", [1, 2, 50])
def test_norms_do_not_depend_on_the_form(num_positions):
    rng = np.random.default_rng(0)
    factors = Factors(*(jnp.asarray(rng.normal(size=(3, num_positions, size)), jnp.float32) for size in (12, 7)))
    expected = np.linalg.norm(np.asarray(factors.form()), axis=(1, 2)) ** 2
    np.testing.assert_allclose(factors.squared_norms(), expected, rtol=1e-5)


def test_parameters_are_selected_by_path():
    params = {"Dense_1": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}, "Dense_10": {"kernel": jnp.ones(3)}}
    assert parameter_names(params) == ["Dense_1/bias", "Dense_1/kernel", "Dense_10/kernel"]
    assert select_parameters(params, "Dense_1") == ("Dense_1/bias", "Dense_1/kernel")
    assert select_parameters(params, "Dense_1/kernel") == ("Dense_1/kernel",)
    assert select_parameters(params, lambda name: "10" in name) == ("Dense_10/kernel",)
    assert combine({"Dense_1/bias": 5}, params) == {
        "Dense_1": {"bias": 5, "kernel": None},
        "Dense_10": {"kernel": None},
    }
    for where, described in (("Dense", "'Dense'"), (lambda name: False, "the predicate")):
        with pytest.raises(ValueError) as error:
            select_parameters(params, where)
        assert str(error.value) == (
            f"where must select a parameter, got {described} for the parameters "
            "Dense_1/bias, Dense_1/kernel, Dense_10/kernel"
        )
