"""Measures how uncertain an ensemble is about each example, and how well a score finds strange examples.

uncertainty = Uncertainty.compute(population.logits(dataset.test))     # float32[M, N, K]
uncertainty.entropy, uncertainty.mutual_information                    # float32[N] each, in nats
out_of_distribution_auroc(uncertainty.mutual_information, of_other_images.mutual_information)
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr, rel_entr

from mnist_jax.core.population import ensemble_probabilities


class Uncertainty(flax.struct.PyTreeNode):
    """Holds three measures of the uncertainty of an ensemble about each example; each is 0 if the ensemble is certain.

    Attributes:
        entropy: ``float32[N]``, entropy of the mean probabilities, in nats: ambiguous and unfamiliar images.
        mutual_information: ``float32[N]``, part of the entropy that is due to the disagreement of the members, in nats:
            unfamiliar images. 0 for a single member.
        variance: ``float32[N]``, variance of the probabilities over the members, summed over the classes.

    Reference: Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning" (BALD),
    https://arxiv.org/abs/1112.5745; ensembles, Lakshminarayanan et al., https://arxiv.org/abs/1612.01474.

    Example:
        >>> agree, disagree = [[9.0, 0.0], [9.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]]
        >>> logits = jnp.stack([jnp.array(agree), jnp.array(disagree)], axis=1)  # [M, N, K]
        >>> Uncertainty.compute(logits).mutual_information.round(2).tolist()
        [0.0, 0.6899999976158142]
    """

    entropy: jax.Array
    mutual_information: jax.Array
    variance: jax.Array

    @classmethod
    def compute(cls, logits: jax.typing.ArrayLike) -> Uncertainty:
        """Computes the uncertainty of M members.

        Args:
            logits: ``float[M, N, K]``, as from ``Population.logits``.

        Raises:
            ValueError: the logits have another rank, or there are no members.

        Example:
            >>> Uncertainty.compute(jnp.zeros((3, 5, 10))).entropy.shape
            (5,)
        """
        logits = jnp.asarray(logits, jnp.float32)
        if logits.ndim != 3 or not logits.shape[0]:
            raise ValueError(f"logits must be float[M, N, K] of at least one member, got shape {list(logits.shape)}")
        members, mean = jax.nn.softmax(logits, axis=-1), ensemble_probabilities(logits)
        divergence = jnp.mean(jnp.sum(rel_entr(members, mean[None]), axis=-1), axis=0)
        return cls(
            entropy=jnp.sum(entr(mean), axis=-1),
            mutual_information=jnp.maximum(divergence, 0),  # rounding
            variance=jnp.sum(jnp.var(members, axis=0), axis=-1),
        )


def out_of_distribution_auroc(scores_in: np.typing.ArrayLike, scores_out: np.typing.ArrayLike) -> float:
    """Returns the probability that an example from outside a distribution has a higher score than one from inside.

    This is the area under the ROC curve: 1 if the score separates the two, 0.5 if it does not tell them apart. Equal
    scores count as a half.

    Args:
        scores_in: ``float[N]``, scores of examples like those of training.
        scores_out: ``float[M]``, scores of other examples.

    Raises:
        ValueError: one of them is empty, has another rank or contains NaN.

    Reference: Hendrycks and Gimpel, https://arxiv.org/abs/1610.02136.

    Example:
        >>> out_of_distribution_auroc([0.1, 0.2, 0.3], [0.3, 0.9])
        0.9166666666666666
    """
    arrays = {name: np.asarray(values) for name, values in (("scores_in", scores_in), ("scores_out", scores_out))}
    for name, array in arrays.items():
        if array.ndim != 1 or not array.size or np.isnan(array).any():
            raise ValueError(f"{name} must be numbers [N] without NaN, at least one, got {_describe(array)}")
    inside, outside = np.sort(arrays["scores_in"]), arrays["scores_out"]
    below, up_to = (np.searchsorted(inside, outside, side).sum(dtype=np.int64) for side in ("left", "right"))
    return float((below + up_to) / (2 * len(inside) * len(outside)))


def _describe(array: np.ndarray) -> str:
    return "NaN" if array.ndim == 1 and array.size else f"shape {list(array.shape)}"
