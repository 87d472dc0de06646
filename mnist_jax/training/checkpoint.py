"""Saves and restores a ``TrainState`` with Orbax; other modules do not use Orbax.

    save_checkpoint("my_checkpoints", state, metrics={"validation_accuracy": 0.98})
    state = restore_checkpoint("my_checkpoints", like=state)

Only arrays are stored; model and optimizer come from ``like``, a new state of the same config. A checkpoint appears in
one step, with the checksums of its files: one without them, or with a file that differs, is never restored.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from mnist_jax.atomic import sync
from mnist_jax.core.state import TrainState
from mnist_jax.errors import InputError, one_line
from mnist_jax.jsonfile import read_json
from mnist_jax.training import processes

_RANKED_BY, _PROGRESS = "validation_accuracy", "progress"
_CHECKSUMS = "checksums.json"  # in each checkpoint, covers its files
_METADATA_BYTES = 2**17  # at most, of a checkpoint beside its arrays: about 20 small files
_UNFINISHED = ".unfinished-"  # begins the name of a directory in which a checkpoint is saved or deleted
_log = logging.getLogger("mnist_jax")


def save_checkpoint(
    directory: str | os.PathLike[str],
    state: TrainState,
    *,
    metrics: Mapping[str, float] | None = None,
    progress: Mapping[str, Any] | None = None,
    keep: int = 3,
) -> None:
    """Saves a state under its step number, and reads back what was written.

    Args:
        directory: directory of the checkpoints; created if missing.
        state: the state to save; it replaces a checkpoint of the same step.
        metrics: numbers to save with it. The checkpoint with the best ``validation_accuracy`` is always kept.
        progress: a JSON object to save with it, for :func:`read_progress`.
        keep: number of newest checkpoints to keep, besides the best.

    Raises:
        OSError: the checkpoint cannot be written, for example because the disk is full; earlier ones stay as they are.

    Example:
        >>> import optax, tempfile
        >>> from mnist_jax import MLP, create_train_state
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_checkpoint(directory, state)
        ...     saved_steps(directory)
        [0]
    """
    directory, step = Path(directory).resolve(), int(state.step)
    with _staging(directory) as staging:
        path = staging / str(step)
        try:
            _check_space(directory, state)
            _write(path, state, {_RANKED_BY: -1.0, **(metrics or {}), _PROGRESS: dict(progress or {})})
            processes.first(lambda: _write_checksums(path))
            _read_back(path)
        except Exception as error:  # a full disk is several kinds of errors in Orbax
            raise _write_error(error, directory / str(step)) from None
        processes.barrier()  # all have read it
        processes.first(lambda: _publish(path, directory))
    processes.first(lambda: delete_old(directory, keep))


@contextlib.contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """Yields a directory in which a checkpoint is written, the same one in all processes of the run."""

    def create() -> str:
        directory.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix=_UNFINISHED, dir=directory)

    staging = Path(processes.first(create))
    try:
        yield staging
    finally:
        if processes.is_first():
            shutil.rmtree(staging, ignore_errors=True)


def _write_checksums(path: Path) -> None:
    (path / _CHECKSUMS).write_text(json.dumps(_checksums(path)))


def _publish(path: Path, directory: Path) -> None:
    """Moves a checkpoint, in one step, from its staging directory to where it is found, and waits for the disk."""
    target = directory / path.name
    for each in (path, *path.rglob("*")):  # Orbax itself syncs only the arrays
        sync(each)
    _discard(target, path.parent)
    path.rename(target)
    for each in (directory, directory.parent):
        sync(each)


def _check_space(directory: Path, state: TrainState) -> None:
    """Raises ``OSError`` if a state may not fit on the disk, which Orbax reports in hundreds of lines."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
    if shutil.disk_usage(directory).free < size + _METADATA_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(path: Path, state: TrainState, metrics: Mapping[str, Any]) -> None:
    """Writes a checkpoint with Orbax, in its standard layout."""
    # Synchronous: a save takes about 30 ms at this size, and a failure is raised at once.
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, best_fn=_rank)  # which saves metrics
    with _plain(path.parent) as plain:
        manager = ocp.CheckpointManager(plain, options=options, item_handlers=ocp.StandardCheckpointHandler())
        with contextlib.closing(manager):
            manager.save(int(path.name), args=ocp.args.StandardSave(state), metrics=dict(metrics), force=True)


