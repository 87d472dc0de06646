import dataclasses

import jax
import numpy as np
import pytest
from conftest import assert_trees_close, make_split

from mnist_jax import (
    Dataset,
    InputError,
    Metrics,
    Split,
    TrainConfig,
    build_optimizer,
    build_state,
    ensemble_probabilities,
    epoch_order,
    evaluate_dataset,
    train_epoch,
    train_population,
    train_step,
    train_steps,
)
from mnist_jax.core.population import population_order
from mnist_jax.training.epochs import _population_steps
from mnist_jax.training.population import _choose_shardings, _create

pytestmark = pytest.mark.uses_adam

DATASET = Dataset(make_split(30), make_split(12, seed=1), make_split(103, seed=2), "some")
MLP = TrainConfig(hidden_sizes=(8,), batch_size=8, epochs=2, learning_rate=0.05, augment_erasing=0.5)
SGD = TrainConfig(
    hidden_sizes=(),
    optimizer="sgd",
    schedule="cosine",
    batch_size=8,
    epochs=2,
    dropout_rate=0.0,
    ema_decay=None,
    num_devices=2,
)
CNN = TrainConfig(model="cnn", channels=(2,), kernel_sizes=(3,), dense_size=0, batch_size=8, epochs=2, dropout_rate=0.0)
CNN = dataclasses.replace(CNN, optimizer="momentum", schedule="one_cycle", ema_decay=None)
SEEDS = (3, 2**32 - 1)


@pytest.fixture(scope="module")
def population():
    return train_population(MLP, SEEDS, dataset=DATASET)


@pytest.fixture(scope="module")
def plain_population():
    return train_population(SGD, SEEDS, {"learning_rate": (0.1, 0.05)}, DATASET)


def train_alone(config):
    """What a run of its own does, and the evaluation after each epoch."""
    state = build_state(config, num_steps=config.epochs * 4)
    evaluations = []
    for _ in range(config.epochs):
        state, _ = train_epoch(state, DATASET.train, config.batch_size)
        evaluations.append(evaluate_dataset(state, DATASET.validation))
    return state, evaluations


def check_member(population, index):
    own = {name: values[index] for name, values in population.hyperparameters.items()}
    expected, evaluations = train_alone(dataclasses.replace(population.config, seed=SEEDS[index], **own))
    found = population.member(index)
    # Adam turns the last bits of a small gradient into a step.
    assert_trees_close(found.params, expected.params, rtol=1e-3, atol=2e-5)
    assert_trees_close(found.ema_params, expected.ema_params, rtol=1e-3, atol=2e-5)
    assert found.step == expected.step
    losses, accuracies = ([getattr(each, name) for each in evaluations] for name in ("loss", "accuracy"))
    np.testing.assert_allclose(population.validation_loss[:, index], losses, rtol=1e-4)
    np.testing.assert_array_equal(population.validation_accuracy[:, index], accuracies)
    return found, expected


@pytest.mark.parametrize("index", [0, 1])
def test_a_member_is_the_run_of_its_seed(population, index):
    found, expected = check_member(population, index)
    assert jax.tree.structure(found.opt_state) == jax.tree.structure(expected.opt_state)  # an ordinary state


def test_a_member_is_the_run_of_its_hyperparameters():
    # The other optimizers and schedules: test_optim.py.
    held = {"learning_rate": (0.5, 0.1), "weight_decay": (0.1, 0.2), "momentum": (0.5, 0.8)}
    check_member(train_population(CNN, SEEDS, held, DATASET), 1)


def test_members_are_dealt_out_to_all_devices(plain_population):
    for leaf in jax.tree.leaves(plain_population.states):
        assert leaf.sharding.device_set == set(jax.devices())
        assert [shard.data.shape[0] for shard in leaf.addressable_shards] == [1, 1]
    order = population_order(plain_population.states, 0, DATASET.train.num_examples)
    total = Metrics(np.zeros(2, np.float32), np.zeros(2, np.int32), np.zeros(2, np.int32))  # on the host
    args = (plain_population.states, DATASET.train, order, SGD.batch_size, 0, 1, total)
    program = _population_steps.lower(*args).compile().as_text()
    assert not any(word in program for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))


def test_they_are_created_where_they_are_trained():
    keys = jax.numpy.stack([jax.random.key(seed) for seed in range(4)])
    sharding, _ = _choose_shardings(4, jax.devices())
    program = _create.lower(SGD, build_optimizer(SGD, 8), 10, sharding, keys, {}).compile()
    states = program(keys, {})
    kernel = states.params["Dense_0"]["kernel"]
    assert [shard.data.shape for shard in kernel.addressable_shards] == [(2, 784, 10)] * 2
    # No device ever holds all members: the program has no larger buffer.
    assert "f32[4,784,10]" not in program.as_text()


