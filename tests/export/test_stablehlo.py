import hashlib
import random

import jax
import numpy as np
import pytest
from conftest import make_split, make_state
from readers import by_jax, logits_of

from mnist_jax import InputError, TrainConfig, build_state
from mnist_jax.export.stablehlo import load_stablehlo, to_stablehlo


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_stablehlo_needs_nothing_but_jax(run_python, tmp_path, model):
    config = TrainConfig(model=model, **({"hidden_sizes": (64, 32)} if model == "mlp" else {}))
    state, path = make_state(config), tmp_path / "model.stablehlo"
    path.write_bytes(to_stablehlo(config, state))
    image = make_split(20).image
    np.save(tmp_path / "image.npy", image)
    code = f"""
import sys
import jax, jax.export, numpy
content = open({str(path)!r}, "rb").read()
logits = jax.export.deserialize(bytearray(content)).call(numpy.load({str(tmp_path / "image.npy")!r}))
numpy.save({str(tmp_path / "logits.npy")!r}, logits)
print(any(name.startswith(("mnist_jax", "flax")) for name in sys.modules))
"""
    done = run_python("-c", code)
    assert done.stdout == "False\n", done.stderr
    wanted = logits_of(state, image)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), wanted, rtol=1e-5, atol=1e-5)


def test_stablehlo_of_a_bfloat16_run(tmp_path):
    config = TrainConfig(model="cnn", dtype="bfloat16")
    state = make_state(config)
    (tmp_path / "model").write_bytes(to_stablehlo(config, state))
    image = make_split(8).image
    np.testing.assert_allclose(by_jax(tmp_path / "model", image), logits_of(state, image), rtol=0.02, atol=0.02)


def test_stablehlo_is_for_several_platforms():
    config = TrainConfig(model="cnn")
    exported = jax.export.deserialize(bytearray(to_stablehlo(config, build_state(config))))
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.fixture(scope="module")
def small():
    config = TrainConfig(hidden_sizes=(2,), batch_norm=True)
    return config, make_state(config)


def test_a_damaged_stablehlo_file_is_refused_before_jax_sees_it(tmp_path, small):
    content, path = to_stablehlo(*small), tmp_path / "model.stablehlo"
    path.write_bytes(content)
    image = make_split(3).image
    np.testing.assert_allclose(load_stablehlo(path)(image), logits_of(small[1], image), rtol=1e-5, atol=1e-5)
    rng = random.Random(0)
    damaged = [content[: rng.randrange(len(content))] for _ in range(100)]
    for _ in range(200):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    for each in [b"", b"{}", b"x" * 1000, content + b"\n", *damaged]:
        path.write_bytes(each)
        with pytest.raises(InputError, match=f"^{path}: expected a model exported as stablehlo, got something else"):
            load_stablehlo(path)


def seal(content):
    return content + b"mnist_jax" + hashlib.sha256(content).digest()


OTHER_FUNCTIONS = [
    lambda image: image + image,
    lambda image: (image, image),
    lambda image: image[:, 0, :10, 0],  # whole numbers
    lambda image: image.astype(np.float32)[:, 0, 0, 0],
    lambda image: image.astype(np.float32)[:1, 0, :10, 0],
]


def test_a_function_of_other_shapes_is_refused(tmp_path):
    path = tmp_path / "model.stablehlo"
    image = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("B"), 28, 28, 1), np.uint8)
    for function in OTHER_FUNCTIONS:
        path.write_bytes(seal(bytes(jax.export.export(jax.jit(function))(image).serialize())))
        with pytest.raises(
            InputError, match=rf"^{path}: expected a function that returns logits \[B, K\], got another$"
        ):
            load_stablehlo(path)


@pytest.mark.parametrize("num_classes", [1, 26])
def test_a_function_to_any_number_of_logits_is_taken(tmp_path, num_classes):
    path = tmp_path / "model.stablehlo"
    batch = jax.export.symbolic_shape("B")
    image = jax.ShapeDtypeStruct((*batch, 28, 28, 1), np.uint8)
    function = jax.jit(lambda image: image[:, 3, :num_classes, 0].astype(np.float32))
    path.write_bytes(seal(bytes(jax.export.export(function)(image).serialize())))
    image = make_split(5).image
    np.testing.assert_array_equal(load_stablehlo(path)(image), image[:, 3, :num_classes, 0])


def test_what_this_jax_cannot_use_is_one_line(tmp_path):
    def double(image):
        return image + image

    path = tmp_path / "model.stablehlo"
    for_tpu = jax.export.export(jax.jit(double), platforms=["tpu"])(np.zeros((1, 28, 28, 1), np.uint8)).serialize()
    for content in (b"", b"x" * 1000, bytes(for_tpu)):
        path.write_bytes(seal(content))
        with pytest.raises(InputError, match=f"^{path}: cannot be loaded by JAX {jax.__version__}: [^\n]*$"):
            load_stablehlo(path)
