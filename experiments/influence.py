"""Do influence scores predict what happens if a training example is left out?

Run it with ``python experiments/influence.py --data path/to/mnist --seeds 0-4``.

On 2 busy cores of an AMD EPYC (Zen 5): rank correlation 0.670 ± 0.105 with the true change over 5 seeds (0.54 to 0.83),
from 10 s a seed on quiet cores.

Each seed draws 500 training images, 50 of them to leave out, and 100 test images. An MLP with 32 hidden units takes 100
steps of gradient descent on all 500 images, and on all but each of the 50: 51 models at once, with masks, so that no
difference comes from the order of the images; losses are means over three initial parameters. The table has Spearman's
rank correlation, over the 50 images, of the change of the mean loss of the 100 test images with the mean score, and
the mean over test images of the correlation with the change of its own loss; mean ± std over the 5 seeds.

| score | of the mean loss | of the loss of one image |
|---|---|---|
| TracIn, 10 checkpoints, exact | 0.27 ± 0.28 | 0.09 |
| TracIn, last layer | 0.23 ± 0.29 | 0.07 |
| last checkpoint, exact | 0.16 ± 0.27 | 0.08 |
| last checkpoint, 512 random projections | 0.17 ± 0.29 | 0.09 |
| the same with inverse curvature: ``precondition_features`` | 0.67 ± 0.10 | 0.38 |
| the same, relative, as ``explain`` shows it | 0.58 ± 0.09 | 0.35 |

So the curvature matters, not the number of checkpoints: dot products alone are led by images with large gradients. With
2,048 projections one initialisation reaches 0.76 and 0.43, with exact gradients 0.75 and 0.53.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import sys
import time
from importlib.metadata import version
from typing import Any

from experiment import load_data, main

from mnist_jax import TrainConfig

CLAIM = "rank correlation 0.3 with the true change; 0.6 to reach"
TARGETS = {"rank_correlation": 0.6}
# Each step takes all ``batch_size`` training examples.
CONFIG = TrainConfig(
    hidden_sizes=(32,),
    dropout_rate=0.0,
    optimizer="sgd",
    learning_rate=0.2,
    ema_decay=None,
    batch_size=500,
    epochs=100,
)
NUM_REMOVED, NUM_QUERIES, NUM_CHECKPOINTS, NUM_REPEATS = 50, 100, 10, 3


def measure_influence(config: TrainConfig) -> dict[str, Any]:
    """Trains with all examples and without each of 50, and correlates the change of test losses with scores."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from scipy.stats import spearmanr

    from mnist_jax import (
        Split,
        build_state,
        count_parameters,
        evaluate_dataset,
        influence_features,
        influence_scores,
        per_example_losses,
        precondition_features,
        train_step,
    )

    start_time = time.perf_counter()
    dataset, rng = load_data(config), np.random.default_rng(config.seed)

    def draw(split: Split, size: int) -> Split:
        index = rng.choice(split.num_examples, min(size, split.num_examples), replace=False)
        return Split(split.image[index], split.label[index])

    train, queries = draw(dataset.train, config.batch_size), draw(dataset.test, NUM_QUERIES)
    removed = np.arange(NUM_REMOVED)  # of an order that is random
    masks = np.ones((1 + NUM_REMOVED, train.num_examples), bool)  # the first model has all examples
    masks[1 + removed, removed] = False
    num_steps = max(1, config.epochs // NUM_CHECKPOINTS)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_all(states: Any, train: Split, masks: jax.Array) -> Any:
        """Takes ``num_steps`` steps with each model, all of them on all examples of its mask."""

        def train_one(state: Any, mask: jax.Array) -> Any:
            def step(_: Any, state: Any) -> Any:
                return train_step(state, {"image": train.image, "label": train.label, "mask": mask})[0]

            return jax.lax.fori_loop(0, num_steps, step, state)

        return jax.vmap(train_one)(states, masks)

    changes, scores, train_seconds = [], {}, 0.0
    for repeat in range(NUM_REPEATS):
        state = build_state(dataclasses.replace(config, seed=NUM_REPEATS * config.seed + repeat), config.epochs)
        states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(masks)), state)
        checkpoints = []
        for _ in range(min(NUM_CHECKPOINTS, config.epochs)):
            checkpoints.append(jax.tree.map(lambda leaf: leaf[0].copy(), states))
            part_start = time.perf_counter()
            states = jax.block_until_ready(train_all(states, train, masks))
            train_seconds += time.perf_counter() - part_start
        last = jax.tree.map(lambda leaf: leaf[0], states)
        losses = np.asarray(jax.jit(jax.vmap(lambda each: per_example_losses(each, queries)))(states), np.float64)
        changes.append(losses[1:] - losses[0])  # [removed, queries], positive where the example helped
        examples = Split(train.image[removed], train.label[removed])
        rates, key = [1.0] * len(checkpoints), jax.random.key(repeat)
        features = [influence_features([last], [1.0], each, key) for each in (train, queries)]
        found = {
            "TracIn": influence_scores(checkpoints, rates, examples, queries),
            "TracIn, last layer": influence_scores(checkpoints, rates, examples, queries, where="Dense_1"),
            "last checkpoint": influence_scores([last], [1.0], examples, queries),
            "last checkpoint, projected": features[0][:NUM_REMOVED] @ features[1].T,
            "with curvature": precondition_features(features[0])[:NUM_REMOVED] @ features[1].T,
            "with curvature, relative": (
                precondition_features(features[0], relative=True)[:NUM_REMOVED] @ features[1].T
            ),
        }
        for name, each in found.items():
            scores.setdefault(name, []).append(np.asarray(each, np.float64))

    change = np.mean(changes, axis=0)
    correlations = {}
    for name, each in scores.items():
        score = np.mean(each, axis=0)
        of_mean = spearmanr(score.mean(axis=1), change.mean(axis=1)).statistic
        of_each = np.mean([spearmanr(score[:, j], change[:, j]).statistic for j in range(change.shape[1])])
        correlations[name] = {"of_the_mean_loss": float(of_mean), "of_the_loss_of_a_query": float(of_each)}
        print(f"seed {config.seed}  {name:<27}{of_mean:6.3f} of the mean loss, {of_each:5.3f} of the loss of a query")
    device = jax.devices()[0]
    evaluation = evaluate_dataset(last, dataset.test)
    validation = evaluate_dataset(last, dataset.validation)
    return {
        "dataset": dataset.name,
        "seed": config.seed,
        "num_parameters": count_parameters(state.params),
        "rank_correlation": correlations["with curvature"]["of_the_mean_loss"],
        "correlations": correlations,
        "validation_accuracy": validation.accuracy,
        "test_accuracy": evaluation.accuracy,
        "device": {"platform": device.platform, "kind": device.device_kind, "count": 1},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "seconds": {"train": train_seconds, "total": time.perf_counter() - start_time},
    }


if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__, measure=measure_influence))