def test_where_they_cannot_be_dealt_out_they_are_on_one_device(plain_population):
    three = train_population(SGD, (*SEEDS, 2), {"learning_rate": (0.1, 0.05, 0.01)}, DATASET)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(three.states)} == {1}
    for index in range(2):
        found, expected = plain_population.member(index), three.member(index)
        assert found.params["Dense_0"]["kernel"].sharding.device_set == {jax.devices()[0]}
        assert_trees_close(found.params, expected.params)
    np.testing.assert_allclose(plain_population.validation_loss, three.validation_loss[:, :2], rtol=1e-4)


def test_the_next_population_needs_no_compilation(plain_population):
    for seeds in ((5, 6), (7, 8)):
        before = _population_steps._cache_size()
        train_population(SGD, seeds, {"learning_rate": (0.3, 0.2)}, DATASET)
    assert _population_steps._cache_size() == before


# In steps of 8: 3 each, then 2 and 3 with gaps at the end; DATASET has 30 training examples.
SUBSETS = {"equal": (20, 20), "one step, partly": (18, 23), "an empty step": (15, 23)}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        pytest.param(MLP, SUBSETS["an empty step"], id="mlp"),
        *(pytest.param(MLP, sizes, id=f"mlp, {name}", marks=pytest.mark.slow) for name, sizes in SUBSETS.items()),
        *(pytest.param(CNN, sizes, id=f"cnn, {name}", marks=pytest.mark.slow) for name, sizes in SUBSETS.items()),
    ],
)
def test_a_member_of_a_part_of_the_examples_is_the_run_on_that_part(config, sizes):
    rng = np.random.default_rng(0)
    mask = np.stack([rng.permutation(30) < size for size in sizes])
    population = train_population(config, SEEDS, dataset=DATASET, examples=mask)
    for index, size in enumerate(sizes):
        own = Split(*(leaf[mask[index]] for leaf in DATASET.train))
        state = build_state(dataclasses.replace(config, seed=SEEDS[index]), num_steps=3 * config.epochs)
        skipped = 3 - -(-size // 8)
        for epoch in range(config.epochs):
            order = epoch_order(state.key, epoch, size)
            state, metrics, _ = train_steps(state, own, order, 8, 0, 3 - skipped)
            assert metrics.count == size
            if skipped:  # an optimizer step with a gradient of 0
                batch = {name: leaf[:8] for name, leaf in own._asdict().items()}
                state, metrics = train_step(state, {**batch, "mask": np.zeros(8, bool)})
                assert metrics.count == 0
        found = population.member(index)
        assert found.step == state.step == 3 * config.epochs
        assert_trees_close(found.params, state.params, rtol=1e-3, atol=2e-5)
        evaluation = evaluate_dataset(state, DATASET.validation)
        np.testing.assert_allclose(population.validation_loss[-1, index], evaluation.loss, rtol=1e-4)


def test_parts_of_the_examples_are_dealt_out_to_all_devices():
    mask = np.arange(30) % 3 != np.arange(2)[:, None]
    population = train_population(SGD, SEEDS, dataset=DATASET, examples=mask)
    expected = train_population(dataclasses.replace(SGD, num_devices=1), SEEDS, dataset=DATASET, examples=mask)
    for leaf in jax.tree.leaves(population.states):
        assert leaf.sharding.device_set == set(jax.devices())
    assert_trees_close(population.member(1).params, expected.member(1).params)


def test_all_examples_are_the_run_without_a_mask(plain_population):
    rates = {"learning_rate": (0.1, 0.05)}
    population = train_population(SGD, SEEDS, rates, DATASET, examples=np.ones((2, 30), bool))
    assert_trees_close(population.member(1).params, plain_population.member(1).params)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (np.ones((2, 29), bool), r"examples must be bool\[2, 30\], got bool\[2, 29\]"),
        (np.ones((2, 30), int), r"examples must be bool\[2, 30\], got int64\[2, 30\]"),
        (
            np.arange(60).reshape(2, 30) < 30,
            "examples must have at least one example for each member, got none for member 1",
        ),
        (np.arange(30)[None].repeat(2, 0) < 7, "batch_size must be at most the 7 examples of a member, got 8"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(examples, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        train_population(SGD, SEEDS, dataset=DATASET, examples=examples)


def test_a_member_that_diverges_leaves_the_others_alone(plain_population):
    population = train_population(SGD, SEEDS, {"learning_rate": (1e38, 0.05)}, DATASET)
    assert np.isnan(population.validation_loss[:, 0]).all()
    np.testing.assert_array_equal(population.validation_loss[:, 1], plain_population.validation_loss[:, 1])


def test_logits_are_those_of_each_member(plain_population):
    logits = plain_population.logits(DATASET.test)  # 103 examples: no multiple of what is evaluated at a time
    assert logits.shape == (2, 103, 10)
    for index in range(2):
        expected = evaluate_dataset(plain_population.member(index), DATASET.test).logits
        np.testing.assert_allclose(logits[index], expected, rtol=1e-4, atol=1e-5)


def test_it_asks_before_each_epoch():
    epochs = []

    def ask(epoch):
        epochs.append(epoch)
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_population(SGD, SEEDS, {"learning_rate": (0.1, 0.05)}, DATASET, before_epoch=ask)
    assert epochs == [1, 2]


@pytest.mark.parametrize(
    ("seeds", "hyperparameters", "message"),
    [
        ((), {}, "seeds must have at least one seed, got none"),
        ((-1,), {}, "seed must be in [0, 2**32), got -1"),
        ((0, 1), {"learning_rate": (0.1,)}, "learning_rate must have a value for each of the 2 seeds, got 1"),
        ((0,), {"learning_rate": (0.0,)}, "learning_rate must be a finite number above 0, got 0.0"),
        ((0,), {"b1": (1.0,)}, "b1 must be in [0, 1), got 1.0"),
        (
            (0,),
            {"momentum": (0.5,)},
            "hyperparameters of adam must be some of learning_rate, weight_decay, b1, b2, got momentum",
        ),
        (
            (0,),
            {"dropout_rate": (0.5,)},
            "hyperparameters of adam must be some of learning_rate, weight_decay, b1, b2, got dropout_rate",
        ),
    ],
)
def test_a_population_that_cannot_be_is_refused(seeds, hyperparameters, message):
    with pytest.raises(InputError) as caught:
        train_population(MLP, seeds, hyperparameters, DATASET)
    assert str(caught.value) == message


def test_early_stopping_and_recording_are_refused():
    with pytest.raises(InputError, match="^early_stopping has no effect on a population: leave it out, got 3$"):
        train_population(dataclasses.replace(MLP, early_stopping=3), (0,), dataset=DATASET)
    with pytest.raises(InputError, match="^record has no effect on a population: leave it out$"):
        train_population(dataclasses.replace(MLP, record=True), (0,), dataset=DATASET)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="^batch_size must be at most the 30 training examples of some, got 31$"):
        train_population(dataclasses.replace(MLP, batch_size=31), (0,), dataset=DATASET)


def by_numpy(logits):
    exponentials = np.exp(np.float64(logits) - logits.max(axis=-1, keepdims=True))
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).mean(axis=0)


@pytest.mark.parametrize("scale", [1, 1e4])
def test_an_ensemble_says_the_mean_of_the_probabilities(scale):
    logits = (scale * np.random.default_rng(0).normal(size=(3, 5, 10))).astype(np.float32)
    found = ensemble_probabilities(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_numpy(logits), rtol=1e-5, atol=1e-7)


def test_a_student_learns_from_the_probabilities():
    config = TrainConfig(hidden_sizes=(), dropout_rate=0.0, optimizer="sgd", learning_rate=0.5, ema_decay=None)
    state = build_state(config)
    image = make_split(6).image
    target = ensemble_probabilities(np.random.default_rng(1).normal(size=(3, 6, 10)))
    x = image.reshape(6, -1) / np.float64(255)
    weights, bias = (np.asarray(state.params["Dense_0"][name], np.float64) for name in ("kernel", "bias"))
    probabilities = by_numpy((x @ weights + bias)[None])
    error = (probabilities - np.float64(target)) / 6

    state, metrics = train_step(state, {"image": image, "label": target})

    np.testing.assert_allclose(state.params["Dense_0"]["kernel"], weights - 0.5 * x.T @ error, atol=1e-6)
    np.testing.assert_allclose(state.params["Dense_0"]["bias"], bias - 0.5 * error.sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(metrics.loss_sum, -(np.float64(target) * np.log(probabilities)).sum(), rtol=1e-5)
    assert metrics.correct == (probabilities.argmax(axis=1) == np.asarray(target).argmax(axis=1)).sum()
