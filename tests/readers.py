"""Exported models as other programs read them: none of these readers uses this package."""

import functools
import json

import jax
import numpy as np
import onnxruntime
import safetensors
import safetensors.numpy

from mnist_jax.core.apply import apply_model


def logits_of(state, image):
    """What the exported function should give."""
    return np.asarray(jax.jit(lambda image: apply_model(state, state.eval_params, image)[0])(image))


def numpy_logits(model, image):
    """``model`` as in the JSON file; an independent forward pass."""
    config, params = model["config"], jax.tree.map(np.float32, model["params"], is_leaf=lambda x: isinstance(x, list))
    statistics = model["model_state"].get("batch_stats", {})
    num_normalised = iter(range(99))

    def normalise(x):
        if not config["batch_norm"]:
            return x
        name = f"BatchNorm_{next(num_normalised)}"
        layer = params[name]
        mean, var = (np.float32(statistics[name][key]) for key in ("mean", "var"))
        return (x - mean) / np.sqrt(var + np.float32(1e-5)) * layer["scale"] + layer["bias"]

    x = image.astype(np.float32) / 255
    if config["model"] == "cnn":
        pools = config["pool_sizes"] * (len(config["channels"]) if len(config["pool_sizes"]) == 1 else 1)
        for index, (size, pool) in enumerate(zip(config["kernel_sizes"], pools, strict=True)):
            layer = params[f"Conv_{index}"]
            if config["padding"] == "same":
                pad = ((size - 1) // 2, size // 2)
                x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))  # [N, h, w, c, i, j]
            x = np.tensordot(windows, layer["kernel"].transpose(2, 0, 1, 3), 3) + layer.get("bias", 0)
            height, width = x.shape[1] // pool, x.shape[2] // pool
            x = x[:, : height * pool, : width * pool].reshape(len(x), height, pool, width, pool, -1).max(axis=(2, 4))
            x = np.maximum(normalise(x), 0)
        x = x if config["dense_size"] else x.mean(axis=(1, 2))
    x = x.reshape(len(x), -1)
    num_dense = sum(name.startswith("Dense_") for name in params)
    for index in range(num_dense):
        layer = params[f"Dense_{index}"]
        x = x @ layer["kernel"] + layer.get("bias", 0)
        if index < num_dense - 1:
            x = np.maximum(normalise(x), 0)
    return x


def by_json(path, image):
    return numpy_logits(json.loads(path.read_text()), image)


def by_safetensors(path, image):
    model = {"params": {}, "model_state": {}}
    for name, array in safetensors.numpy.load_file(path).items():
        *parts, last = name.split(".")
        functools.reduce(lambda tree, part: tree.setdefault(part, {}), parts, model)[last] = array
    with safetensors.safe_open(path, "numpy") as file:
        model["config"] = json.loads(file.metadata()["config"])
    return numpy_logits(model, image)


def by_jax(path, image):
    return np.asarray(jax.export.deserialize(bytearray(path.read_bytes())).call(image))


def by_onnxruntime(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": image})
    return logits


READERS = {"json": by_json, "safetensors": by_safetensors, "stablehlo": by_jax, "onnx": by_onnxruntime}
