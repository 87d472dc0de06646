"""Saves and restores a ``TrainState`` with Orbax; other modules do not use Orbax.

    save_checkpoint("my_checkpoints", state, metrics={"validation_accuracy": 0.98})
    state = restore_checkpoint("my_checkpoints", like=state)

Only arrays are stored; model and optimizer come from ``like``, a new state of the same config.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mnist_jax.atomic import atomic_write
from mnist_jax.core.state import TrainState
from mnist_jax.errors import InputError

_RANKED_BY, _PROGRESS = "validation_accuracy", "progress"
_CHECKSUMS = "checksums.json"  # in each checkpoint, covers its files
_log = logging.getLogger("mnist_jax")


def save_checkpoint(
    directory: str | os.PathLike[str],
    state: TrainState,
    *,
    metrics: Mapping[str, float] | None = None,
    progress: Mapping[str, Any] | None = None,
    keep: int = 3,
) -> None:
    """Saves a state under its step number.

    Args:
        directory: directory of the checkpoints; created if missing.
        state: the state to save; it replaces a checkpoint of the same step.
        metrics: numbers to save with it. The checkpoint with the best ``validation_accuracy`` is always kept.
        progress: a JSON object to save with it, for :func:`read_progress`.
        keep: number of newest checkpoints to keep, besides the best.

    Example:
        >>> import optax, tempfile
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_checkpoint(directory, state)
        ...     saved_steps(directory)
        [0]
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.BestN(n=1, get_metric_fn=_rank, keep_checkpoints_without_metrics=False),
        ]
    )
    # Synchronous: a save takes about 30 ms at this size, and a failure is raised at once.
    options = ocp.CheckpointManagerOptions(
        enable_async_checkpointing=False, create=True, preservation_policy=policy, best_fn=_rank
    )
    directory = Path(directory).resolve()
    manager = ocp.CheckpointManager(directory, options=options, item_handlers=ocp.StandardCheckpointHandler())
    with contextlib.closing(manager):
        step = int(state.step)
        if step in manager.all_steps():
            manager.delete(step)
        manager.save(
            step,
            args=ocp.args.StandardSave(state),
            metrics={_RANKED_BY: -1.0, **(metrics or {}), _PROGRESS: dict(progress or {})},
            force=True,
        )
        path = directory / str(step)
        checksums = json.dumps(_checksums(path))
        with atomic_write(path / _CHECKSUMS) as file:  # another process may be reading
            file.write(checksums.encode())


def restore_checkpoint(
    directory: str | os.PathLike[str], like: TrainState, *, step: int | None = None, set_aside: bool = False
) -> TrainState:
    """Restores the newest intact checkpoint, and logs a warning for each newer one that is damaged.

    Args:
        directory: directory of the checkpoints, or a run directory with ``checkpoints/`` in it.
        like: a state with the same shapes, for example from ``create_train_state``.
        step: the step to restore; None takes the newest intact checkpoint.
        set_aside: rename damaged checkpoints to ``STEP.damaged``, which is required before training continues here;
            False changes nothing on disk.

    Raises:
        InputError: there is no intact checkpoint, or it does not fit ``like``; the message names the leaf.

    Example:
        >>> import optax, tempfile
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_checkpoint(directory, state)
        ...     int(restore_checkpoint(directory, state).step)
        0
    """
    directory = find_checkpoints(directory)
    steps = [saved for saved in saved_steps(directory) if step is None or saved == step]
    if not steps:
        raise InputError(f"{directory}: expected a checkpoint{'' if step is None else f' of step {step}'}, found none")
    for candidate in reversed(steps):
        path = directory.resolve() / str(candidate)
        damage = _find_damage(path)
        if damage is None:
            try:
                return _restore(path, like)
            except InputError:
                raise
            except Exception as error:  # Orbax has no specific error for damage
                damage = " ".join(str(error).split())[:200]
                if (path / _CHECKSUMS).exists():  # they match, so the files are intact
                    raise InputError(f"{path}: cannot be restored: {damage}") from None
        if not set_aside:
            _log.warning("%s: checkpoint skipped: %s", path, damage)
            continue
        # Renamed, not deleted. Orbax fails at a damaged checkpoint even if another step is requested.
        try:
            path.rename(f"{path}.damaged")
        except OSError as error:
            raise InputError(f"{path}: {damage}, and it cannot be set aside ({error.strerror})") from None
        _log.warning("%s.damaged: checkpoint set aside: %s", path, damage)
    raise InputError(f"{directory}: expected an intact checkpoint, but all are damaged: steps {steps}")


def _restore(path: Path, like: TrainState) -> TrainState:
    item = path / "default"
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        _check_fits(path, handler.metadata(item), like)
        abstract = jax.tree.map(_abstract, like)
        state: TrainState = handler.restore(item, args=ocp.args.StandardRestore(abstract))
        return state


def find_checkpoints(directory: str | os.PathLike[str]) -> Path:
    """Returns the directory of the checkpoints, given that directory or the run directory."""
    inside = Path(directory) / "checkpoints"
    return inside if inside.is_dir() else Path(directory)


def read_progress(directory: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """Returns the ``progress`` saved with a checkpoint; empty if there is none."""
    path = find_checkpoints(directory) / str(step) / "metrics" / "metrics"
    try:
        return dict(json.loads(path.read_text()).get(_PROGRESS) or {})
    except (OSError, ValueError):
        return {}


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Returns the steps of the complete checkpoints, in order; none if there is no such directory."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _rank(metrics: Mapping[str, float]) -> float:
    return metrics[_RANKED_BY]


def _checksums(path: Path) -> dict[str, int]:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != _CHECKSUMS)
    return {file.relative_to(path).as_posix(): zlib.crc32(file.read_bytes()) for file in files}


def _find_damage(path: Path) -> str | None:
    """Describes the damage of a checkpoint, or returns None; Orbax misses some damage, and its messages are long."""
    if not (path / _CHECKSUMS).exists():
        return None
    try:
        saved = dict(json.loads((path / _CHECKSUMS).read_text()))
        found = _checksums(path)
    except (OSError, TypeError, ValueError) as error:
        return f"{_CHECKSUMS} or a file that it names cannot be read ({error})"
    damaged = sorted(name for name in saved.keys() | found.keys() if saved.get(name) != found.get(name))
    return f"{damaged[0]} is damaged" if damaged else None


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _check_fits(path: Path, stored: Any, like: TrainState) -> None:
    """Raises ``InputError`` for the first leaf whose path, shape or dtype differs from ``like``."""
    expected = _describe_leaves(ocp.utils.serialize_tree(like, keep_empty_nodes=True))
    found = _describe_leaves(stored)
    for name in sorted([*expected, *found], key=lambda name: not name.startswith("params/")):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"{path}: does not fit: expected {name} as {expected.get(name, 'absent')}, "
                f"got {found.get(name, 'absent')}; use the model and optimizer that it was saved with"
            )


def _describe_leaves(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {
        "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path): _describe_leaf(leaf)
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def _describe_leaf(leaf: Any) -> str:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"
