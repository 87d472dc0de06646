"""Chooses the devices of a run, and how its batches are spread over them.

    sharding = choose_sharding(num_devices=4)       # NamedSharding over an Auto mesh with one axis, "data"
    split = put_everywhere(dataset.train, sharding)
    state, metrics = train_epoch(state, split, 128, sharding=sharding)

One device needs no mesh: the sharding is None, and the programs are those of a single device.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mnist_jax.errors import InputError
from mnist_jax.training import processes

T = TypeVar("T")


def check_device() -> None:
    """Checks that JAX has a device: ``--device`` or ``$JAX_PLATFORMS`` may name a platform that is not there.

    Raises:
        InputError: it has none.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).split("\n")[0].split(" (set ")[0] or "no NVIDIA GPU is visible"
        platforms = jax.config.jax_platforms or "any platform"
        raise InputError(
            f"device: expected a device of {platforms}, found none ({reason}); install JAX for it, or use --device cpu"
        ) from None


def choose_devices(num_devices: int | None) -> list[jax.Device]:
    """Returns the devices of a run, as many of each process.

    Args:
        num_devices: their number over all processes; None takes all GPUs or TPUs, but one CPU of each process.

    Raises:
        InputError: there are fewer devices, or the processes cannot have as many each.
    """
    if num_devices is not None and num_devices < 1:
        raise InputError(f"num_devices must be at least 1, got {num_devices}")
    check_device()
    num_processes = jax.process_count()
    by_process = [jax.local_devices(process_index=index) for index in range(num_processes)]
    fewest = min(map(len, by_process))
    if num_devices is None:
        each = 1 if jax.default_backend() == "cpu" else fewest
    elif num_devices % num_processes:
        raise InputError(f"num_devices must be a multiple of the {num_processes} processes, got {num_devices}")
    else:
        each = num_devices // num_processes
    if each > fewest:
        per_process = f" of each of {num_processes} processes" if num_processes > 1 else ""
        advice = f"; JAX_NUM_CPU_DEVICES={each} divides a CPU into {each}" if jax.default_backend() == "cpu" else ""
        raise InputError(
            f"num_devices must be at most {fewest * num_processes}, as JAX has {fewest} {jax.default_backend()} "
            f"device{'s' * (fewest != 1)}{per_process}, got {num_devices}{advice}"
        )
    return [device for devices in by_process for device in devices[:each]]


def choose_sharding(num_devices: int | None) -> NamedSharding | None:
    """Returns the sharding of a batch over the devices of :func:`choose_devices`; None for a single device."""
    devices = choose_devices(num_devices)
    if len(devices) == 1:
        return None
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    if processes.count() > 1:
        with processes.silent_stdout():
            _connect(sharding)
    return sharding


def _connect(sharding: NamedSharding) -> None:
    """Makes the devices of several processes connect: as Orbax connects them, and as training does."""
    multihost_utils.sync_global_devices("connect")
    ones = jax.make_array_from_callback((sharding.num_devices,), sharding, lambda index: np.ones(1, np.float32))
    jax.block_until_ready(jax.jit(jnp.sum)(ones))


def everywhere(sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding of an array that is whole on each device of the mesh of ``sharding``."""
    return NamedSharding(sharding.mesh, PartitionSpec())


def put_everywhere(tree: T, sharding: NamedSharding | None) -> T:
    """Copies arrays of this process to each device of a mesh; without a mesh, to the default device.

    All processes must have the same arrays; nothing is sent between them.
    """
    if sharding is None:
        return jax.device_put(tree)
    whole = everywhere(sharding)

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jax.make_array_from_process_local_data(whole, np.asarray(x))

    return jax.tree.map(put, tree)


def shapes_everywhere(tree: T, sharding: NamedSharding | None) -> T:
    """Returns shapes that say that the arrays are whole on each device of a mesh; without a mesh, the shapes given."""
    if sharding is None:
        return tree
    whole = everywhere(sharding)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree)
