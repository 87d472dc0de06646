"""Trains many models in one compiled program, over seeds and hyperparameters.

    population = train_population(config, seeds=range(8), hyperparameters={"learning_rate": rates})
    population = train_population(config, seeds=range(8), examples=mask)     # bool[8, N]: each on its own examples
    population.validation_accuracy[-1]                          # float64[M], after the last epoch
    ensemble_probabilities(population.logits(dataset.test))     # float32[N, K]

Member i is the run with seed number i and value number i of each hyperparameter: initialisation, shuffling, dropout
and augmentation use its own key. The devices of the run, ``config.num_devices``, or as many of them as divide M, train
their share of the members without communication; all members of a device share its copy of the data.

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
from mnist_jax.core.epoch import count_steps
from mnist_jax.core.evaluation import choose_batch_size
from mnist_jax.core.population import evaluate_population, pad_subsets, subset_order
from mnist_jax.core.state import TrainState
from mnist_jax.data import Dataset, Split, load_dataset
from mnist_jax.data.subset import take_examples
from mnist_jax.errors import InputError
from mnist_jax.training import processes
from mnist_jax.training.build import build_state, check_batch_size
from mnist_jax.training.devices import choose_devices
from mnist_jax.training.epochs import ChunkedEpoch
from mnist_jax.training.kept import choose_kept
from mnist_jax.training.memory import explain_out_of_memory
from mnist_jax.training.optimizer import build_optimizer
from mnist_jax.training.privacy import PoissonOrder, prepare_privacy


@dataclasses.dataclass(frozen=True)
class Population:
    """Holds M models, trained together.

    Attributes:
        config: the config that the members share.
        seeds: M seeds.
        hyperparameters: M values for each name.
        states: the states of the members; each array has a leading axis of length M.
        validation_loss: ``float64[epochs, M]``, after each epoch; NaN for a member that diverged.
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
        """Returns the state of one member, on one device, with its hyperparameters in ``opt_state``."""
        state: TrainState = jax.tree.map(lambda leaf: leaf[index], self.states)
        return jax.device_put(state, jax.devices()[0])

    def logits(self, split: Split) -> jax.Array:
        """Returns the logits of each member for each example, ``float32[M, N, K]``, as in ``evaluate_dataset``."""
        return evaluate_population(self.states, split, choose_batch_size(split))[1]


def train_population(
    config: TrainConfig,
    seeds: Sequence[int],
    hyperparameters: Mapping[str, Sequence[float]] | None = None,
    dataset: Dataset | None = None,
    before_epoch: Callable[[int], object] | None = None,
    examples: np.typing.ArrayLike | None = None,
) -> Population:
    """Trains M models together, each for ``config.epochs``; does not use the test split.

    Args:
        config: the config that the members share.
        seeds: M seeds in [0, 2**32); they replace ``config.seed``.
        hyperparameters: M values for each name, which replace those of ``config``: learning_rate, weight_decay,
            momentum, b1 and b2, if the optimizer has them. A schedule keeps its shape. Other fields change the program,
            so models that differ in them need separate populations.
        dataset: default the one that ``config`` names.
        before_epoch: called before each epoch with its number, from 1; it may raise to stop.
        examples: ``bool[M, N]``, the training examples of each member; None for all. An epoch has as many steps as the
            member with most examples needs; the last steps of a member with fewer have a gradient of 0.

    Returns:
        The population. A member that diverges continues with NaN and does not affect the others.

    Raises:
        InputError: a seed, name or value is invalid, a hyperparameter does not have M values, a member has no examples,
            or the device ran out of memory.

    Example:
        >>> config = TrainConfig(data="digits", hidden_sizes=(8,), epochs=1)
        >>> population = train_population(config, [0, 1, 2], {"learning_rate": [1e-3, 3e-3, 1e-2]})
        >>> population.validation_accuracy.shape, int(population.member(2).step)
        ((1, 3), 11)
    """
    seeds = tuple(seeds)
    member_values = {name: tuple(values) for name, values in (hyperparameters or {}).items()}
    if config.stream:
        raise InputError("stream has no effect on a population, whose data is in memory: leave it out")
    if dataset is None:
        dataset = load_dataset(config.data, data_dir=config.data_dir, num_validation=config.num_validation)
    if (kept := choose_kept(config, dataset, None)) is not None:
        dataset = take_examples(dataset, kept)
    check_batch_size(config, dataset)
    subset = None if examples is None else _check_examples(np.asarray(examples), len(seeds), dataset, config.batch_size)
    if processes.count() > 1:
        raise InputError(f"a population is trained by one process, got {processes.count()}")
    devices = choose_devices(config.num_devices)
    if config.dp_clip is not None and examples is not None:
        raise InputError("examples has no effect on private training, which samples from all examples: leave it out")
    privacy = prepare_privacy(config, dataset.train.num_examples)
    if privacy is not None:
        config = dataclasses.replace(config, dp_noise=privacy.noise_multiplier)
        spent = privacy.epsilon(config.epochs * count_steps(dataset.train.num_examples, config.batch_size))
        if config.dp_epsilon is not None and spent > config.dp_epsilon:
            raise InputError(
                f"dp_epsilon must be at least {spent:.3f}, that of {config.epochs} epochs with dp_noise "
                f"{config.dp_noise:.4g}, got {config.dp_epsilon}"
            )
    with explain_out_of_memory(lambda: "train fewer members at a time"):
        return _train(config, seeds, member_values, dataset, devices, before_epoch, subset)


