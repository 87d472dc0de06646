"""One model written in five ways, what else is recognised, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, make_split
from flax import linen as nn
from flax import nnx

from mnist_jax import create_train_state, eval_step, evaluate_dataset, load_dataset, train_epoch, train_step
from mnist_jax.models.adapters import adapt_model

equinox = pytest.importorskip("equinox")
KEY = jax.random.key(0)
H = 32


def dense(key, inputs, outputs):
    return {"kernel": jax.nn.initializers.lecun_normal()(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.Dense(10)(nn.relu(nn.Dense(H)(image.reshape(image.shape[0], -1))))


class Wrapped(nn.Module):
    """Passes on what it does not know."""

    @nn.compact
    def __call__(self, *args, **kwargs):
        return Linen()(*args, **kwargs)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(784, H, rngs=rngs), nnx.Linear(H, 10, rngs=rngs)

    def __call__(self, image):
        return self.second(nnx.relu(self.first(image.reshape(image.shape[0], -1))))


class Equinox(equinox.Module):
    layers: list

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.layers = [equinox.nn.Linear(784, H, key=first), equinox.nn.Linear(H, 10, key=second)]

    def __call__(self, image):
        return self.layers[1](jax.nn.relu(self.layers[0](image.reshape(-1))))


def init(key):
    first, second = jax.random.split(key)
    return [dense(first, 784, H), dense(second, H, 10)]


def apply(params, image):
    x = image.reshape(image.shape[0], -1)
    first, second = params
    hidden = jax.nn.relu(x @ first["kernel"] + first["bias"][None])
    return hidden @ second["kernel"] + second["bias"][None]


WAYS = {
    "linen": Linen(),
    "wrapped linen": Wrapped(),
    "nnx": Nnx(nnx.Rngs(0)),
    "equinox": Equinox(KEY),
    "functions": (init, apply),
}


@pytest.mark.uses_adam
@pytest.mark.parametrize("model", WAYS.values(), ids=WAYS.keys())
def test_the_same_network_in_each_way_learns_the_same(model):
    dataset = load_dataset("digits")
    state = create_train_state(model, optax.adam(3e-3), KEY, ema_decay=0.9)
    for _ in range(5):
        state, metrics = train_epoch(state, dataset.train, 50)
    assert metrics.count == 1350
    assert 0.93 < evaluate_dataset(state, dataset.test).accuracy < 0.99
    assert state.recipe.num_classes == 10


def test_logits_are_those_of_the_model_itself():
    image = make_split(5).image / np.float32(255)
    params = jax.tree.map(jnp.asarray, init(KEY))
    functions, _ = adapt_model((init, apply))
    np.testing.assert_array_equal(functions.apply(params, {}, image)[0], apply(params, image))
    for model, expected in (
        (WAYS["nnx"], WAYS["nnx"](image)),
        (WAYS["equinox"], jax.vmap(WAYS["equinox"])(image)),
    ):
        adapter, initialise = adapt_model(model)
        np.testing.assert_allclose(adapter.apply(*initialise(KEY), image)[0], expected, rtol=1e-5, atol=1e-6)


def test_an_instance_keeps_its_parameters_and_is_left_alone():
    model = Nnx(nnx.Rngs(3))
    kernel = np.asarray(model.first.kernel[...])
    state = create_train_state(model, optax.sgd(0.5), KEY)
    np.testing.assert_array_equal(state.params["first"]["kernel"], kernel)
    train_step(state, make_split(4)._asdict())
    np.testing.assert_array_equal(model.first.kernel[...], kernel)
    own = WAYS["equinox"].layers[0].weight
    np.testing.assert_array_equal(create_train_state(WAYS["equinox"], optax.sgd(0.5), KEY).params.layers[0].weight, own)


class NnxWithModes(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.dropout = nnx.BatchNorm(784, momentum=0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(784, 10, rngs=rngs)

    def __call__(self, image):
        return self.last(self.dropout(self.norm(image.reshape(image.shape[0], -1))))


class TrainArgument(nn.Module):
    @nn.compact
    def __call__(self, image, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(image.reshape(image.shape[0], -1))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


class DeterministicArgument(nn.Module):
    @nn.compact
    def __call__(self, image, *, deterministic=True):
        return TrainArgument()(image, not deterministic)


class UseRunningAverageArgument(nn.Module):
    @nn.compact
    def __call__(self, image, use_running_average=False):
        return TrainArgument()(image, train=not use_running_average)


class PassingOn(nn.Module):
    @nn.compact
    def __call__(self, *args, **kwargs):
        return DeterministicArgument()(*args, **kwargs)


class OwnWord(nn.Module):
    @nn.compact
    def __call__(self, image, learning=True):
        return TrainArgument()(image, train=learning)


@pytest.mark.parametrize(
    ("model", "options", "argument"),
    [
        (TrainArgument(), {}, "train"),
        (DeterministicArgument(), {}, "deterministic"),
        (UseRunningAverageArgument(), {}, "use_running_average"),
        (PassingOn(), {}, "deterministic"),
        (OwnWord(), {"train_argument": "learning"}, "learning"),
        (NnxWithModes(nnx.Rngs(0)), {}, None),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict | str | None) else None,
)
def test_dropout_and_batch_norm_are_told_the_mode(model, options, argument):
    batch = make_split(8)._asdict()
    state = create_train_state(model, optax.sgd(0.0), KEY, **options)
    if argument is not None:
        assert state.recipe.model.train_argument == argument
    assert eval_step(state, batch).loss_sum == eval_step(state, batch).loss_sum
    after, first = train_step(state, batch)
    _, second = train_step(after, batch)
    assert first.loss_sum != second.loss_sum  # another dropout
    assert_trees_close(train_step(state, batch)[1], first, rtol=0)
    means = [leaf for leaf in jax.tree.leaves(after.model_state) if leaf.shape == (784,)]
    x = batch["image"].reshape(8, -1) / np.float32(255)
    assert any(np.allclose(leaf, 0.5 * x.mean(axis=0), rtol=1e-4, atol=1e-6) for leaf in means)


class WithoutArgument(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.Dense(10)(nn.Dropout(0.5)(image.reshape(image.shape[0], -1)))


class AlwaysNormed(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.Dense(10)(nn.BatchNorm(use_running_average=False)(image.reshape(image.shape[0], -1)))


class EquinoxDropout(equinox.Module):
    dropout: equinox.nn.Dropout

    def __call__(self, image):
        return self.dropout(image.reshape(-1))[:10]


class EquinoxBatchNorm(equinox.Module):
    norm: equinox.nn.BatchNorm

    def __call__(self, image):
        return image.reshape(-1)[:10]


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            WithoutArgument(),
            ValueError,
            "WithoutArgument has Dropout_0 .Dropout., and its __call__ takes none of",
        ),
        (AlwaysNormed(), ValueError, "has BatchNorm_0 .BatchNorm., .*or name yours with train_argument="),
        (nnx.bridge.to_linen(NnxWithModes), ValueError, "model ToLinen has .*, and its __call__ takes none of train"),
        (EquinoxDropout(equinox.nn.Dropout(0.5)), ValueError, "has Dropout, and its __call__ takes no key: add"),
        (
            EquinoxBatchNorm(equinox.nn.BatchNorm(784, "batch", mode="batch")),
            ValueError,
            "has a layer with state, such as BatchNorm, which is not supported",
        ),
        (
            (init, lambda params, image: image),
            ValueError,
            r"model must map images \[2, 28, 28, 1\] to logits \[2, K\], got \[2, 28, 28, 1\]",
        ),
        ("resnet", TypeError, "model must be a Flax Linen module, a Flax NNX or Equinox module instance, or a pair"),
        (nn.Dense, TypeError, "model must be a Flax Linen module, .* got type"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_trained_is_refused_with_the_reason(model, error, message):
    with pytest.raises(error, match=message):
        create_train_state(model, optax.sgd(0.1), KEY)


def test_train_argument_must_exist_and_is_for_linen():
    with pytest.raises(ValueError, match="train_argument must be an argument of Linen.__call__, got 'mode'"):
        create_train_state(Linen(), optax.sgd(0.1), KEY, train_argument="mode")
    with pytest.raises(TypeError, match="train_argument needs a Linen module, got Nnx"):
        create_train_state(WAYS["nnx"], optax.sgd(0.1), KEY, train_argument="train")


def test_any_number_of_classes_and_any_image_shape():
    class Colour(nn.Module):
        @nn.compact
        def __call__(self, image):
            return nn.Dense(4)(nn.Conv(2, (3, 3))(image).mean(axis=(1, 2)))

    state = create_train_state(Colour(), optax.sgd(0.1), KEY, image_shape=(8, 6, 3))
    image = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    state, metrics = train_step(state, {"image": image, "label": np.array([0, 1, 2, 3, 3])})
    assert (state.recipe.num_classes, int(metrics.count)) == (4, 5)
    with pytest.raises(ValueError, match=r"image must be \[B, 8, 6, 3\], got \[5, 28, 28, 1\]"):
        train_step(state, {"image": make_split(5).image, "label": np.zeros(5, np.int32)})


def test_models_made_alike_share_what_was_compiled():
    batch = make_split(6)._asdict()
    tx = optax.sgd(0.1)
    for make in (lambda: Nnx(nnx.Rngs(0)), lambda: Equinox(KEY), Linen):
        train_step(create_train_state(make(), tx, KEY), batch)
        before = train_step._cache_size()
        train_step(create_train_state(make(), tx, KEY), batch)
        assert train_step._cache_size() == before
