import jax
import numpy as np
import optax
import pytest
from conftest import make_split

from mnist_jax import MLP, VirtualAdversarialLoss, create_train_state, evaluate_dataset, loss_fn
from mnist_jax.core.apply import apply_model
from mnist_jax.core.losses import _PROBE, _unit, adversarial_divergences

KEY = jax.random.key(3)
RADIUS = 1.5


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def divergence(p, q):
    return (p * (np.log(p) - np.log(q))).sum(axis=-1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_state(hidden_sizes=(), **options):
    model = MLP(hidden_sizes=hidden_sizes, dropout_rate=options.pop("dropout_rate", 0.0))
    return create_train_state(model, optax.sgd(0.1), KEY, **{"loss_fn": VirtualAdversarialLoss(RADIUS), **options})


def test_losses_of_a_linear_model_are_those_of_numpy():
    state, image = make_state(), np.random.default_rng(0).random((5, 28, 28, 1), np.float32)
    weights = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    x = image.reshape(5, -1).astype(np.float64)
    p = softmax(x @ weights)
    start = np.asarray(jax.random.normal(jax.random.fold_in(KEY, 2), image.shape)).reshape(5, -1)
    moved = softmax((x + _PROBE * unit(start)) @ weights)
    direction = unit((moved - p) @ weights.T)  # the gradient of the divergence by the perturbation
    expected = divergence(p, softmax((x + RADIUS * direction) @ weights))
    found = adversarial_divergences(state, state.params, image, x.astype(np.float32) @ np.float32(weights), KEY, RADIUS)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    random = divergence(p, softmax((x + RADIUS * unit(start)) @ weights))
    assert (expected > 3 * random).all()


def test_the_gradient_leaves_target_and_perturbation_as_they_are():
    """Against finite differences of the loss with both of them held fixed."""
    state, image = make_state(), np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    logits, _ = apply_model(state, state.params, image)
    kernel = state.params["Dense_0"]["kernel"]
    tilt = np.random.default_rng(1).normal(size=kernel.shape).astype(np.float32)

    def total(params):
        return adversarial_divergences(state, params, image, apply_model(state, params, image)[0], KEY, RADIUS).sum()

    slope = (jax.grad(total)(state.params)["Dense_0"]["kernel"] * tilt).sum()
    weights, x = np.asarray(kernel, np.float64), image.reshape(3, -1).astype(np.float64)
    p = softmax(np.asarray(logits, np.float64))
    start = np.asarray(jax.random.normal(jax.random.fold_in(KEY, 2), image.shape)).reshape(3, -1)
    direction = unit((softmax((x + _PROBE * unit(start)) @ weights) - p) @ weights.T)
    ends = [divergence(p, softmax((x + RADIUS * direction) @ (weights + step * tilt))).sum() for step in (1e-5, -1e-5)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=2e-3)


def test_the_training_loss_has_them_and_evaluation_has_not():
    split = make_split(4)
    batch = {"image": split.image, "label": split.label}
    state = make_state((6,), dropout_rate=0.5)
    plain = make_state((6,), dropout_rate=0.5, loss_fn=None)
    image = batch["image"] / np.float32(255)
    logits, _ = apply_model(state, state.params, image, KEY)
    extra = adversarial_divergences(state, state.params, image, logits, KEY, RADIUS).mean()
    np.testing.assert_allclose(
        loss_fn(state.params, state, batch, KEY)[0], loss_fn(plain.params, plain, batch, KEY)[0] + extra, rtol=1e-6
    )
    assert evaluate_dataset(state, split).loss == evaluate_dataset(plain, split).loss


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_direction_has_length_one_however_small_the_gradient(scale):
    x = np.random.default_rng(0).normal(size=(3, 28, 28, 1)).astype(np.float32)
    expected = x / np.linalg.norm(x.reshape(3, -1), axis=1).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(_unit(x * np.float32(scale)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_flat_prediction_has_no_direction_and_no_loss(scale):
    state = make_state()
    params = jax.tree.map(lambda leaf: leaf * 0, state.params)
    image = np.full((2, 28, 28, 1), scale, np.float32)
    found = adversarial_divergences(state, params, image, np.zeros((2, 10), np.float32), KEY, RADIUS)
    np.testing.assert_array_equal(found, 0)
