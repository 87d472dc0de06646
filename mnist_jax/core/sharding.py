"""Spreads batches over the devices of a mesh: constraints that leave every number as it is.

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    state, split = jax.device_put((state, split), NamedSharding(mesh, PartitionSpec()))   # a copy on each device
    state, metrics = train_epoch(state, split, 128, sharding=NamedSharding(mesh, PartitionSpec("data")))

Each device gathers and computes its share of a batch, and XLA adds up the gradients. A batch that the number of devices
does not divide is padded and masked by XLA, so batch norm and dropout do not depend on that number either.
"""

from __future__ import annotations

from typing import TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

T = TypeVar("T")


def shard(tree: T, sharding: jax.sharding.Sharding | None) -> T:
    """Constrains the first axis of each array, the examples, to a sharding; None leaves the arrays as they are."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def replicate(tree: T, sharding: jax.sharding.Sharding | None) -> T:
    """Constrains each array to be whole on every device of the mesh of ``sharding``; None leaves them as they are."""
    if not isinstance(sharding, NamedSharding):
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(sharding.mesh, PartitionSpec()))