def _train(
    config: TrainConfig,
    seeds: tuple[int, ...],
    member_values: Mapping[str, tuple[float, ...]],
    dataset: Dataset,
    devices: Sequence[jax.Device],
    before_epoch: Callable[[int], object] | None,
    subset: np.ndarray | None,
) -> Population:
    num_examples = dataset.train.num_examples if subset is None else subset.shape[1]
    steps_per_epoch = count_steps(num_examples, config.batch_size)
    tx = build_optimizer(config, config.epochs * steps_per_epoch, tuple(member_values))
    _check_members(config, seeds, member_values)

    sharded, replicated = _choose_shardings(len(seeds), devices)
    train, validation = jax.device_put((dataset.train, dataset.validation), replicated)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    arrays = {name: jnp.asarray(values, jnp.float32) for name, values in member_values.items()}
    # Fields that do not affect the states are reset, so that the program is reused.
    fields: dict[str, Any] = dict.fromkeys(("data", "data_dir", "keep_hardest", "scores", "workdir", "num_devices"))
    shared = dataclasses.replace(config, **fields, resume=False, seed=0, epochs=1)
    states = _create(shared, tx, dataset.num_classes, sharded, keys, arrays)
    epochs = _create_epochs(config, states, train, None if subset is None else jax.device_put(subset, sharded))
    history = []
    for epoch in range(config.epochs):
        if before_epoch is not None:
            before_epoch(epoch + 1)
        for chunk in epochs.run(states, epoch * steps_per_epoch):
            states = chunk.state
        history.append(jax.device_get(evaluate_population(states, validation, choose_batch_size(validation))[0]))
    return Population(
        config,
        seeds,
        member_values,
        states,
        validation_loss=np.stack([metrics.loss_sum / metrics.count for metrics in history]),
        validation_accuracy=np.stack([metrics.correct / metrics.count for metrics in history]),
    )


def _check_examples(mask: np.ndarray, num_members: int, dataset: Dataset, batch_size: int) -> np.ndarray:
    """Returns the indices of the examples of each member, ``int32[M, n]``, padded with -1."""
    shape = (num_members, dataset.train.num_examples)
    if mask.dtype != bool or mask.shape != shape:
        raise InputError(f"examples must be bool{list(shape)}, got {mask.dtype}{list(mask.shape)}")
    for member in np.flatnonzero(~mask.any(axis=1)):
        raise InputError(f"examples must have at least one example for each member, got none for member {member}")
    subset = pad_subsets(mask)
    if batch_size > subset.shape[1]:
        raise InputError(f"batch_size must be at most the {subset.shape[1]} examples of a member, got {batch_size}")
    return subset


def _create_epochs(config: TrainConfig, states: TrainState, train: Split, subset: jax.Array | None) -> ChunkedEpoch:
    """Returns the epochs of all members; each may have its own examples, and in private training its own batches."""
    options: dict[str, Any] = {"population": True}
    if subset is not None:
        order_fn = functools.partial(subset_order, subset=subset)
        options |= {"order_fn": order_fn, "has_gaps": bool((subset < 0).any())}
    if config.dp_clip is None:
        return ChunkedEpoch(states, train, config.batch_size, **options)
    order = PoissonOrder(config.batch_size)

    @functools.partial(jax.jit, static_argnames="num_examples")
    def sample(states: TrainState, epoch: jax.Array | int, num_examples: int) -> jax.Array:
        return jax.vmap(lambda key: order(key, epoch, num_examples))(states.key)

    size = order.max_batch_size(train.num_examples)
    return ChunkedEpoch(states, train, size, population=True, order_fn=sample, has_gaps=True)


def _check_members(
    config: TrainConfig, seeds: tuple[int, ...], hyperparameters: Mapping[str, tuple[float, ...]]
) -> None:
    if config.record:
        raise InputError("record has no effect on a population: leave it out")
    if config.early_stopping is not None:
        raise InputError(f"early_stopping has no effect on a population: leave it out, got {config.early_stopping}")
    if not seeds:
        raise InputError("seeds must have at least one seed, got none")
    for name, values in hyperparameters.items():
        if len(values) != len(seeds):
            raise InputError(f"{name} must have a value for each of the {len(seeds)} seeds, got {len(values)}")
    for index, seed in enumerate(seeds):
        member: dict[str, Any] = {name: values[index] for name, values in hyperparameters.items()}
        dataclasses.replace(config, seed=seed, **member)  # checks the values


def _choose_shardings(num_members: int, devices: Sequence[jax.Device]) -> tuple[NamedSharding, NamedSharding]:
    """Chooses the shardings of arrays with a leading member axis, and of arrays that all members share."""
    used = max(number for number in range(1, len(devices) + 1) if num_members % number == 0)
    devices = devices[:used]
    mesh = jax.make_mesh((len(devices),), ("member",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec("member")), NamedSharding(mesh, PartitionSpec())


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _create(
    config: TrainConfig,
    tx: optax.GradientTransformation,
    num_classes: int,
    sharding: NamedSharding,
    keys: jax.Array,
    values: Mapping[str, jax.Array],
) -> TrainState:
    """Creates the members on the devices that train them."""

    def create(key: jax.Array, values: Mapping[str, jax.Array]) -> TrainState:
        state = build_state(config, key=key, tx=tx, num_classes=num_classes)
        return state.replace(opt_state=state.opt_state._replace(hyperparams=values)) if values else state

    states: TrainState = jax.lax.with_sharding_constraint(jax.vmap(create)(keys, values), sharding)
    return states
