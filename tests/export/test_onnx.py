import jax
import numpy as np
import onnx
import optax
import pytest
from conftest import make_split
from readers import by_onnxruntime, logits_of

from mnist_jax import MLP, InputError, TrainConfig, build_state, create_train_state
from mnist_jax.export.onnx import to_onnx


def test_onnx_of_a_bfloat16_run_is_refused():
    config = TrainConfig(dtype="bfloat16", hidden_sizes=(4,))
    with pytest.raises(InputError, match="^dtype must be float32 for onnx, got bfloat16; choose another format$"):
        to_onnx(config, build_state(config))


def test_the_number_of_logits_is_that_of_the_state(tmp_path):
    model = MLP(hidden_sizes=(4,), num_classes=3)
    state = create_train_state(model, optax.sgd(0.1), jax.random.key(0))
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(TrainConfig(hidden_sizes=(4,)), state, ("a", "b", "c")))
    (output,) = onnx.load(path).graph.output
    assert [each.dim_value or each.dim_param for each in output.type.tensor_type.shape.dim] == ["N", 3]
    image = make_split(5).image
    np.testing.assert_allclose(by_onnxruntime(path, image), logits_of(state, image), rtol=1e-5, atol=1e-5)
