"""Many models in one compiled program: ``jax.vmap`` over seeds and hyperparameters; and what they say together.

    population = train_population(config, seeds=range(8), hyperparameters={"learning_rate": rates})
    population.validation_accuracy[-1]                          # float64[M], after the last epoch
    ensemble_probabilities(population.logits(dataset.test))     # float32[N, K]

Member i is the run of seed i and hyperparameters i: it is initialised, shuffles, drops out and augments by its own key.
All members share the data, which lies on the device once. Where there are several devices, and the members can be dealt
out evenly, each device trains its share; nothing passes between them.

Shape letter of this file: M members.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mnist_jax.config import TrainConfig
from mnist_jax.core.evaluation import choose_batch_size, evaluate_arrays
from mnist_jax.core.state import TrainState
from mnist_jax.core.steps import Metrics, train_epoch
from mnist_jax.data import Dataset, Split, load_dataset
from mnist_jax.errors import InputError
from mnist_jax.training.build import build_state, check_batch_size
from mnist_jax.training.optimizer import build_optimizer

# The same object for the same run, so that what was compiled for one population serves the next.
_build_optimizer = functools.cache(build_optimizer)


@dataclasses.dataclass(frozen=True)
class Population:
    """M trained models.

    Attributes:
        config: what they have in common.
        seeds: M seeds.
        hyperparameters: from a name to M values.
        states: their states, each array with an axis of length M in front.
        validation_loss: ``float64[epochs, M]``, after each epoch; NaN where a member diverged.
        validation_accuracy: ``float64[epochs, M]``, in [0, 1].

    Example:
        >>> config = TrainConfig(data="digits", hidden_sizes=(8,), epochs=1)
        >>> population = train_population(config, [0, 1, 2], {"learning_rate": [1e-3, 3e-3, 1e-2]})
        >>> population.logits(load_dataset("digits").test).shape
        (3, 297, 10)
    """

    config: TrainConfig
    seeds: tuple[int, ...]
    hyperparameters: Mapping[str, tuple[float, ...]]
    states: TrainState
    validation_loss: np.ndarray
    validation_accuracy: np.ndarray

    def member(self, index: int) -> TrainState:
        """The state of one member, on one device; its optimizer's state holds its hyperparameters."""
        state: TrainState = jax.tree.map(lambda leaf: leaf[index], self.states)
        return jax.device_put(state, jax.devices()[0])

    def logits(self, split: Split) -> jax.Array:
        """What each member makes of each example, ``float32[M, N, K]``, evaluated as in ``evaluate_dataset``."""
        return _evaluate(self.states, split, choose_batch_size(split))[1]


