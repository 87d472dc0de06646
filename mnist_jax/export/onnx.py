"""Exports a model as an ONNX graph, for ONNX Runtime and other programs without JAX.

    path.write_bytes(to_onnx(config, state))
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"image": image})   # uint8[N, 28, 28, 1]

The graph is built operator by operator from the config, without a converter. Images have the layout of ONNX, ``[N,
channels, height, width]``; a transpose before the dense layer lets that layer use the run's kernel unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnist_jax.config import TrainConfig
from mnist_jax.core.state import TrainState
from mnist_jax.data.dataset import DIGITS
from mnist_jax.errors import InputError, import_extra

_OPSET, _IR_VERSION = 17, 8  # supported since ONNX Runtime 1.12 (2022)
_EPSILON = 1e-5  # of nn.BatchNorm


def to_onnx(config: TrainConfig, state: TrainState, class_names: Sequence[str] = DIGITS) -> bytes:
    """Returns the evaluation function with its parameters as an ONNX model.

    Args:
        config: config of the run.
        state: state to export.
        class_names: K names.

    Returns:
        Bytes of the file, with input ``image``, ``uint8[N, 28, 28, 1]``, and output ``logits``, ``float32[N, K]``. The
        metadata are ``config`` and ``class_names``, as JSON.

    Raises:
        InputError: the run computes in bfloat16, or onnx is not installed.

    Reference: https://onnx.ai/onnx/operators/

    Example:
        >>> import onnx
        >>> from mnist_jax import build_state
        >>> config = TrainConfig(hidden_sizes=(8,))
        >>> model = onnx.load_model_from_string(to_onnx(config, build_state(config)))
        >>> [node.op_type for node in model.graph.node]
        ['Cast', 'Div', 'Reshape', 'Gemm', 'Relu', 'Gemm']
    """
    if config.dtype != "float32":
        raise InputError(f"dtype must be float32 for onnx, got {config.dtype}; choose another format")
    graph = _Graph(state)
    graph.add("Cast", to=1)  # float32
    graph.add("Div", {"largest_pixel": np.float32(255)})
    if config.model == "mlp":
        graph.add("Reshape", {"shape": np.array([0, 784])})
        hidden_sizes = config.hidden_sizes
    else:
        graph.add("Reshape", {"shape": np.array([0, 1, 28, 28])})
        _add_convolutions(graph, config)
        hidden_sizes = (config.dense_size,) if config.dense_size else ()
    for _ in hidden_sizes:
        graph.add_layer("Dense")
        if config.batch_norm:
            graph.add_batch_norm()
        graph.add("Relu")
    graph.add_layer("Dense")
    return graph.to_bytes(
        {"config": json.dumps(config.training_fields()), "class_names": json.dumps(list(class_names))}
    )


def _add_convolutions(graph: _Graph, config: TrainConfig) -> None:
    pool_sizes = config.pool_sizes * (len(config.channels) if len(config.pool_sizes) == 1 else 1)
    for size, pool in zip(config.kernel_sizes, pool_sizes, strict=True):
        low, high = ((size - 1) // 2, size // 2) if config.padding == "same" else (0, 0)  # as XLA pads
        graph.add_layer("Conv", pads=[low, low, high, high])
        if pool > 1:
            graph.add("MaxPool", kernel_shape=[pool, pool], strides=[pool, pool])  # drops the remainder
        if config.batch_norm:
            graph.add_batch_norm()
        graph.add("Relu")
    if config.dense_size:
        graph.add("Transpose", perm=[0, 2, 3, 1])
    else:
        graph.add("GlobalAveragePool")
    graph.add("Flatten")


class _Graph:
    """Builds a chain of operators, each applied to the output of the one before."""

    def __init__(self, state: TrainState) -> None:
        self._onnx = import_extra("onnx", "export")
        self._params = state.eval_params
        self._statistics = state.eval_model_state.get("batch_stats", {})
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._num_layers = {"Conv": 0, "Dense": 0, "BatchNorm": 0}
        self._output, self._num_features = "image", 1

    def add(self, operator: str, constants: Mapping[str, Any] | None = None, **attributes: Any) -> None:
        """Adds an operator; ``constants`` are its inputs after the first."""
        constants = constants or {}
        self._constants.update((name, np.asarray(value)) for name, value in constants.items())
        inputs, self._output = [self._output, *constants], f"{operator}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [self._output], self._output, **attributes))

    def add_layer(self, kind: str, **attributes: Any) -> None:
        """Adds the next ``Conv`` or ``Dense`` layer, with its bias if it has one."""
        name = self._next(kind)
        constants = {
            f"{name}.{key}": np.asarray(self._params[name][key])
            for key in ("kernel", "bias")
            if key in self._params[name]
        }
        self._num_features = self._params[name]["kernel"].shape[-1]
        if kind == "Conv":
            kernel = f"{name}.kernel"
            constants[kernel] = constants[kernel].transpose(3, 2, 0, 1)  # features, channels, rows, columns
        self.add("Conv" if kind == "Conv" else "Gemm", constants, **attributes)

    def add_batch_norm(self) -> None:
        """Adds the next batch normalisation."""
        name = self._next("BatchNorm")
        values = {**self._params[name], **self._statistics[name]}
        constants = {f"{name}.{key}": values[key] for key in ("scale", "bias", "mean", "var")}
        self.add("BatchNormalization", constants, epsilon=_EPSILON)

    def _next(self, kind: str) -> str:
        name = f"{kind}_{self._num_layers[kind]}"
        self._num_layers[kind] += 1
        return name

    def to_bytes(self, metadata: dict[str, str]) -> bytes:
        """Checks the model and returns its bytes; the last output is named ``logits``."""
        onnx, helper = self._onnx, self._onnx.helper
        self._nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self._nodes,
            "mnist_jax",
            [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", 28, 28, 1])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", self._num_features])],
            [onnx.numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )
        model = helper.make_model(
            graph,
            producer_name="mnist_jax",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", _OPSET)],
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
        return content
