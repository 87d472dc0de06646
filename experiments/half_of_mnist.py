"""How much accuracy does half of MNIST cost, if the half is chosen by how hard its images are?

Run it with ``python experiments/half_of_mnist.py --data path/to/mnist --seeds 0-4 --results found.json``.

On 2 cores of an AMD EPYC (Zen 5), both also busy, over 5 seeds: 99.41 ± 0.04 % on the test split with all images, 99.42
± 0.05 % with the hardest half, 99.31 ± 0.03 % with a random half. The hardest half loses -0.01 ± 0.06 points, a random
one 0.10 ± 0.04.

The score is EL2N, the mean error of the probabilities of five models after one epoch on all training images, with other
seeds (Paul et al., https://arxiv.org/abs/2107.07075). The half with the highest scores is kept, or a random half.
Models of halves are trained for twice the epochs, so for as many steps as the model of all images.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
from experiment import cleaned_accuracy, load_data, main, train

from mnist_jax import TrainConfig, preset

CLAIM = "a half chosen by score loses less than a random half; less than 0.1 points to reach"
TARGETS = {"hardest_half_test_accuracy": 0.9931}  # all images: 99.41 %
CONFIG = dataclasses.replace(preset("fast"), epochs=3)
NUM_SCORING = 5  # models


def keep_hardest(score: np.ndarray, fraction: float = 0.5) -> np.ndarray:
    """Returns ``bool[N]``: the examples with the highest scores, ``float[N]``."""
    kept = np.zeros(len(score), bool)
    kept[np.argsort(-score, kind="stable")[: round(fraction * len(score))]] = True
    return kept


def measure(config: TrainConfig) -> dict[str, Any]:
    """Trains on all images, on the hardest half and on a random half."""
    from mnist_jax import Evaluation, el2n, ensemble_probabilities, train_population

    run, data = train(config), load_data(config)
    seeds = [2**31 + NUM_SCORING * config.seed + index for index in range(NUM_SCORING)]
    scoring = train_population(dataclasses.replace(config, epochs=1), seeds, dataset=data)
    score = np.asarray(el2n(scoring.logits(data.train), data.train.label))
    random = np.random.default_rng(config.seed).random(len(score))
    masks = np.stack([keep_hardest(score), keep_hardest(random)])
    longer = dataclasses.replace(config, epochs=2 * config.epochs)
    population = train_population(longer, [config.seed] * 2, dataset=data, examples=masks)
    summary = {**run.summary, **cleaned_accuracy(run.test)}
    for name, split in (("validation", data.validation), ("test", data.test)):
        for half, logits in zip(("hardest", "random"), population.logits(split), strict=True):
            evaluation = Evaluation.from_probabilities(np.asarray(ensemble_probabilities(logits[None])), split.label)
            summary[f"{half}_half_{name}_accuracy"] = evaluation.accuracy
            summary[f"{half}_half_{name}_lost"] = run.summary[f"{name}_accuracy"] - evaluation.accuracy
    found = ", ".join(f"{half} half {summary[f'{half}_half_test_accuracy']:.2%}" for half in ("hardest", "random"))
    print(f"seed {config.seed}: all {run.summary['test_accuracy']:.2%}, {found}", flush=True)
    return summary


if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__, measure=measure))
