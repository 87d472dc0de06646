"""Writes and reads the parameters of a run as JSON or safetensors, for other programs.

    path.write_bytes(to_json(config, state))   # or to_safetensors
    header, found = read_weights(path)         # mnist_jax.load_export creates a state from them

Both formats hold ``state.eval_params``, ``state.eval_model_state`` and the config, and suit long-term storage. Reading
JSON needs only NumPy. An MLP without ``batch_norm``:

    model = json.loads(Path("model.json").read_text())
    x = image.reshape(-1, 784) / 255                      # uint8[N, 28, 28, 1]
    for index in range(len(model["params"])):
        layer = model["params"][f"Dense_{index}"]
        x = (np.maximum(x, 0) if index else x) @ np.float32(layer["kernel"]) + np.float32(layer["bias"])
    logits = x                                            # one for each of model["class_names"]

:class:`mnist_jax.CNN` describes a CNN; its kernels are ``[rows, columns, channels, features]``.

Readers trust nothing: content that does not match the config raises ``InputError`` before any array is allocated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mnist_jax.config import TrainConfig
from mnist_jax.core.state import PyTree, TrainState
from mnist_jax.data.dataset import DIGITS
from mnist_jax.errors import InputError, one_line, short_repr
from mnist_jax.jsonfile import parse_json

_FORMAT, _VERSION = "mnist_jax", 1
_LARGEST_FILE = 10**9  # bytes


def to_json(config: TrainConfig, state: TrainState, class_names: Sequence[str] = DIGITS) -> bytes:
    """Returns the parameters as a JSON object: ``format, version, config, class_names, params, model_state``.

    Args:
        config: config of the run.
        state: state to export.
        class_names: K names.

    Returns:
        Bytes of the file. Each number is the shortest decimal that parses to the same float32, also via float64.

    Raises:
        InputError: a parameter is not finite.

    Example:
        >>> from mnist_jax import build_state
        >>> config = TrainConfig(hidden_sizes=(8,))
        >>> state = build_state(config)
        >>> layer = json.loads(to_json(config, state))["params"]["Dense_1"]
        >>> np.array_equal(np.float32(layer["kernel"]), state.eval_params["Dense_1"]["kernel"])
        True
    """
    _check_finite(_named_leaves(state))
    arrays = jax.tree.map(lambda leaf: _shortest(np.asarray(leaf)), _eval_variables(state))
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "config": config.training_fields(),
        "class_names": list(class_names),
        "params": arrays["params"],
        "model_state": arrays["model_state"],
    }
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def to_safetensors(config: TrainConfig, state: TrainState, class_names: Sequence[str] = DIGITS) -> bytes:
    """Returns the parameters as safetensors: ``params.Dense_0.kernel`` and so on, with the rest as metadata.

    Args:
        config: config of the run.
        state: state to export.
        class_names: K names.

    Returns:
        Bytes of the file. The metadata are ``format``, ``version``, and as JSON ``config`` and ``class_names``.

    Raises:
        InputError: a parameter is not finite.

    Reference: https://github.com/huggingface/safetensors

    Example:
        >>> import safetensors.numpy
        >>> from mnist_jax import build_state
        >>> config = TrainConfig(hidden_sizes=())
        >>> sorted(safetensors.numpy.load(to_safetensors(config, build_state(config))))
        ['params.Dense_0.bias', 'params.Dense_0.kernel']
    """
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in _named_leaves(state).items()}
    _check_finite(arrays)
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "config": json.dumps(config.training_fields()),
        "class_names": json.dumps(list(class_names)),
    }
    content: bytes = safetensors.numpy.save(arrays, metadata)
    return content


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a file that :func:`to_json` or :func:`to_safetensors` wrote; detects the format by content.

    Args:
        path: path of the file.

    Returns:
        The header, with ``config`` as a ``TrainConfig`` and ``class_names`` as K strings; and the unchecked parameters
        by name, such as ``params.Dense_0.kernel``: arrays, or nested lists from JSON. :func:`arrays_like` checks them.

    Raises:
        InputError: the file cannot be read, is damaged or of another kind, or its config is invalid.

    Example:
        >>> import tempfile
        >>> from mnist_jax import build_state
        >>> config = TrainConfig(hidden_sizes=(8,))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "model.json"
        ...     _ = path.write_bytes(to_json(config, build_state(config)))
        ...     header, found = read_weights(path)
        >>> header["config"] == config, len(found["params.Dense_1.bias"])
        (True, 10)
    """
    path = Path(path)
    content = read_bounded(path)
    try:
        if content.startswith(b"{"):
            header, found = _parse_json(content)
        elif content[8:9] == b"{":  # after the length of the safetensors header
            del content
            header, found = _open_safetensors(path)
        else:
            raise InputError("expected a model exported as json or safetensors, got something else")
        for name, expected in (("format", _FORMAT), ("version", _VERSION)):
            if header.get(name) not in (expected, str(expected)):
                raise InputError(f"{name} must be {expected}, got {short_repr(header.get(name))}")
        config = TrainConfig.from_json(json.dumps(header.get("config")))
        class_names = _read_class_names(header.get("class_names", DIGITS))
        return {**header, "config": config, "class_names": class_names}, found
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def arrays_like(shapes: TrainState, found: Mapping[str, Any]) -> dict[str, Any]:
    """Checks arrays and returns them in the structure of a state.

    Args:
        shapes: the state that they are for; the shapes from ``jax.eval_shape`` are enough.
        found: parameters from :func:`read_weights`.

    Returns:
        ``{"params": ..., "model_state": ...}``.

    Raises:
        InputError: an array is missing, unexpected, of the wrong shape, or not finite.
    """
    expected = _named_leaves(shapes)
    for name in sorted([*expected, *found], key=lambda name: not name.startswith("params.")):
        if name not in found:
            raise InputError(f"{name}: expected float32{list(expected[name].shape)}, got none")
        if name not in expected:
            raise InputError(f"{short_repr(name)} is not a parameter of the model in config")
    arrays = {name: _to_array(found[name], leaf.shape, name) for name, leaf in expected.items()}
    _check_finite(arrays)
    filled: dict[str, Any] = jax.tree.unflatten(
        jax.tree.structure(_eval_variables(shapes)), map(jnp.asarray, arrays.values())
    )
    return filled


