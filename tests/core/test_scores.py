import jax
import numpy as np
import optax
import pytest
from conftest import make_split

from mnist_jax import (
    MLP,
    create_train_state,
    el2n,
    grand,
    memorisation,
    one_example_loss,
    per_example_gradient_norms,
    subset_influence,
)

RNG = np.random.default_rng(0)
MASK = RNG.random((6, 9)) < 0.5
MASK[:, 0], MASK[:, 1] = True, False  # in all subsets, and in none
CORRECT = RNG.random((6, 4)) < 0.5


def mean(values):
    return sum(values) / len(values) if values else float("nan")


def influence_by_loops(correct, mask, example, other):
    inside = [float(each[other]) for each, own in zip(correct, mask, strict=True) if own[example]]
    outside = [float(each[other]) for each, own in zip(correct, mask, strict=True) if not own[example]]
    return mean(inside) - mean(outside)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("correct", [CORRECT, RNG.random((6, 4)).astype(np.float32)], ids=["bool", "probability"])
def test_subset_influence_is_its_definition(correct, jit):
    found = (jax.jit(subset_influence) if jit else subset_influence)(correct, MASK)
    expected = [[influence_by_loops(correct, MASK, i, t) for t in range(4)] for i in range(9)]
    assert (found.shape, found.dtype) == ((9, 4), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.isnan(found).all(axis=1).tolist() == [True, True, *[False] * 7]


def test_memorisation_is_the_influence_of_an_example_on_itself():
    correct = RNG.random((6, 9)) < 0.5
    found = memorisation(correct, MASK)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [influence_by_loops(correct, MASK, i, i) for i in range(9)], atol=1e-6)
    np.testing.assert_allclose(found, np.diagonal(subset_influence(correct, MASK)), atol=1e-6)


def test_el2n_is_its_definition():
    logits, label = (2 * RNG.normal(size=(3, 5, 4))).astype(np.float32), np.array([0, 3, 1, 2, 0])
    expected = np.zeros(5)
    for member in np.float64(logits):
        for i, row in enumerate(member):
            error = np.exp(row) / np.exp(row).sum() - np.eye(4)[label[i]]
            expected[i] += np.sqrt((error**2).sum()) / 3
    np.testing.assert_allclose(el2n(logits, label), expected, rtol=1e-5)


def linear_model():
    def init(key):
        return {"kernel": jax.random.normal(key, (784, 10)) / 28, "bias": np.zeros(10, np.float32)}

    def apply(params, image):
        return image.reshape(-1, 784) @ params["kernel"] + params["bias"][None]

    return init, apply


@pytest.mark.parametrize("model", [MLP(hidden_sizes=(6,)), linear_model()], ids=["linen", "functions"])
def test_grand_is_the_mean_norm_of_the_members(model):
    keys, split = jax.random.split(jax.random.key(0), 3), make_split(7)
    states = jax.vmap(lambda key: create_train_state(model, optax.sgd(0.1), key))(keys)
    expected = 0
    for index in range(3):
        state = jax.tree.map(lambda leaf, index=index: leaf[index], states)
        gradients = jax.vmap(jax.grad(one_example_loss(state)), in_axes=(None, 0, 0))(
            state.params, split.image / np.float32(255), split.label
        )
        norms = jax.vmap(optax.tree.norm)(gradients)
        np.testing.assert_allclose(per_example_gradient_norms(state, split), norms, rtol=1e-4)
        expected += np.asarray(norms) / 3
    np.testing.assert_allclose(grand(states, split), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (el2n, (np.zeros((2, 5, 10)), np.zeros(4, int)), r"got shapes \[2, 5, 10\] and \[4\]"),
        (el2n, (np.zeros((5, 10)), np.zeros(5, int)), r"expected logits float\[M, N, K\] and label int\[N\], got "),
        (memorisation, (CORRECT, MASK), r"correct and mask must have the same shape, got \[6, 4\] and \[6, 9\]"),
        (subset_influence, (CORRECT[:5], MASK), r"of the same members, got bool\[5, 4\] and bool\[6, 9\]"),
        (subset_influence, (CORRECT, np.float32(MASK)), r"mask bool\[M, N\] of the same members, got .* and float32"),
    ],
)
def test_other_shapes_are_refused(function, args, message):
    with pytest.raises(ValueError, match=message):
        function(*args)
