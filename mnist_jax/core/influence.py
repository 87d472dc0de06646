"""Estimates how each training example influences the loss of other examples.

    scores = influence_scores(states, learning_rates, dataset.train, queries)    # float32[N, M], exact TracIn

    features = influence_features([state], [1.0], dataset.train, key)            # float32[N, k], once
    queried = influence_features([state], [1.0], queries, key)
    scores = features @ queried.T                                                # TracIn, estimated, at once
    scores = precondition_features(features) @ queried.T                         # what leaving an example out would do

A step of gradient descent on a training example changes the loss of another one by the learning rate times the dot
product of their gradients; TracIn adds this up over checkpoints. A positive score: training on the example lowered the
loss of the query (it helps); a negative one: it raised it (it opposes). Leaving an example out of a whole training is
predicted much better with the inverse curvature between the two gradients: ``experiments/influence.py`` compares them.

Reference: Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent",
https://arxiv.org/abs/2002.08484; Koh & Liang, "Understanding Black-box Predictions via Influence Functions",
https://arxiv.org/abs/1703.04730; Park et al., "TRAK", https://arxiv.org/abs/2303.14186 (with random projections).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mnist_jax.core.factors import Where
from mnist_jax.core.per_example import Sharding
from mnist_jax.core.projection import gradient_similarity, per_example_projected_gradients
from mnist_jax.core.state import TrainState
from mnist_jax.data.dataset import Split


def influence_scores(
    states: Sequence[TrainState],
    learning_rates: Sequence[float],
    split: Split,
    queries: Split,
    batch_size: int | None = None,
    *,
    where: Where = None,
    sharding: Sharding | None = None,
) -> jax.Array:
    """Computes the influence of N training examples on the loss of M queries, from exact gradients.

    It takes a forward and backward pass over the training examples for each checkpoint and each batch of queries.

    Args:
        states: checkpoints of one run, C of them.
        learning_rates: C weights: the learning rate at each checkpoint.
        split: N training examples.
        queries: M examples, with the labels whose loss is explained.
        batch_size: examples at a time, see :func:`mnist_jax.gradient_similarity`.
        where: the parameters to take into account, see :func:`mnist_jax.per_example_gradients`.
        sharding: sharding of the batch axis on a mesh.

    Returns:
        ``float32[N, M]``; positive where training on the example lowered the loss of the query.

    Raises:
        ValueError: there is no checkpoint, or not one learning rate for each; or as for
            :func:`mnist_jax.gradient_similarity`.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, Split, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0))
        >>> image, label = load_dataset("digits").test
        >>> influence_scores([state], [0.1], Split(image, label), Split(image[:3], label[:3])).shape
        (297, 3)

    Reference: Pruthi et al., https://arxiv.org/abs/2002.08484.
    """
    _check(states, learning_rates)
    scores = [
        rate * gradient_similarity(state, split, queries, batch_size, where=where, sharding=sharding)
        for state, rate in zip(states, learning_rates, strict=True)
    ]
    return jnp.sum(jnp.stack(scores), axis=0)


def influence_features(
    states: Sequence[TrainState],
    learning_rates: Sequence[float],
    split: Split,
    key: jax.Array,
    size: int = 512,
    batch_size: int | None = None,
    *,
    where: Where = None,
    sharding: Sharding | None = None,
) -> jax.Array:
    """Computes features of examples whose dot products estimate :func:`influence_scores`.

    They are the projected gradients at each checkpoint, times the square root of its learning rate. Those of the
    training examples are computed once; each query then takes one backward pass per checkpoint and one product.

    Args:
        states: checkpoints of one run, C of them.
        learning_rates: C weights, at least 0: the learning rate at each checkpoint.
        split: N examples: training examples, or queries with the labels whose loss is explained.
        key: PRNG key of the projection, the same for both.
        size: k, numbers per checkpoint; the standard deviation of a dot product of gradients is at most
            ``sqrt(8 / k)`` times the product of their norms.
        batch_size: examples at a time, see :func:`mnist_jax.per_example_projected_gradients`.
        where: the parameters to take into account, see :func:`mnist_jax.per_example_gradients`.
        sharding: sharding of the batch axis on a mesh.

    Returns:
        ``float32[N, C * k]``.

    Raises:
        ValueError: there is no checkpoint, or not one learning rate for each; or as for
            :func:`mnist_jax.per_example_projected_gradients`.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> state = create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0))
        >>> influence_features([state], [0.1], load_dataset("digits").test, jax.random.key(1), 64).shape
        (297, 64)

    Reference: Pruthi et al., https://arxiv.org/abs/2002.08484.
    """
    _check(states, learning_rates)
    keys = [jax.random.fold_in(key, index) for index in range(len(states))]
    features = [
        rate**0.5 * per_example_projected_gradients(state, split, key, size, batch_size, where=where, sharding=sharding)
        for state, rate, key in zip(states, learning_rates, keys, strict=True)
    ]
    return jnp.concatenate(features, axis=1)


@functools.partial(jax.jit, static_argnames="relative")
def precondition_features(features: jax.typing.ArrayLike, damping: float = 1e-3, relative: bool = False) -> jax.Array:
    """Multiplies features of the training examples by the inverse of their damped second moment.

    The second moment of the gradients, the empirical Fisher matrix, stands for the curvature of the mean loss. Dot
    products with the features of queries then estimate, up to a factor, how much the loss of a query would rise if the
    training example were left out and the model trained again.

    Args:
        features: ``float32[N, k]`` of all training examples, from :func:`influence_features`, best at the last
            checkpoint alone; N should be larger than k.
        damping: added to the diagonal of the matrix, as a share of its trace.
        relative: divide by the influence of each example on the whole model, the square root of the dot product of its
            two rows. This ranks examples that are close to the query above outliers that influence everything.

    Returns:
        ``float32[N, k]``: ``features @ inv(features.T @ features + damping * trace * identity)``.

    Example:
        >>> import numpy as np
        >>> precondition_features(np.random.default_rng(0).normal(size=(100, 8))).shape
        (100, 8)

    Reference: Koh & Liang, https://arxiv.org/abs/1703.04730; Park et al., https://arxiv.org/abs/2303.14186; relative:
    Barshan et al., "RelatIF", https://arxiv.org/abs/2003.11630.
    """
    features = jnp.asarray(features, jnp.float32)
    moment = features.T @ features
    damped = moment + damping * jnp.trace(moment) * jnp.eye(len(moment))
    found = jax.scipy.linalg.solve(damped, features.T, assume_a="pos").T
    if relative:
        found /= jnp.sqrt(jnp.sum(found * features, axis=1, keepdims=True) + 1e-38)
    return found


def _check(states: Sequence[TrainState], learning_rates: Sequence[float]) -> None:
    if not states or len(states) != len(learning_rates):
        raise ValueError(
            f"learning_rates must have one number for each of at least one checkpoint, got {len(learning_rates)} for "
            f"{len(states)}"
        )
