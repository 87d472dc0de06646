"""Populations are many states in one program, by ``jax.vmap``; an ensemble averages their probabilities.

    states = jax.vmap(create)(keys)                                  # each array gets a leading axis M
    order = population_order(states, epoch, num_examples)            # int32[M, N], one per member
    order = subset_order(states, epoch, num_examples, subset=pad_subsets(mask))   # only the examples of each member
    states, metrics, nonfinite = population_steps(states, split, order, batch_size, start, num_steps)
    metrics, logits = evaluate_population(states, split, batch_size)
    ensemble_probabilities(logits)                                   # float32[N, K]

All members share the data, and train on all of it or each on a part. Shape letter: M members.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.core.epoch import epoch_order, loop_steps
from mnist_jax.core.evaluation import evaluate_arrays
from mnist_jax.core.metrics import Metrics
from mnist_jax.core.state import TrainState
from mnist_jax.data.dataset import Split


@functools.partial(jax.jit, static_argnames="num_examples")
def population_order(states: TrainState, epoch: jax.Array | int, num_examples: int) -> jax.Array:
    """Returns the order of an epoch for each member, ``int32[M, N]``: see :func:`mnist_jax.epoch_order`."""
    return jax.vmap(lambda key: epoch_order(key, epoch, num_examples))(states.key)


def pad_subsets(mask: np.ndarray) -> np.ndarray:
    """Returns the indices that are True in each row of ``bool[M, N]``, padded with -1: ``int32[M, n]``."""
    subsets = [np.flatnonzero(row) for row in mask]
    padded = np.full((len(subsets), max(map(len, subsets))), -1, np.int32)
    for row, subset in zip(padded, subsets, strict=True):
        row[: len(subset)] = subset
    return padded


@functools.partial(jax.jit, static_argnames="num_examples")
def subset_order(states: TrainState, epoch: jax.Array | int, num_examples: int, subset: jax.Array) -> jax.Array:
    """Returns the order of an epoch for members with training examples of their own, ``int32[M, n]``.

    A member with all of ``n`` examples has ``subset[epoch_order(key, epoch, n)]``; with fewer, -1 comes last.

    Args:
        states: states of M members.
        epoch: number of the epoch, from 0.
        num_examples: not used.
        subset: indices of the examples of each member, ``int32[M, n]``, from :func:`pad_subsets`.
    """
    del num_examples

    def order(key: jax.Array, subset: jax.Array) -> jax.Array:
        shuffled = subset[epoch_order(key, epoch, subset.shape[0])]
        return shuffled[jnp.argsort(shuffled < 0)]  # is stable

    return jax.vmap(order)(states.key, subset)


def population_steps(
    states: TrainState,
    split: Split,
    order: jax.Array,
    batch_size: int,
    start: jax.Array | int,
    num_steps: jax.Array | int,
    total: Metrics | None = None,
    has_gaps: bool = False,
) -> tuple[TrainState, Metrics, jax.Array]:
    """Runs :func:`mnist_jax.train_steps` for each member, each in its own order, ``int32[M, n]``.

    The metrics ``[M]`` of the steps are added to ``total``, those of the epoch so far; None starts from zero. With
    ``has_gaps``, entries of an order may be -1, for no example: see :func:`mnist_jax.core.epoch.loop_steps`.
    """

    def steps(state: TrainState, order: jax.Array, total: Metrics | None) -> tuple[TrainState, Metrics, jax.Array]:
        return loop_steps(state, split, order, batch_size, start, num_steps, total=total, has_gaps=has_gaps)

    return jax.vmap(steps)(states, order, total)


@functools.partial(jax.jit, static_argnames="batch_size")
def evaluate_population(states: TrainState, split: Split, batch_size: int) -> tuple[Metrics, jax.Array]:
    """Evaluates each member: returns metrics ``[M]``, and logits ``float32[M, N, K]``."""
    return jax.vmap(lambda state: evaluate_arrays(state, split, batch_size))(states)


def ensemble_probabilities(logits: jax.typing.ArrayLike) -> jax.Array:
    """Returns the probabilities of an ensemble, the mean of its members' softmax.

    They can be the labels of another model, which is distillation (https://arxiv.org/abs/1503.02531).

    Args:
        logits: ``float[M, N, K]``.

    Returns:
        ``float32[N, K]``; each row sums to 1.

    Example:
        >>> import numpy as np, optax
        >>> from mnist_jax import MLP, create_train_state, train_step
        >>> probabilities = ensemble_probabilities(np.random.default_rng(0).normal(size=(3, 5, 10)))
        >>> student = create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0))
        >>> batch = {"image": np.zeros((5, 28, 28, 1), np.uint8), "label": probabilities}
        >>> student, metrics = train_step(student, batch)
        >>> int(metrics.count)
        5
    """
    return jnp.mean(jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1), axis=0)
