import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_split

from mnist_jax import CNN, MLP, apply_model, create_train_state, saliency

MODELS = {
    "mlp": MLP(hidden_sizes=(8,)),
    "functions": (
        lambda key: jax.random.normal(key, (784, 10)) / 28,
        lambda params, image: image.reshape(-1, 784) @ params,
    ),
}
SPLIT = make_split(5)


def make_state(model, **options):
    return create_train_state(model, optax.sgd(0.1), jax.random.key(0), **options)


@pytest.mark.parametrize("model", [*MODELS, pytest.param("cnn", marks=pytest.mark.slow)])
def test_maps_are_finite_differences(model):
    state = make_state(MODELS.get(model) or CNN(channels=(2, 3), dense_size=5))
    image = SPLIT.image.astype(np.float32) / 255
    pixels, step = [(0, 0), (9, 20), (14, 14)], 1e-3
    shifted = np.repeat(image[None], 7, axis=0)
    for index, (row, column) in enumerate(pixels):
        shifted[index, :, row, column] += step
        shifted[index + 3, :, row, column] -= step
    logits, _ = jax.jit(apply_model)(state, state.eval_params, shifted.reshape(35, 28, 28, 1))
    logits = np.asarray(logits, np.float64).reshape(7, 5, 10)
    for label, chosen in ((None, logits[6].argmax(axis=1)), (SPLIT.label, SPLIT.label)):
        maps = saliency(state, image, label)
        assert (maps.shape, maps.dtype) == ((5, 28, 28), jnp.float32)
        score = logits[:6, np.arange(5), chosen]
        expected = (score[:3] - score[3:]) / (2 * step)
        found = [maps[:, row, column] for row, column in pixels]
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=5e-4)
        assert np.abs(expected).max() > 0.02


def test_uint8_images_are_scaled_and_the_average_is_used():
    state = make_state(MODELS["mlp"], ema_decay=0.9)
    maps = saliency(state, SPLIT.image)
    np.testing.assert_allclose(maps, saliency(state, SPLIT.image.astype(np.float32) / 255), rtol=1e-5, atol=1e-7)
    doubled = state.replace(ema_params=jax.tree.map(lambda leaf: 2 * leaf, state.params))
    assert not np.allclose(saliency(doubled, SPLIT.image), maps)
    np.testing.assert_array_equal(saliency(state.replace(params=doubled.ema_params), SPLIT.image), maps)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (SPLIT.image[0], None, r"image must be \[B, 28, 28, 1\], got \[28, 28, 1\]"),
        (SPLIT.image.astype(np.int32), None, r"image must be uint8, or float in \[0, 1\], got int32"),
        (np.full((1, 28, 28, 1), np.nan, np.float32), None, "image must be finite, got NaN or infinity in example 0"),
        (SPLIT.image, SPLIT.label[:4], r"label must be int\[5\], got int32\[4\]"),
        (SPLIT.image, np.ones(5, np.float32), r"label must be int\[5\], got float32\[5\]"),
        (SPLIT.image, np.full(5, 10), r"label must be in \[0, 10\), the classes of the model, got 10"),
    ],
)
def test_bad_arguments_are_named(image, label, message):
    with pytest.raises(ValueError, match=rf"^{message}(\n|$)"):
        saliency(make_state(MODELS["mlp"]), image, label)