def _read_back(path: Path) -> None:
    """Raises an exception unless a checkpoint that was just written can be read: its files, and one array by Orbax."""
    damage = _find_damage(path) if processes.is_first() else None
    if damage is not None:
        raise OSError(damage)
    expected = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
    as_numpy = {"step": ocp.RestoreArgs(restore_type=np.ndarray)}
    args = ocp.args.PyTreeRestore(item=expected, restore_args=as_numpy, partial_restore=True)
    with _plain(path) as plain, contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        found = handler.restore(plain / "default", args=args)["step"]
    if int(found) != int(path.name):
        raise OSError(f"step {found} was read back")


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """Yields a path to the same place that Orbax can use, which takes ``[1]`` for a pattern and needs UTF-8."""
    if re.fullmatch(r"[\w/.,:+=@ -]*", str(path), flags=re.ASCII):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        link = Path(directory, "link")
        link.symlink_to(path, target_is_directory=True)
        yield link


def _write_error(error: Exception, path: Path) -> OSError:
    is_full = "RESOURCE_EXHAUSTED" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
    reason = "no space left" if is_full else one_line(error)
    return OSError(f"{path}: the checkpoint cannot be written ({reason}); earlier ones are as they were")


def _discard(path: Path, trash: Path) -> None:
    """Moves a checkpoint, if it exists, into a directory that is about to be deleted: in one step for readers."""
    with contextlib.suppress(FileNotFoundError):
        path.rename(trash / f"{path.name}.old")


def delete_old(directory: Path, keep: int) -> None:
    """Deletes all but the newest checkpoints and the best."""
    steps = saved_steps(directory)
    best = max(steps, key=lambda step: (_read_rank(directory, step), step))
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=directory) as trash:
        for step in steps[:-keep]:
            if step != best:
                _discard(directory / str(step), Path(trash))


def clear_unfinished(directory: Path) -> None:
    """Deletes what a killed process left in a directory of checkpoints that no other process is writing."""
    if directory.is_dir():
        for path in directory.iterdir():
            if path.name.startswith(_UNFINISHED) or path.name.endswith(".orbax-checkpoint-tmp"):
                shutil.rmtree(path, ignore_errors=True)