def read_bounded(path: Path) -> bytes:
    """Reads a regular file of at most 1 GB.

    Raises:
        InputError: it is larger or not a regular file, or cannot be read.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: expected an exported model, found no such file")
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise InputError(f"{path}: expected at most {_LARGEST_FILE:,} bytes, got {size:,}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _eval_variables(state: TrainState) -> PyTree:
    return {"params": state.eval_params, "model_state": state.eval_model_state}


def _named_leaves(state: TrainState) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(_eval_variables(state))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _shortest(array: np.ndarray) -> list[Any]:
    """Returns nested lists of the float64 numbers that print as short as the float32 numbers do."""
    if array.ndim > 1:
        return [_shortest(row) for row in array]
    shortest = array.astype(str).astype(np.float64)
    # Rounding twice, to float64 and to float32, changes some short decimals, such as 7.038531e-26.
    return np.where(shortest.astype(np.float32) == array, shortest, array).tolist()


def _check_finite(arrays: dict[str, Any]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{name}: expected finite float32 numbers, got others")


def _parse_json(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        header = parse_json(content)
        parts = {name: header.pop(name, {}) for name in ("params", "model_state")}
        return header, {name: leaf for part, tree in parts.items() for name, leaf in _flatten(tree, part)}
    except ValueError as error:
        raise InputError(f"expected a JSON object ({error})") from None


def _flatten(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, branch in tree.items():
        yield from _flatten(branch, f"{name}.{key}")


def _open_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_slice(name)
                if tensor.get_dtype() != "F32":
                    raise InputError(f"{short_repr(name)} must be F32, got {tensor.get_dtype()}")
                if len(tensor.get_shape()) > 4:  # NumPy raises an error for more than 64
                    raise InputError(
                        f"{short_repr(name)} must have at most 4 dimensions, got {len(tensor.get_shape())}"
                    )
            header: dict[str, Any] = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"expected a complete safetensors file ({one_line(error)})") from None
    for name in ("config", "class_names"):
        try:
            header |= {name: parse_json(header[name])} if name in header else {}
        except ValueError as error:
            raise InputError(f"{name} must be JSON ({error})") from None
    return header, arrays


def _read_class_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"class_names must be a list of strings, got {short_repr(names)}")
    return tuple(names)


def _to_array(found: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    if not isinstance(found, np.ndarray):
        _check_numbers(found, shape, name)
        try:
            with np.errstate(over="ignore"):  # gives infinity, which is checked later
                return np.array(found, np.float64).astype(np.float32)
        except OverflowError:
            raise InputError(f"{name}: expected finite float32 numbers, got others") from None
    if found.shape != shape:
        raise InputError(f"{name}: expected float32{list(shape)}, got float32{list(found.shape)}")
    return found


def _check_numbers(found: Any, shape: tuple[int, ...], name: str) -> None:
    """Raises ``InputError`` unless ``found`` is nested lists of numbers with this shape."""
    if not isinstance(found, list) or len(found) != shape[0]:
        got = f"{len(found)}" if isinstance(found, list) else short_repr(found)
        raise InputError(f"{name}: expected a list of {shape[0]}, got {got}")
    if len(shape) > 1:
        for index, each in enumerate(found):
            _check_numbers(each, shape[1:], f"{name}[{index}]")
    elif not {*map(type, found)} <= {int, float}:
        stray = next(each for each in found if type(each) not in (int, float))
        raise InputError(f"{name}: expected numbers, got {short_repr(stray)}")
