"""Exports the model of a run to a file, and loads an exported model.

    export_run("runs/mine", "onnx")                        # runs/mine/model.onnx
    config, state = load_export("runs/mine/model.json")    # or a .safetensors

The formats are those of ``mnist_jax.export``. JAX is imported inside the functions, so that ``--help`` is fast.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_jax.atomic import atomic_write
from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.export import FORMATS

if TYPE_CHECKING:
    from mnist_jax.core.state import TrainState


def export_run(directory: str | os.PathLike[str], format: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Writes the newest state of a run to a new file, atomically.

    Args:
        directory: the run directory.
        format: ``json``, ``safetensors``, ``stablehlo`` or ``onnx``.
        output: path of the file; default ``model.FORMAT`` in the run directory.

    Returns:
        The path of the file.

    Raises:
        InputError: there is no run, the file exists or cannot be written, or the format does not support the model.

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

    from mnist_jax.training.loading import load_class_names, load_run

    config, state = load_run(directory)
    _write_new(path, _to_bytes(format, config, state, load_class_names(directory)))
    return path


def load_export(path: str | os.PathLike[str]) -> tuple[TrainConfig, TrainState]:
    """Loads a model that was exported as ``json`` or ``safetensors``; the name of the file does not matter.

    Args:
        path: path of the file.

    Returns:
        The config of the run, and a state for evaluation, as from :func:`mnist_jax.load_run`, but with step 0.

    Raises:
        InputError: the file cannot be read, is damaged, or does not match its config.

    Example:
        >>> import tempfile
        >>> from mnist_jax import build_state
        >>> from mnist_jax.export.weights import to_json
        >>> config = TrainConfig(hidden_sizes=(8,))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "model.json"
        ...     _ = path.write_bytes(to_json(config, build_state(config)))
        ...     load_export(path)[0] == config
        True
    """
    import jax

    from mnist_jax.core.state import begin_training
    from mnist_jax.export.weights import arrays_like, read_weights
    from mnist_jax.models.adapters import Variables
    from mnist_jax.training.build import build_state

    header, found = read_weights(path)
    config = header["config"]
    # Nothing is allocated before the check, and no initialisation is compiled, which takes seconds for a CNN.
    create = functools.partial(build_state, config, num_classes=len(header["class_names"]))
    try:
        shapes = jax.eval_shape(create)
        arrays = arrays_like(shapes, found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    train_key = jax.random.split(jax.random.key(config.seed))[1]  # as of create_train_state
    return config, begin_training(shapes.recipe, Variables(arrays["params"], arrays["model_state"]), train_key)


def _to_bytes(format: str, config: TrainConfig, state: TrainState, class_names: Sequence[str]) -> bytes:
    from mnist_jax.export.onnx import to_onnx
    from mnist_jax.export.stablehlo import to_stablehlo
    from mnist_jax.export.weights import to_json, to_safetensors

    if format == "stablehlo":  # cannot store class names
        return to_stablehlo(config, state)
    writers = {"json": to_json, "safetensors": to_safetensors, "onnx": to_onnx}
    return writers[format](config, state, class_names)


def _write_new(path: Path, content: bytes) -> None:
    try:
        with atomic_write(path, exclusive=True) as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