def restore_checkpoint(
    directory: str | os.PathLike[str], like: TrainState, *, step: int | None = None, set_aside: bool = False
) -> TrainState:
    """Restores the newest intact checkpoint, and logs a warning for each newer one that is damaged.

    Args:
        directory: directory of the checkpoints, or a run directory with ``checkpoints/`` in it. Another process may
            add and delete checkpoints meanwhile.
        like: a state with the same shapes, for example from ``create_train_state``; those of ``jax.eval_shape`` are
            enough.
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
    damaged: list[int] = []

    def find_steps() -> list[int]:
        return [each for each in saved_steps(directory) if each not in damaged and step in (None, each)]

    while steps := processes.first(find_steps):
        path = directory.resolve() / str(steps[-1])
        try:
            with _plain(path) if set_aside else _copy(path) as place:
                damage = processes.first(functools.partial(_find_damage, place))
                if damage is None:
                    return _restore(path, place, like)
        except OSError as error:
            if processes.count() > 1:  # the others may have read it
                raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
            if not path.exists():  # deleted by the training that saved it: there are newer ones
                continue
            damage = f"it cannot be read ({error.strerror or error})"[:200]
            if "No space left" in damage:
                raise InputError(f"{path}: no space left in {tempfile.gettempdir()} to read it") from None
        damaged.insert(0, steps[-1])
        if set_aside:
            processes.first(functools.partial(_set_aside, path, damage))
        else:
            _log.warning("%s: checkpoint skipped: %s", path, damage)
    if damaged:
        raise InputError(f"{directory}: expected an intact checkpoint, but all are damaged: steps {damaged}")
    raise InputError(f"{directory}: expected a checkpoint{'' if step is None else f' of step {step}'}, found none")


def _set_aside(path: Path, damage: str) -> None:
    """Renames a damaged checkpoint."""
    target = next(
        target
        for number in itertools.count(1)
        if not (target := Path(f"{path}.damaged{'' if number == 1 else f'-{number}'}")).exists()
    )
    try:
        path.rename(target)
    except OSError as error:
        raise InputError(f"{path}: {damage}, and it cannot be set aside ({error.strerror})") from None
    _log.warning("%s: checkpoint set aside: %s", target, damage)


@contextlib.contextmanager
def _copy(path: Path) -> Iterator[Path]:
    """Yields a copy of a checkpoint, which a training cannot delete meanwhile."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(shutil.copytree(path, Path(directory, path.name)))


def _restore(path: Path, place: Path, like: TrainState) -> TrainState:
    """Restores an intact checkpoint ``path`` whose files lie at ``place``."""
    try:
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            _check_fits(path, handler.metadata(place / "default"), like)
            abstract = jax.tree.map(_abstract, like)
            state: TrainState = handler.restore(place / "default", args=ocp.args.StandardRestore(abstract))
            return state
    except InputError:
        raise
    except Exception as error:  # Orbax has no specific error
        raise InputError(f"{path}: cannot be restored: {one_line(error)}") from None


def find_checkpoints(directory: str | os.PathLike[str]) -> Path:
    """Returns the directory of the checkpoints, given that directory or the run directory."""
    inside = Path(directory) / "checkpoints"
    return inside if inside.is_dir() else Path(directory)


def read_progress(directory: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """Returns the ``progress`` saved with a checkpoint; empty if there is none."""
    return dict(_read_metrics(find_checkpoints(directory), step).get(_PROGRESS) or {})


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Returns the steps of the complete checkpoints, in order; none if there is no such directory."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if re.fullmatch("0|[1-9][0-9]{0,18}", path.name))


def _rank(metrics: Mapping[str, float]) -> float:
    return metrics[_RANKED_BY]


def _read_rank(directory: Path, step: int) -> float:
    rank = _read_metrics(directory, step).get(_RANKED_BY)
    return rank if isinstance(rank, int | float) and rank >= -1 else -1.0


def _read_metrics(directory: Path, step: int) -> dict[str, Any]:
    try:
        return dict(read_json(directory / str(step) / "metrics" / "metrics"))
    except (OSError, TypeError, ValueError):
        return {}


def _checksums(path: Path) -> dict[str, int]:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != _CHECKSUMS)
    return {file.relative_to(path).as_posix(): zlib.crc32(file.read_bytes()) for file in files}


def _find_damage(path: Path) -> str | None:
    """Describes the damage of a checkpoint, or returns None; Orbax misses some damage, and its messages are long."""
    try:
        saved = {**read_json(path / _CHECKSUMS)}
        found = _checksums(path)
    except FileNotFoundError:
        return f"it has no {_CHECKSUMS}: it is unfinished, or not by this library"
    except (OSError, TypeError, ValueError) as error:
        return f"{_CHECKSUMS} or a file that it names cannot be read ({error})"
    if not saved:
        return f"{_CHECKSUMS} is damaged"
    damaged = sorted(name for name in saved if saved[name] != found.get(name))  # other files are no damage
    return f"{ascii(damaged[0])[1:-1][:80]} is damaged" if damaged else None


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])  # shapes have none
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


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
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"
