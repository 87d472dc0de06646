"""Writes a trained model for other programs. The command ``python -m mnist_jax.export RUN --format FORMAT``.

    export_run("runs/mine", "onnx")                      # runs/mine/model.onnx
    logits = load_stablehlo("runs/mine/model.stablehlo")(image)

json          parameters and config, for NumPy alone          see mnist_jax.export.weights
safetensors   the same, in a third of the space               see mnist_jax.export.weights
stablehlo     the function itself, for JAX without this code  see to_stablehlo
onnx          the function itself, for ONNX Runtime           see mnist_jax.export.onnx

What is exported is what is evaluated: the running average of the parameters, if there is one. Nothing is overwritten.
What needs JAX is imported inside the functions: ``--help`` is answered at once.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_jax.cli.flags import OneLineParser, run_command
from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError

if TYPE_CHECKING:
    import jax

    from mnist_jax.core.state import TrainState

FORMATS = ("json", "safetensors", "stablehlo", "onnx")
_SEAL = b"mnist_jax"  # with a sha256, after the bytes of jax.export, which does not look there


def export_run(directory: str | os.PathLike[str], format: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Writes the newest state of a run to a new file, whole or not at all.

    Args:
        directory: of the run.
        format: one of ``FORMATS``.
        output: the file; default ``model.FORMAT`` in the directory.

    Returns:
        The file.

    Raises:
        InputError: there is no run, the file exists or cannot be written, or the format cannot hold the model.

    Example:
        >>> import tempfile
        >>> from mnist_jax import TrainConfig, fit
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     run = fit(TrainConfig(data="digits", epochs=1, workdir=directory + "/run", quiet=True))
        ...     export_run(run.workdir, "json").name
        'model.json'
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(directory) / f"model.{format}" if output is None else Path(output)
    if os.path.lexists(path):
        raise InputError(f"{path} exists already: name another file with --output")

    from mnist_jax.export.onnx import to_onnx
    from mnist_jax.export.weights import to_json, to_safetensors
    from mnist_jax.training.build import load_run

    config, state = load_run(directory)
    writers = {"json": to_json, "safetensors": to_safetensors, "stablehlo": to_stablehlo, "onnx": to_onnx}
    _write_new(path, writers[format](config, state))
    return path


def to_stablehlo(config: TrainConfig, state: TrainState) -> bytes:
    """The function that is evaluated, with its parameters, as ``jax.export`` serializes it.

    Args:
        config: of the run.
        state: to be evaluated.

    Returns:
        The file: a function from ``uint8[B, 28, 28, 1]``, of any B, to logits ``float32[B, 10]``, for CPU, CUDA and
        TPU. Without this package: ``jax.export.deserialize(bytearray(content)).call(image)``. JAX promises to read it
        for six months, and not with an older JAX than wrote it: deploy it, and archive JSON or safetensors.

    Reference: https://docs.jax.dev/en/latest/export/export.html

    Example:
        >>> import jax, numpy as np
        >>> from mnist_jax import TrainConfig, build_state
        >>> config = TrainConfig(hidden_sizes=(8,))
        >>> exported = jax.export.deserialize(bytearray(to_stablehlo(config, build_state(config))))
        >>> exported.call(np.zeros((3, 28, 28, 1), np.uint8)).shape
        (3, 10)
    """
    del config  # the state holds the function

    import jax
    import jax.export

    from mnist_jax.core.state import apply_model

    def logits(image: jax.Array) -> jax.Array:
        return apply_model(state, state.eval_params, image)[0]

    (batch,) = jax.export.symbolic_shape("B")
    image = jax.ShapeDtypeStruct((batch, 28, 28, 1), jax.numpy.uint8)
    content = bytes(jax.export.export(jax.jit(logits), platforms=("cpu", "cuda", "tpu"))(image).serialize())
    return content + _SEAL + hashlib.sha256(content).digest()


def load_stablehlo(path: str | os.PathLike[str]) -> Callable[[Any], jax.Array]:
    """Reads what :func:`to_stablehlo` wrote.

    A damaged file is known by its checksum, before JAX sees it. That is no signature: like any program, load only what
    you or someone you trust has written.

    Args:
        path: of the file.

    Returns:
        A function from ``uint8[B, 28, 28, 1]`` to logits ``float32[B, 10]``.

    Raises:
        InputError: the file is damaged or another one, or this version of JAX cannot read it.

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
        raise InputError(f"{path}: a model exported as stablehlo wanted, got something else or a damaged file")
    try:
        function = jax.jit(jax.export.deserialize(bytearray(content[:length])).call)
        result = function.lower(jax.ShapeDtypeStruct((2, 28, 28, 1), jax.numpy.uint8)).out_info
    except Exception as error:  # JAX has no error of its own for a file of another version
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be used with JAX {jax.__version__} here: {reason}") from None
    if getattr(result, "shape", None) != (2, 10):
        raise InputError(f"{path}: a function to logits [B, 10] wanted, got another")
    return function


def _write_new(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.export") -> int:
    """The command: writes the file, and prints its name, format and size."""

    def command() -> None:
        parser = OneLineParser(prog=prog, description="Write the trained model of a run for other programs.")
        parser.add_argument("run", metavar="RUN", help="directory of the run")
        parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
        parser.add_argument("--output", metavar="FILE", help="a new file; default: RUN/model.FORMAT")
        flags = parser.parse_args(args)
        path = export_run(flags.run, flags.format, flags.output)
        print(f"{path}  {flags.format}  {path.stat().st_size:,} bytes")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