def train_population(
    config: TrainConfig,
    seeds: Sequence[int],
    hyperparameters: Mapping[str, Sequence[float]] | None = None,
    dataset: Dataset | None = None,
    before_epoch: Callable[[int], object] | None = None,
) -> Population:
    """Trains M models side by side, each for ``config.epochs``; the test split is not looked at.

    Args:
        config: what the members have in common.
        seeds: M seeds in [0, 2**32), in place of ``config.seed``.
        hyperparameters: M values by name, in place of those of ``config``: learning_rate, weight_decay, momentum, b1
            and b2, as far as the optimizer uses them. A schedule keeps its shape. Other fields change the program: they
            need a population of their own.
        dataset: default the one that ``config`` names.
        before_epoch: called with the number of each epoch, from 1, before it begins; it may raise to stop.

    Returns:
        The population. A member that diverges goes on with NaN; the others are not touched by it.

    Raises:
        InputError: a seed, name or value is not as above, or there are not M of them.

    Example:
        >>> config = TrainConfig(data="digits", hidden_sizes=(8,), epochs=1)
        >>> population = train_population(config, [0, 1, 2], {"learning_rate": [1e-3, 3e-3, 1e-2]})
        >>> population.validation_accuracy.shape, int(population.member(2).step)
        ((1, 3), 11)
    """
    seeds = tuple(seeds)
    held = {name: tuple(values) for name, values in (hyperparameters or {}).items()}
    if dataset is None:
        dataset = load_dataset(config.data, data_dir=config.data_dir, num_validation=config.num_validation)
    check_batch_size(config, dataset)
    num_train = dataset.train.num_examples
    tx = _build_optimizer(config, config.epochs * -(-num_train // config.batch_size), tuple(held))
    _check_members(config, seeds, held)

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    values = {name: jnp.asarray(values, jnp.float32) for name, values in held.items()}
    on_each, on_all = _choose_shardings(len(seeds))
    states = jax.device_put(_create(config, tx, keys, values), on_each)
    train, validation = jax.device_put((dataset.train, dataset.validation), on_all)
    history = []
    for epoch in range(1, config.epochs + 1):
        if before_epoch is not None:
            before_epoch(epoch)
        states = _train_epoch(states, train, config.batch_size)
        history.append(jax.device_get(_evaluate(states, validation, choose_batch_size(validation))[0]))
    return Population(
        config,
        seeds,
        held,
        states,
        validation_loss=np.stack([metrics.loss_sum / metrics.count for metrics in history]),
        validation_accuracy=np.stack([metrics.correct / metrics.count for metrics in history]),
    )


def ensemble_probabilities(logits: jax.typing.ArrayLike) -> jax.Array:
    """What the members say together: the mean of their probabilities.

    Another model can learn from it in place of labels, which is distillation (https://arxiv.org/abs/1503.02531).

    Args:
        logits: ``float[M, N, K]``.

    Returns:
        ``float32[N, K]``, each row adds up to 1.

    Example:
        >>> from mnist_jax import MLP, create_train_state, train_step
        >>> probabilities = ensemble_probabilities(np.random.default_rng(0).normal(size=(3, 5, 10)))
        >>> student = create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0))
        >>> batch = {"image": np.zeros((5, 28, 28, 1), np.uint8), "label": probabilities}
        >>> student, metrics = train_step(student, batch)
        >>> int(metrics.count)
        5
    """
    return jnp.mean(jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1), axis=0)


def _check_members(
    config: TrainConfig, seeds: tuple[int, ...], hyperparameters: Mapping[str, tuple[float, ...]]
) -> None:
    if not seeds:
        raise InputError("seeds must be at least one, got none")
    for name, values in hyperparameters.items():
        if len(values) != len(seeds):
            raise InputError(f"{name} must have a value for each of the {len(seeds)} seeds, got {len(values)}")
    for index, seed in enumerate(seeds):
        own: dict[str, Any] = {name: values[index] for name, values in hyperparameters.items()}
        dataclasses.replace(config, seed=seed, **own)  # which checks them


def _choose_shardings(num_members: int) -> tuple[NamedSharding, NamedSharding]:
    """For arrays with a member axis in front, and for what all members share."""
    devices = jax.devices()
    if num_members % len(devices):
        devices = devices[:1]
    mesh = jax.make_mesh((len(devices),), ("member",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec("member")), NamedSharding(mesh, PartitionSpec())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _create(
    config: TrainConfig, tx: optax.GradientTransformation, keys: jax.Array, values: Mapping[str, jax.Array]
) -> TrainState:
    def create(key: jax.Array) -> TrainState:
        state = build_state(config, key=key)
        return state.replace(tx=tx, opt_state=tx.init(state.params))

    states = jax.vmap(create)(keys)
    return states.replace(opt_state=states.opt_state._replace(hyperparams=values)) if values else states


@functools.partial(jax.jit, static_argnames="batch_size")
def _train_epoch(states: TrainState, split: Split, batch_size: int) -> TrainState:
    return jax.vmap(lambda state: train_epoch(state, split, batch_size)[0])(states)


@functools.partial(jax.jit, static_argnames="batch_size")
def _evaluate(states: TrainState, split: Split, batch_size: int) -> tuple[Metrics, jax.Array]:
    return jax.vmap(lambda state: evaluate_arrays(state, split, batch_size))(states)
