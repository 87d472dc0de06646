import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, make_split

from mnist_jax import (
    CNN,
    MLP,
    create_train_state,
    evaluate_dataset,
    loss_fn,
    one_example_gradient_norm,
    one_example_loss,
    one_example_margin,
    per_example_gradient_norms,
    per_example_losses,
    per_example_margins,
)

SPLIT = make_split(11)
SPLIT = SPLIT._replace(label=SPLIT.label % 6)  # which all models have


class OwnModel(nn.Module):
    """One dense layer used twice."""

    @nn.compact
    def __call__(self, image):
        layer = nn.Dense(784)
        return nn.Dense(10)(layer(nn.relu(layer(image.reshape(image.shape[0], -1)))))


class Nested(nn.Module):
    """Dense layers inside modules inside modules."""

    @nn.compact
    def __call__(self, image):
        x = MLP(hidden_sizes=(5,), dropout_rate=0.0, num_classes=9)(image)
        return MLP(hidden_sizes=(6,), dropout_rate=0.0, num_classes=7)(x)


class Tied(nn.Module):
    """A dense layer that is called once, and whose kernel is read elsewhere too."""

    @nn.compact
    def __call__(self, image):
        x = nn.Dense(6, use_bias=False)(image.reshape(image.shape[0], -1))
        layer = nn.Dense(6)
        y = layer(x)
        return y @ layer.variables["params"]["kernel"]


class Spread(nn.Module):
    """A dense layer over the pixels of each row."""

    @nn.compact
    def __call__(self, image):
        return nn.Dense(7)(nn.Dense(3)(image[..., 0]).reshape(image.shape[0], -1))


def apply_linear(params, image):
    return image.reshape(image.shape[0], -1) @ params


MODELS = {
    "mlp": MLP(hidden_sizes=(8,)),
    "linear": MLP(hidden_sizes=()),
    "mlp with batch norm": MLP(hidden_sizes=(8, 6), batch_norm=True),
    "cnn": CNN(channels=(2, 3), dense_size=5),
    "cnn without dense layer": CNN(channels=(2, 3), dense_size=0, batch_norm=True),
    "used twice": OwnModel(),
    "nested": Nested(),
    "tied": Tied(),
    "spread": Spread(),
    "functions": (lambda key: jax.random.normal(key, (784, 10)) / 28, apply_linear),
}


SLOW = ("cnn without dense layer", "spread")  # like "cnn" and "tied", which are in the quick tests


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
def state(request):
    return create_train_state(MODELS[request.param], optax.sgd(0.1), jax.random.key(0))


@pytest.mark.parametrize(
    ("one_example", "per_example"),
    [
        (one_example_loss, per_example_losses),
        (one_example_margin, per_example_margins),
        (one_example_gradient_norm, per_example_gradient_norms),
    ],
)
def test_all_at_once_is_one_by_one(state, one_example, per_example):
    function = jax.jit(one_example(state))
    expected = [function(state.params, SPLIT.image[index], SPLIT.label[index]) for index in range(11)]
    found = per_example(state, SPLIT, batch_size=4)  # 11 is no multiple of it
    assert (found.shape, found.dtype) == ((11,), jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_mean_of_the_gradients_is_the_gradient_of_the_batch(state):
    gradient_of_each = jax.vmap(jax.grad(one_example_loss(state)), in_axes=(None, 0, 0))
    gradients = jax.jit(gradient_of_each)(state.params, *SPLIT)
    batch_gradient, _ = jax.jit(jax.grad(loss_fn, has_aux=True))(state.params, state, SPLIT._asdict())
    assert_trees_close(jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients), batch_gradient, rtol=1e-4)
    squares = sum((np.asarray(leaf) ** 2).reshape(11, -1).sum(axis=1) for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(per_example_gradient_norms(state, SPLIT), np.sqrt(squares), rtol=1e-4)


def test_the_mean_of_the_losses_is_the_evaluated_loss(state):
    np.testing.assert_allclose(per_example_losses(state, SPLIT).mean(), evaluate_dataset(state, SPLIT).loss, rtol=1e-5)


def test_margins_are_logit_differences(state):
    logits = evaluate_dataset(state, SPLIT).logits
    expected = [row[y] - np.delete(row, y).max() for row, y in zip(logits, SPLIT.label, strict=True)]
    margins = per_example_margins(state, SPLIT)
    np.testing.assert_allclose(margins, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(margins > 0, logits.argmax(axis=1) == SPLIT.label)
