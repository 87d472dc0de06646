"""Exports the evaluation function as StableHLO by ``jax.export``, for JAX without this package.

    path.write_bytes(to_stablehlo(config, state))
    logits = load_stablehlo(path)(image)   # uint8[B, 28, 28, 1]

The file ends with a checksum, so a damaged file is rejected before JAX parses it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError, one_line

if TYPE_CHECKING:
    import jax

    from mnist_jax.core.state import TrainState

_SEAL = b"mnist_jax"  # followed by a sha256, after the bytes of jax.export, which ignores both


def to_stablehlo(config: TrainConfig, state: TrainState) -> bytes:
    """Returns the evaluation function with its parameters, serialized by ``jax.export``.

    Args:
        config: config of the run.
        state: state to export.

    Returns:
        Bytes of the file: a function from ``uint8[B, 28, 28, 1]``, for any B, to logits ``float32[B, K]``, for CPU,
        CUDA and TPU. Without this package: ``jax.export.deserialize(bytearray(content)).call(image)``. JAX guarantees
        to read it for six months, but an older JAX may not: use it for deployment, JSON or safetensors for archives.

    Reference: https://docs.jax.dev/en/latest/export/export.html

    Example:
        >>> import jax, numpy as np
        >>> from mnist_jax import TrainConfig, build_state
        >>> config = TrainConfig(hidden_sizes=(8,))
        >>> exported = jax.export.deserialize(bytearray(to_stablehlo(config, build_state(config))))
        >>> exported.call(np.zeros((3, 28, 28, 1), np.uint8)).shape
        (3, 10)
    """
    del config  # the state holds the model

    import jax
    import jax.export

    from mnist_jax.core.apply import apply_model

    def logits(image: jax.Array) -> jax.Array:
        return apply_model(state, state.eval_params, image)[0]

    (batch,) = jax.export.symbolic_shape("B")
    image = jax.ShapeDtypeStruct((batch, 28, 28, 1), jax.numpy.uint8)
    content = bytes(jax.export.export(jax.jit(logits), platforms=("cpu", "cuda", "tpu"))(image).serialize())
    return content + _SEAL + hashlib.sha256(content).digest()


def load_stablehlo(path: str | os.PathLike[str]) -> Callable[[Any], jax.Array]:
    """Loads a file that :func:`to_stablehlo` wrote.

    The checksum detects damage, not tampering: load only files from a source that you trust.

    Args:
        path: path of the file.

    Returns:
        A function from ``uint8[B, 28, 28, 1]`` to logits ``float32[B, K]``.

    Raises:
        InputError: the file is damaged or of another kind, or this version of JAX cannot read it.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from mnist_jax import TrainConfig, build_state
        >>> config = TrainConfig(hidden_sizes=(8,))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "model.stablehlo"
        ...     _ = path.write_bytes(to_stablehlo(config, build_state(config)))
        ...     load_stablehlo(path)(np.zeros((3, 28, 28, 1), np.uint8)).shape
        (3, 10)
    """
    import jax
    import jax.export

    from mnist_jax.export.weights import read_bounded

    content = read_bounded(Path(path))
    length = len(content) - len(_SEAL) - hashlib.sha256().digest_size
    if length < 0 or content[length:] != _SEAL + hashlib.sha256(content[:length]).digest():
        raise InputError(f"{path}: expected a model exported as stablehlo, got something else or a damaged file")
    try:
        function = jax.jit(jax.export.deserialize(bytearray(content[:length])).call)
        result = function.lower(jax.ShapeDtypeStruct((2, 28, 28, 1), jax.numpy.uint8)).out_info
    except Exception as error:  # JAX has no specific error for a file of another version
        raise InputError(f"{path}: cannot be loaded by JAX {jax.__version__}: {one_line(error)}") from None
    if not _is_logits(result):
        raise InputError(f"{path}: expected a function that returns logits [B, K], got another")
    return function


def _is_logits(result: Any) -> bool:
    """Returns whether the result for two images is one array ``float[2, K]``."""
    import jax

    shape: tuple[int, ...] = getattr(result, "shape", ())
    return len(shape) == 2 and shape[0] == 2 and jax.numpy.issubdtype(result.dtype, jax.numpy.floating)
