"""Scores each training example by many models: how hard it is, and what it changes in other predictions.

    el2n(population.logits(split), split.label)       # float32[N], early in training
    grand(population.states, split)                   # float32[N]
    memorisation(correct, mask)                       # float32[N], from members that are trained on random subsets
    subset_influence(correct_on_test, mask)           # float32[N, T]

Shape letters of this file: M members, N training examples, T other examples.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mnist_jax.core.gradient_norms import per_example_gradient_norms
from mnist_jax.core.state import TrainState
from mnist_jax.data.dataset import Split


def el2n(logits: jax.typing.ArrayLike, label: jax.typing.ArrayLike) -> jax.Array:
    """Returns the EL2N score: the mean over the members of the L2 norm of the error of the probabilities.

    Args:
        logits: ``float[M, N, K]`` of models that were trained for a few epochs.
        label: ``int[N]``, true classes.

    Returns:
        ``float32[N]``, in [0, sqrt(2)]; a harder example has a higher score.

    Raises:
        ValueError: the shapes do not match.

    Reference: Paul et al., "Deep Learning on a Data Diet", https://arxiv.org/abs/2107.07075.

    Example:
        >>> logits = jnp.array([[[9.0, 0.0], [0.0, 0.0]]])  # one member
        >>> el2n(logits, jnp.array([0, 0])).round(2).tolist()
        [0.0, 0.7099999785423279]
    """
    logits, label = jnp.asarray(logits, jnp.float32), jnp.asarray(label)
    if logits.ndim != 3 or label.shape != logits.shape[1:2]:
        raise ValueError(
            f"expected logits float[M, N, K] and label int[N], got shapes {list(logits.shape)} and {list(label.shape)}"
        )
    error = jax.nn.softmax(logits, axis=-1) - jax.nn.one_hot(label, logits.shape[-1])[None]
    return jnp.mean(jnp.linalg.norm(error, axis=-1), axis=0)


@jax.jit
def grand(states: TrainState, split: Split) -> jax.Array:
    """Returns the GraNd score: the mean over the members of the L2 norm of the gradient of the loss.

    Args:
        states: states of M members, as from ``Population.states``: each array has a leading axis.
        split: N examples.

    Returns:
        ``float32[N]``; a harder example has a higher score.

    Reference: Paul et al., "Deep Learning on a Data Diet", https://arxiv.org/abs/2107.07075. The score of states before
    training is not reliable: Kirsch, https://arxiv.org/abs/2303.14753.

    Example:
        >>> import optax
        >>> from mnist_jax import MLP, create_train_state, load_dataset
        >>> create = lambda key: create_train_state(MLP(hidden_sizes=(8,)), optax.adam(1e-3), key)
        >>> states = jax.vmap(create)(jax.random.split(jax.random.key(0), 3))
        >>> grand(states, load_dataset("digits").test).shape
        (297,)
    """
    # One member after the other, so that the gradients of only one are in memory.
    norms: jax.Array = jax.lax.map(lambda state: per_example_gradient_norms(state, split), states)
    return jnp.mean(norms, axis=0)


def subset_influence(correct: jax.typing.ArrayLike, mask: jax.typing.ArrayLike) -> jax.Array:
    """Estimates how training on one example changes the predictions of others, from models of random subsets.

    Args:
        correct: ``bool[M, T]``, whether each member classifies each of T examples correctly; or ``float[M, T]``, such
            as the probability of the true class, which needs fewer members.
        mask: ``bool[M, N]``, the training examples of each member, see :func:`mnist_jax.train_population`.

    Returns:
        ``float32[N, T]``: the mean of ``correct`` over the members with a training example, minus the mean over those
        without it. A row is NaN if all members or none have the example.

    Raises:
        ValueError: the shapes do not match.

    Reference: Feldman and Zhang, "What Neural Networks Memorize and Why", https://arxiv.org/abs/2008.03703.

    Example:
        >>> mask = jnp.array([[True, False], [False, False]])  # two members, two training examples
        >>> subset_influence(jnp.array([[True], [False]]), mask).tolist()
        [[1.0], [nan]]
    """
    values, member = _check(correct, mask)
    product = jnp.matmul(member.T, values, precision="highest")
    count, total = member.sum(axis=0)[:, None], values.sum(axis=0)
    return product / count - (total[None] - product) / (len(member) - count)


def memorisation(correct: jax.typing.ArrayLike, mask: jax.typing.ArrayLike) -> jax.Array:
    """Estimates how much each training example must be seen to be predicted, from models of random subsets.

    Args:
        correct: ``bool[M, N]``, whether each member classifies each training example correctly; or ``float[M, N]``, see
            :func:`subset_influence`.
        mask: ``bool[M, N]``, the training examples of each member.

    Returns:
        ``float32[N]``: the mean of ``correct`` over the members with the example, minus the mean over those without it.
        NaN if all members or none have it. 1 for an example that is predicted only if it was seen.

    Raises:
        ValueError: the shapes do not match.

    Reference: Feldman and Zhang, "What Neural Networks Memorize and Why", https://arxiv.org/abs/2008.03703.

    Example:
        >>> mask = jnp.array([[True, False], [False, True]])
        >>> memorisation(mask, mask).tolist(), memorisation(~mask | mask, mask).tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    values, member = _check(correct, mask)
    if values.shape != member.shape:
        raise ValueError(
            f"correct and mask must have the same shape, got {list(values.shape)} and {list(member.shape)}"
        )
    product, count = jnp.sum(member * values, axis=0), member.sum(axis=0)
    return product / count - (values.sum(axis=0) - product) / (len(member) - count)


def _check(correct: jax.typing.ArrayLike, mask: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Returns both as float32, after checking that they are of the same members."""
    values, member = jnp.asarray(correct), jnp.asarray(mask)
    if member.dtype != bool or values.ndim != 2 or member.ndim != 2 or len(values) != len(member):
        raise ValueError(
            "expected correct [M, T] and mask bool[M, N] of the same members, got "
            f"{values.dtype}{list(values.shape)} and {member.dtype}{list(member.shape)}"
        )
    return values.astype(jnp.float32), member.astype(jnp.float32)
