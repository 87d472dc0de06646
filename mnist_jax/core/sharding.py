"""Spreads batches over the devices of a mesh, which leaves every number as it is.

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    state, split = jax.device_put((state, split), NamedSharding(mesh, PartitionSpec()))   # a copy on each device
    state, metrics = train_epoch(state, split, 128, sharding=NamedSharding(mesh, PartitionSpec("data")))

Each device gathers and computes its share of a batch, and XLA adds up the gradients. A batch that the number of devices
does not divide is padded and masked by XLA, so batch norm and dropout do not depend on that number either.

The axes of the mesh may also be Explicit, the default of ``jax.make_mesh``: the steps then compute with Auto axes
inside (:func:`on_any_mesh`), and return arrays that are whole on every device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

P = ParamSpec("P")
T = TypeVar("T")


def shard(tree: T, sharding: jax.sharding.Sharding | None) -> T:
    """Constrains the first axis of each array, the examples, to a sharding; None leaves the arrays as they are."""
    if sharding is None:
        return tree
    if isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types:
        return jax.lax.with_sharding_constraint(tree, sharding.spec)  # of the Auto axes inside on_any_mesh
    return jax.lax.with_sharding_constraint(tree, sharding)


def replicate(tree: T, sharding: jax.sharding.Sharding | None) -> T:
    """Constrains each array to be whole on every device of the mesh of ``sharding``; None leaves them as they are."""
    if not isinstance(sharding, NamedSharding):
        return tree
    return shard(tree, NamedSharding(sharding.mesh, PartitionSpec()))


def on_any_mesh(function: Callable[P, T]) -> Callable[P, T]:
    """Lets a function under ``jit`` take arrays on a mesh with Explicit axes, for which models are not written."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        leaves, treedef = jax.tree.flatten((args, kwargs))
        arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
        meshes = [jax.typeof(array).sharding.mesh for array in arrays]
        mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
        if mesh is None:
            return function(*args, **kwargs)

        def call(arrays: list[Any]) -> T:
            rest = iter(arrays)
            merged = [next(rest) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
            args, kwargs = jax.tree.unflatten(treedef, merged)
            return function(*args, **kwargs)

        result: T = jax.sharding.auto_axes(call, out_sharding=NamedSharding(mesh, PartitionSpec()))(arrays)
        return result

    return wrapped
