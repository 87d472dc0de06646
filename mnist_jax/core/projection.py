"""Computes random projections of the gradient of each example, and dot products of gradients.

    projected = per_example_projected_gradients(state, dataset.train, jax.random.key(0))   # float32[N, 512]
    similarity = gradient_similarity(state, some, others)                                  # float32[N, M]

Dot products of projections estimate those of gradients, without bias. Each parameter is projected on its own, and the
projections are added, so the N gradients never exist together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mnist_jax.core.checks import check_split
from mnist_jax.core.factors import Where, example_gradients, parameter_names, select_parameters
from mnist_jax.core.layer_rules import Factors, Gradient
from mnist_jax.core.per_example import Sharding, choose_gradient_batch_size, map_batches
from mnist_jax.core.sharding import on_any_mesh
from mnist_jax.core.state import TrainState
from mnist_jax.data.dataset import Split

_SKETCH_COST = 16  # of an entry, in multiplications


def per_example_projected_gradients(
    state: TrainState,
    split: Split,
    key: jax.Array,
    size: int = 512,
    batch_size: int | None = None,
    *,
    where: Where = None,
    sharding: Sharding | None = None,
) -> jax.Array:
    """Projects the loss gradient of each example to ``size`` numbers, by a random linear map.

    The dot product of two projections has the dot product of the gradients as its mean over keys, and a standard
    deviation of at most ``sqrt(8 / size)`` times the product of their norms. The map depends on the key and the shapes
    alone, so projections at several checkpoints, of several splits and batch sizes belong together; those of several
    ``where`` add up to that of all.

    A kernel whose gradient is a sum of few outer products is projected by random vectors on both sides, so that its
    gradient is never formed; other gradients are formed for ``batch_size`` examples, and their entries are added up in
    ``size`` random groups with random signs. Memory: that of :func:`mnist_jax.per_example_gradient_norms`, and
    ``4 * size`` bytes for each example and each row and column of a kernel.

    Args:
        state: the state to evaluate.
        split: N examples.
        key: PRNG key of the projection.
        size: k, numbers per example.
        batch_size: examples at a time; the last batch is padded. Default 256 for each device, or 32 on CPU.
        where: the parameters: the first names of their path, such as ``"Dense_1"`` or ``"Dense_1/kernel"``; a predicate
            of the path; or None for all.
        sharding: sharding of the batch axis on a mesh, as for :func:`mnist_jax.evaluate_dataset`.

    Returns:
        ``float32[N, k]``.

    Raises:
        ValueError: the split is empty or wrong, ``batch_size`` or ``size`` is below 1, or ``where`` selects no
            parameter.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> per_example_projected_gradients(state, load_dataset("digits").test, jax.random.key(1), 64).shape
        (297, 64)

    Reference: Charikar et al., "Finding Frequent Items in Data Streams", 2002 (random groups and signs); Choe et al.,
    "What is Your Data Worth to GPT?", https://arxiv.org/abs/2405.13954 (both sides of a kernel).
    """
    check_split(state.recipe, split)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    names = select_parameters(state.params, where)
    return _map_projections(
        state, split, key, names, size, choose_gradient_batch_size(split, batch_size, sharding), sharding
    )


@functools.partial(jax.jit, static_argnames=("names", "size", "batch_size", "sharding"))
@on_any_mesh
def _map_projections(
    state: TrainState,
    split: Split,
    key: jax.Array,
    names: tuple[str, ...],
    size: int,
    batch_size: int,
    sharding: Sharding | None,
) -> jax.Array:
    def gradients(image: jax.Array, label: jax.Array) -> dict[str, Gradient]:
        return example_gradients(state, state.eval_params, image, label, names)

    some = Split(*(jnp.asarray(each)[:1] for each in split))
    shapes = jax.eval_shape(gradients, *some)
    keys = {name: jax.random.fold_in(key, index) for index, name in enumerate(parameter_names(state.params))}
    # Drawn once, outside the loop over batches.
    maps = {name: _draw_map(shape, keys[name], size) for name, shape in shapes.items()}

    def of_batch(image: jax.Array, label: jax.Array) -> jax.Array:
        return jnp.asarray(sum(maps[name](each).astype(jnp.float32) for name, each in gradients(image, label).items()))

    return map_batches(of_batch, split, batch_size, sharding)


def _draw_map(shape: Gradient, key: jax.Array, size: int) -> Callable[[Gradient], jax.Array]:
    """Draws the projection ``[B, ...] -> [B, size]`` of a gradient with given shapes."""
    group_key, sign_key = jax.random.split(key)
    if isinstance(shape, Factors):
        (_, num_positions, rows), (_, _, columns) = shape.inputs.shape, shape.outputs.shape
        num_entries = rows * columns
        if num_positions * (rows + columns) * size <= (num_positions + _SKETCH_COST) * num_entries:
            left = jax.random.rademacher(group_key, (rows, size), jnp.float32) / size**0.5
            right = jax.random.rademacher(sign_key, (columns, size), jnp.float32)

            def on_both_sides(each: Gradient) -> jax.Array:
                assert isinstance(each, Factors)
                return jnp.sum((each.inputs @ left) * (each.outputs @ right), axis=1)

            return on_both_sides
    else:
        num_entries = shape.size // shape.shape[0]
    num_entries = -(-num_entries // size) * size  # padded to groups of equal size
    group = jax.random.permutation(group_key, num_entries)
    sign = jax.random.rademacher(sign_key, (num_entries, 1), jnp.float32)

    def sketch(each: Gradient) -> jax.Array:
        formed = _flatten(each).T
        padded = jnp.pad(formed, ((0, num_entries - formed.shape[0]), (0, 0)))
        return jnp.sum((padded[group] * sign).reshape(-1, size, formed.shape[1]), axis=0).T

    return sketch


def _flatten(gradient: Gradient) -> jax.Array:
    """Returns gradients as rows, ``float32[B, entries]``."""
    formed = gradient.form() if isinstance(gradient, Factors) else gradient
    return formed.reshape(formed.shape[0], -1).astype(jnp.float32)


def gradient_similarity(
    state: TrainState,
    split: Split,
    other: Split | None = None,
    batch_size: int | None = None,
    *,
    where: Where = None,
    sharding: Sharding | None = None,
) -> jax.Array:
    """Computes the dot products of the loss gradients of examples, exactly.

    The gradients of the first split are computed again for each batch of the second. Memory: twice that of
    :func:`mnist_jax.per_example_gradient_norms`, and the result.

    Args:
        state: the state to evaluate.
        split: N examples.
        other: M examples, the shorter split of the two; None takes ``split`` itself, which gives the Gram matrix.
        batch_size: examples of each split at a time; the last batch is padded. Default 256 for each device, or 32 on
            CPU.
        where: the parameters: the first names of their path, such as ``"Dense_1"`` or ``"Dense_1/kernel"``; a predicate
            of the path; or None for all.
        sharding: sharding of the batch axis on a mesh, as for :func:`mnist_jax.evaluate_dataset`.

    Returns:
        ``float32[N, M]``.

    Raises:
        ValueError: a split is empty or wrong, ``batch_size`` is below 1, or ``where`` selects no parameter.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, Split, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), jax.random.key(0))
        >>> image, label = load_dataset("digits").test
        >>> gradient_similarity(state, Split(image, label), Split(image[:5], label[:5])).shape
        (297, 5)
    """
    splits = split, split if other is None else other
    for each in splits:
        check_split(state.recipe, each)
    names = select_parameters(state.params, where)
    sizes = tuple(choose_gradient_batch_size(each, batch_size, sharding) for each in splits)
    return _map_similarity(state, *splits, names, sizes, sharding)


@functools.partial(jax.jit, static_argnames=("names", "batch_sizes", "sharding"))
@on_any_mesh
def _map_similarity(
    state: TrainState,
    split: Split,
    other: Split,
    names: tuple[str, ...],
    batch_sizes: tuple[int, int],
    sharding: Sharding | None,
) -> jax.Array:
    def gradients(image: jax.Array, label: jax.Array) -> dict[str, Gradient]:
        return example_gradients(state, state.eval_params, image, label, names)

    def of_other(image: jax.Array, label: jax.Array) -> jax.Array:
        second = gradients(image, label)

        def of_batch(image: jax.Array, label: jax.Array) -> jax.Array:
            first = gradients(image, label)
            return jnp.asarray(sum(_dot(first[name], second[name]) for name in names))

        return map_batches(of_batch, split, batch_sizes[0], sharding).T

    return map_batches(of_other, other, batch_sizes[1], sharding).T


def _dot(one: Gradient, other: Gradient) -> jax.Array:
    """Returns the dot products of two batches of gradients, ``float32[B, C]``."""
    if isinstance(one, Factors) and isinstance(other, Factors) and one.inputs.shape[1] == 1:
        inputs, outputs = (x[:, 0] @ y[:, 0].T for x, y in zip(one, other, strict=True))
        return (inputs * outputs).astype(jnp.float32)
    return _flatten(one) @ _flatten(other).T
