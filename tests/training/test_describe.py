import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from mnist_jax import TrainConfig, build_state, create_train_state, model_table

equinox = pytest.importorskip("equinox")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(784, 5, rngs=rngs)
        self.logits = nnx.Linear(5, 10, use_bias=False, rngs=rngs)

    def __call__(self, image):
        return self.logits(self.hidden(image.reshape(-1, 784)))


def affine(params, image):
    return image.reshape(-1, 784) @ params["w"] + params["b"][None]


MLP = equinox.nn.MLP(784, 10, width_size=5, depth=1, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"hidden_sizes": (100, 50)}, {"Dense_0": ("100", 78_500), "Dense_1": ("50", 5_050), "Dense_2": ("10", 510)}),
        (  # as they are called, not in alphabetical order
            {"hidden_sizes": (8,), "batch_norm": True},
            {"Dense_0": ("8", 784 * 8), "BatchNorm_0": ("8", 8 + 8), "Dense_1": ("10", 90)},
        ),
        (
            {"model": "cnn", "channels": (4, 6), "dense_size": 7},
            {
                "Conv_0": ("4 x 12 x 12", 5 * 5 * 4 + 4),
                "Conv_1": ("6 x 5 x 5", 3 * 3 * 4 * 6 + 6),
                "Dense_0": ("7", 6 * 5 * 5 * 7 + 7),
                "Dense_1": ("10", 7 * 10 + 10),
            },
        ),
    ],
)
def test_layers_of_a_linen_module_have_shapes_and_numbers(config, layers):
    header, *lines, total = model_table(build_state(TrainConfig(**config))).splitlines()
    assert header.split() == ["layer", "output", "parameters"]
    width = len(header)
    assert [line.split(maxsplit=1)[0] for line in lines] == [*layers]
    for line, (shape, count) in zip(lines, layers.values(), strict=True):
        assert line.split(maxsplit=1)[1].rsplit(maxsplit=1) == [shape, f"{count:,}"]
        assert len(line) == width
    assert total.split() == ["total", f"{sum(count for _, count in layers.values()):,}"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            lambda: Net(nnx.Rngs(0)),
            ["layer   parameters", "hidden       3,925", "logits          50", "total        3,975"],
        ),
        (
            lambda: equinox.nn.Sequential([equinox.nn.Lambda(jnp.ravel), MLP]),
            [
                "layer              parameters",
                "layers/1/layers/0       3,925",
                "layers/1/layers/1          60",
                "total                   3,985",
            ],
        ),
        (
            lambda: (lambda key: {"w": jnp.zeros((784, 10)), "b": jnp.zeros(10)}, affine),
            ["layer   parameters", "affine       7,850", "total        7,850"],
        ),
    ],
    ids=["NNX", "Equinox", "functions"],
)
def test_other_models_are_listed_by_their_parameters(model, expected):
    state = create_train_state(model(), optax.sgd(0.1), jax.random.key(0))
    assert model_table(state).splitlines() == expected
