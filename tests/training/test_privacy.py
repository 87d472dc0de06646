"""Private training: clipping, noise, sampling, accounting, and what is refused."""

import dataclasses
import functools
import json
import math
import shutil
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_split
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mnist_jax import (
    CNN,
    MLP,
    Augmentation,
    InputError,
    PoissonOrder,
    Privacy,
    PrivateGradient,
    Split,
    TrainConfig,
    build_state,
    create_train_state,
    fit,
    load_dataset,
    load_run,
    loss_fn,
    per_example_losses,
    train_population,
    train_step,
)
from mnist_jax.core.epoch import loop_steps
from mnist_jax.training.epochs import ChunkedEpoch
from mnist_jax.training.privacy import prepare_privacy

pytest.importorskip("jax_privacy", reason="needs the extra privacy: pip install -e '.[privacy]'")

pytestmark = pytest.mark.uses_adam  # jax_privacy promotes dtypes, too

SPLIT = make_split(23)
BATCH = {"image": SPLIT.image, "label": SPLIT.label}
TINY = MLP(hidden_sizes=(4,), dropout_rate=0.0)


def make_private(gradient_fn, model=TINY, key=0, **options):
    return create_train_state(model, optax.sgd(1.0), jax.random.key(key), gradient_fn=gradient_fn, **options)


def gradient_of(state, batch, key=9):
    """The gradient, the metrics and the model state of a step."""
    return jax.jit(state.recipe.gradient_fn, static_argnums=0)(loss_fn, state, batch, jax.random.key(key))


def clipped_one_by_one(state, batch, clip_norm, rows):
    """The sum of the clipped gradients, by a loop in NumPy."""
    gradient = jax.jit(jax.grad(lambda params, one: loss_fn(params, state, one, None)[0]))
    total = jax.tree.map(lambda x: np.zeros(x.shape), state.params)
    for row in rows:
        one = {name: x[row : row + 1] for name, x in batch.items()}
        grads = gradient(state.params, one)
        norm = math.sqrt(sum(float(np.square(grad).sum()) for grad in jax.tree.leaves(grads)))
        scale = min(1.0, clip_norm / norm)
        total = jax.tree.map(lambda total, grad, scale=scale: total + scale * np.asarray(grad), total, grads)
    return total


@pytest.mark.parametrize(
    "microbatch_size", [None, 5, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 23, 100))]
)
def test_the_gradient_without_noise_is_that_of_a_loop(microbatch_size):
    """Half of the examples masked; the sum is divided by the expected batch size, whatever the actual one is."""
    state = make_private(PrivateGradient(2.0, 0.0, 20, microbatch_size))
    mask = np.arange(23) % 2 == 0
    grads, metrics, _ = gradient_of(state, {**BATCH, "mask": mask})
    expected = clipped_one_by_one(state, BATCH, 2.0, np.flatnonzero(mask))
    norms = [optax.tree.norm(clipped_one_by_one(state, BATCH, 2.0, [row])) for row in range(0, 23, 4)]
    assert min(norms) < 1.99 < max(norms)  # some are clipped and some are not
    assert_trees_close(grads, jax.tree.map(lambda x: x / 20, expected))
    _, (plain, _) = loss_fn(state.params, state, {**BATCH, "mask": mask})
    assert_trees_close(metrics, plain)
    assert int(metrics.count) == 12


def test_masked_examples_contribute_exactly_nothing():
    """Nor do their number and their values matter; with noise, the noise is left alone."""
    state = make_private(PrivateGradient(2.0, 1.0, 20, 5))
    none, metrics, _ = gradient_of(state, {**BATCH, "mask": np.zeros(23, bool)})
    assert (int(metrics.count), float(metrics.loss_sum)) == (0, 0.0)
    other = make_split(23, seed=7)
    again, _, _ = gradient_of(state, {"image": other.image, "label": other.label, "mask": np.zeros(23, bool)})
    assert_trees_equal(none, again)
    mask = np.arange(23) < 10
    kept = {**BATCH, "image": np.where(mask[:, None, None, None], SPLIT.image, other.image), "mask": mask}
    assert_trees_equal(gradient_of(state, kept)[0], gradient_of(state, {**BATCH, "mask": mask})[0])


def test_a_gradient_that_is_not_finite_does_not_pass():
    state = make_private(PrivateGradient(2.0, 0.0, 20))
    image = (SPLIT.image / 255).astype(np.float32)
    damaged = image.copy()
    damaged[3, 5] = np.nan
    masked = gradient_of(state, {**BATCH, "image": image, "mask": np.arange(23) != 3})[0]
    mask = np.ones(23, bool)
    assert_trees_equal(gradient_of(state, {**BATCH, "image": damaged, "mask": mask})[0], masked)


class Centred(nn.Module):
    """Subtracts the mean image of the batch."""

    @nn.compact
    def __call__(self, image):
        return nn.Dense(10)((image - image.mean(axis=0, keepdims=True)).reshape(image.shape[0], -1))


@pytest.mark.slow
def test_no_model_mixes_examples():
    """An example contributes the same whatever the others are, even in a model that looks at the whole batch."""
    state = make_private(PrivateGradient(2.0, 0.0, 20), Centred())
    alone = jax.tree.map(np.add, *(gradient_of(state, {**BATCH, "mask": np.arange(23) == row})[0] for row in (2, 5)))
    both = gradient_of(state, {**BATCH, "mask": np.isin(np.arange(23), (2, 5))})[0]
    assert_trees_close(both, alone)


def test_the_noise_has_the_stated_standard_deviation():
    state = make_private(PrivateGradient(0.5, 3.0, 20))
    quiet = make_private(PrivateGradient(0.5, 0.0, 20))
    noise = jax.tree.map(np.subtract, gradient_of(state, BATCH)[0], gradient_of(quiet, BATCH)[0])
    values = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(noise)])
    assert len(values) == 3190
    # The standard error of the estimate is 1.3 %, that of the mean 1.8 % of the standard deviation.
    np.testing.assert_allclose(values.std(), 0.5 * 3.0 / 20, rtol=0.05)
    assert abs(values.mean()) < 0.07 * 0.5 * 3.0 / 20
    again, other = gradient_of(state, BATCH)[0], gradient_of(state, BATCH, key=10)[0]
    assert_trees_equal(again, gradient_of(state, BATCH)[0])
    assert not np.array_equal(again["Dense_0"]["kernel"], other["Dense_0"]["kernel"])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.slow
def test_members_of_a_population_have_noise_of_their_own(impl):
    """And with the default keys, the noise that each has alone."""
    state = make_private(PrivateGradient(1.0, 1.0, 20))
    keys = jax.random.split(jax.random.key(5, impl=impl), 2)
    states = jax.vmap(lambda key: state.replace(key=key))(keys)
    nothing = {**BATCH, "mask": np.zeros(23, bool)}
    after, _ = jax.vmap(lambda state: train_step(state, nothing))(states)
    noise = after.params["Dense_0"]["kernel"] - states.params["Dense_0"]["kernel"]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1
    if impl == "threefry2x32":
        for member in (0, 1):
            alone, _ = train_step(state.replace(key=keys[member]), nothing)
            assert_trees_close(jax.tree.map(lambda x, member=member: x[member], after.params), alone.params)


@pytest.mark.slow
def test_each_example_has_its_own_dropout_and_augmentation():
    """Two equal images in a batch get different gradients; the metrics see the same."""
    model = MLP(hidden_sizes=(16,), dropout_rate=0.5)
    state = make_private(PrivateGradient(100.0, 0.0, 1), model, augment=Augmentation(shift=3.0))
    same = {"image": np.repeat(SPLIT.image[:1], 2, 0), "label": np.repeat(SPLIT.label[:1], 2)}
    one, two = (gradient_of(state, {**same, "mask": np.arange(2) == row})[0] for row in (0, 1))
    assert not np.allclose(one["Dense_0"]["kernel"], two["Dense_0"]["kernel"])


class Normalised(nnx.Module):
    """An NNX model with batch norm."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(784, rngs=rngs)
        self.logits = nnx.Linear(784, 10, rngs=rngs)

    def __call__(self, image):
        return self.logits(self.norm(image.reshape(-1, 784)))


@pytest.mark.parametrize(
    ("make_model", "name"),
    [
        (lambda: MLP(hidden_sizes=(4,), batch_norm=True), "batch_stats/BatchNorm_0/mean"),
        (lambda: Normalised(nnx.Rngs(0)), "norm/mean"),
    ],
)
def test_a_model_state_that_training_changes_is_refused(make_model, name):
    state = make_private(PrivateGradient(1.0, 1.0, 20), make_model())
    with pytest.raises(InputError) as caught:
        train_step(state, BATCH)
    message = "private training needs a model whose state does not change while it trains, as batch norm's does; got "
    assert str(caught.value) == message + name


class Scaled(nnx.Module):
    """An NNX model with a constant that is no parameter, and dropout."""

    def __init__(self, rngs):
        self.scale = nnx.Variable(jnp.float32(0.5))
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.logits = nnx.Linear(784, 10, rngs=rngs)

    def __call__(self, image):
        return self.logits(self.dropout(self.scale[...] * image.reshape(-1, 784)))


def make_equinox():
    equinox = pytest.importorskip("equinox")
    layers = equinox.nn.MLP(784, 10, width_size=4, depth=1, key=jax.random.key(0))
    return equinox.nn.Sequential([equinox.nn.Lambda(jnp.ravel), layers])


def make_functions():
    return lambda key: jax.random.normal(key, (784, 10)), lambda params, image: image.reshape(-1, 784) @ params


@pytest.mark.slow
@pytest.mark.parametrize("make_model", [lambda: Scaled(nnx.Rngs(0)), make_equinox, make_functions])
def test_every_other_kind_of_model_is_trained(make_model):
    state = make_private(PrivateGradient(1.0, 0.5, 20, 8), make_model())
    after, metrics = train_step(state, BATCH)
    assert int(metrics.count) == 23
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


@pytest.mark.slow
def test_extra_keys_of_a_batch_reach_the_loss():
    """An array with a row for each example is split with the examples; everything else is passed on."""

    def weighted(params, state, batch, key):
        loss, aux = loss_fn(params, state.replace(recipe=plain.recipe), batch, key)
        return batch["scale"] * batch["weight"][0] * loss, aux

    plain = make_private(PrivateGradient(100.0, 0.0, 1))
    state = make_private(PrivateGradient(100.0, 0.0, 1, 8), loss_fn=weighted)
    weight = np.where(np.arange(23) < 4, 0.5, 0.0).astype(np.float32)
    grads, _, _ = gradient_of(state, {**BATCH, "weight": weight, "scale": 2.0})
    assert_trees_close(grads, gradient_of(plain, {**BATCH, "mask": np.arange(23) < 4})[0])


@pytest.mark.parametrize("room", [5, 0])  # 0: half of the batches overflow
def test_sampling_is_that_of_a_loop(monkeypatch, room):
    monkeypatch.setattr("mnist_jax.training.privacy._ROOM", room)
    sampling, key = PoissonOrder(30), jax.random.key(4)
    size = sampling.max_batch_size(100)
    assert size == {5: 64, 0: 32}[room]
    order = np.asarray(sampling(key, 7, 100)).reshape(4, size)
    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 2**32 - 2), 7), 4)
    for batch, step_key in zip(order, keys, strict=True):
        bits = np.asarray(jax.random.bits(step_key, (100,)))
        chosen = [index for index in np.argsort(bits) if bits[index] < 30 * 2**32 // 100][:size]
        assert batch.tolist() == chosen + [-1] * (size - len(chosen))


def test_each_example_is_drawn_with_the_same_probability():
    """Independently of the others, in each step; after truncation the batches are uniform subsets."""
    order = np.asarray(jax.vmap(lambda epoch: PoissonOrder(20)(jax.random.key(0), epoch, 60))(jnp.arange(1000)))
    batches = order.reshape(3000, -1)
    drawn = (batches[:, :, None] == np.arange(60)).sum(axis=1)
    assert set(np.unique(drawn)) == {0, 1}
    assert np.abs(drawn.mean(axis=0) - 1 / 3).max() < 4 * math.sqrt(2 / 9 / 3000)
    covariance = np.cov(drawn.T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 5 * (2 / 9) / math.sqrt(3000)
    np.testing.assert_allclose(drawn.sum(axis=1).var(), 60 * 2 / 9, rtol=0.1)  # the size of a Poisson batch varies


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip_norm": 0.0}, "^clip_norm must be a finite number above 0, got 0.0$"),
        ({"noise_multiplier": math.nan}, "^noise_multiplier must be a finite number, 0 or above, got nan$"),
        ({"delta": 1.0}, r"^delta must be in \(0, 1\), got 1.0$"),
        ({"batch_size": 0}, "^expected_batch_size must be at least 1, got 0$"),
        ({"batch_size": 101}, "^batch_size must be between 1 and the 100 examples of the split, got 101$"),
    ],
)
def test_values_out_of_range_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Privacy(1.0, 1.0, 1e-5, num_examples=100, batch_size=10), **changed)


def dp_accounting_event(probability, noise):
    import dp_accounting

    return dp_accounting.PoissonSampledDpEvent(probability, dp_accounting.GaussianDpEvent(noise))


def test_epsilon_is_that_of_dp_accounting():
    import dp_accounting

    privacy = Privacy(1.0, 1.5, 1e-5, num_examples=1000, batch_size=100)
    event = dp_accounting.TruncatedSubsampledGaussianDpEvent(
        dataset_size=1000, sampling_probability=0.1, truncated_batch_size=152, noise_multiplier=1.5
    )
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3).compose(event, 50)
    assert privacy.epsilon(50) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    assert privacy.epsilon(0) == 0
    assert dataclasses.replace(privacy, noise_multiplier=0.0).epsilon(1) == math.inf
    exact = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-4).compose(event, 50).get_epsilon(1e-5)
    assert exact <= privacy.epsilon(50) < exact + 0.01


@pytest.mark.parametrize(("noise", "epochs", "published"), [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)])
def test_epsilon_against_the_values_of_tensorflow_privacy(noise, epochs, published):
    """The table of its tutorial for MNIST, with N = 60000, B = 256 and delta = 1e-5.

    It converts Renyi divergences to epsilon in the first way that was known (Mironov 2017); the accountant here, which
    composes distributions of the privacy loss, is tighter.

    https://github.com/tensorflow/privacy/blob/master/tutorials/README.md
    """
    from dp_accounting import rdp

    steps, orders = epochs * 60000 // 256, np.array([1 + x / 10 for x in range(1, 100)] + [*range(12, 64)])
    event = dp_accounting_event(256 / 60000, noise)
    divergences = rdp.RdpAccountant(orders).compose(event, steps)._rdp
    assert np.min(divergences + math.log(1e5) / (orders - 1)) == pytest.approx(published, abs=0.02)
    assert 0.6 * published < Privacy(1.0, noise, 1e-5, 60000, 256).epsilon(steps) < published


CONFIG = TrainConfig(
    data="digits",
    hidden_sizes=(4,),
    dropout_rate=0.0,
    optimizer="sgd",
    batch_size=450,
    epochs=3,
    dp_clip=1.0,
    dp_epsilon=2.0,
    quiet=True,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A private run of three epochs."""
    with jax.numpy_dtype_promotion("standard"):
        return fit(dataclasses.replace(CONFIG, workdir=str(tmp_path_factory.mktemp("runs") / "run")))


def test_a_run_finds_its_noise_and_reports_epsilon(run):
    summary = json.loads((run.workdir / "summary.json").read_text())
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    privacy = Privacy(1.0, run.config.dp_noise, 1e-5, 1350, 450)
    assert [line["epsilon"] for line in lines] == [privacy.epsilon(steps) for steps in (3, 6, 9)]
    assert 1.98 < summary["epsilon"] == lines[-1]["epsilon"] <= 2.0
    assert {**summary, **privacy.describe()} == summary
    assert summary["sampling"] == {"method": "truncated Poisson", "probability": 1 / 3, "max_batch_size": 560}
    sizes = {line["num_examples"] for line in lines}
    assert len(sizes) == 3  # of examples that were drawn
    assert all(abs(size - 1350) < 5 * math.sqrt(900) for size in sizes)
    assert load_run(run.workdir)[1].recipe.gradient_fn == PrivateGradient(1.0, run.config.dp_noise, 450, 16)


@pytest.mark.slow
def test_a_run_has_the_numbers_of_a_loop_over_steps(run):
    """Batches and noise are functions of the key, the epoch and the step."""
    state, split = build_state(run.config), load_dataset("digits").train
    for epoch in range(3):
        for index in np.asarray(PoissonOrder(450)(state.key, epoch, 1350)).reshape(3, -1):
            batch = {"image": split.image[index], "label": split.label[index], "mask": index >= 0}
            state, _ = train_step(state, batch)
    assert_trees_close(state.params, run.state.params, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_more_epochs_than_the_budget_allows_stop(run, tmp_path):
    """The noise stays that of the run; the resumed one stops before its next epoch."""
    workdir = tmp_path / "run"
    shutil.copytree(run.workdir, workdir)
    config = dataclasses.replace(CONFIG, workdir=str(workdir), resume=True, epochs=5)
    again = fit(config)
    assert again.summary["epochs"] == 3
    assert again.summary["stop_reason"].startswith("another epoch would exceed dp_epsilon 2, with an epsilon of 2.")
    assert again.summary["epsilon"] == run.summary["epsilon"]
    assert_trees_equal(again.state.params, run.state.params)


@pytest.mark.slow
def test_a_run_stops_at_its_budget_and_resumes_bit_for_bit(tmp_path):
    """With both noise and epsilon, epsilon is a limit."""
    noise, epochs = 3.0, 4
    budget = Privacy(1.0, noise, 1e-5, 1350, 450).epsilon(6) + 1e-6
    config = dataclasses.replace(CONFIG, dp_noise=noise, dp_epsilon=budget, epochs=epochs)
    whole = fit(dataclasses.replace(config, workdir=str(tmp_path / "whole")))
    assert whole.summary["epochs"] == 2
    assert whole.summary["epsilon"] <= budget
    fit(dataclasses.replace(config, workdir=str(tmp_path / "parts"), epochs=1))
    parts = fit(dataclasses.replace(config, workdir=str(tmp_path / "parts"), resume=True, dp_noise=None))
    assert parts.summary["stop_reason"] == whole.summary["stop_reason"]
    assert_trees_equal(parts.state, whole.state)


def test_a_budget_below_one_epoch_is_refused():
    config = dataclasses.replace(CONFIG, dp_noise=1.0, dp_epsilon=0.1)
    message = r"^dp_epsilon must be at least \d\.\d{3}, that of the first epoch with dp_noise 1, got 0.1$"
    with pytest.raises(InputError, match=message):
        fit(config)


@pytest.mark.slow
def test_a_large_epsilon_still_has_some_noise():
    config = dataclasses.replace(CONFIG, dp_epsilon=1e6)
    assert prepare_privacy(config, 1350).noise_multiplier == 0.125


def test_a_private_state_is_refused_where_batches_are_shuffled():
    message = "^a state with a PrivateGradient needs batches of a PoissonOrder, not those of fit: give dp_clip and .*$"
    with pytest.raises(InputError, match=message):
        fit(TrainConfig(data="digits"), state=make_private(PrivateGradient(1.0, 1.0, 20)))
    with pytest.raises(InputError, match="^dp_noise must be given to build a private state, got None; fit finds it"):
        build_state(CONFIG)


def test_a_missing_package_is_one_line(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "jax_privacy"]:
        monkeypatch.setitem(sys.modules, name, None)
    message = (
        r"^private training needs the package jax-privacy, which is not installed: pip install -e \"\.\[privacy\]\"$"
    )
    with pytest.raises(InputError, match=message):
        prepare_privacy(dataclasses.replace(CONFIG, seed=1, dp_epsilon=2.5), 1350)


@pytest.mark.slow
def test_a_population_has_members_like_runs(run):
    """Each with its own batches and noise; the noise multiplier is that of a run."""
    population = train_population(dataclasses.replace(CONFIG, quiet=False), [0, 1])
    assert_trees_close(population.member(0).params, run.state.params, rtol=1e-4, atol=1e-5)
    one, two = (np.asarray(population.member(index).params["Dense_0"]["kernel"]) for index in (0, 1))
    assert not np.allclose(one, two)
    with pytest.raises(InputError, match="^dp_epsilon must be at least .*, that of 3 epochs with dp_noise 3, got 1.0$"):
        train_population(dataclasses.replace(CONFIG, dp_noise=3.0, dp_epsilon=1.0), [0, 1])


def make_mlp():
    return create_train_state(
        MLP(hidden_sizes=(8,), dropout_rate=0.3),
        optax.sgd(0.02),
        jax.random.key(3),
        gradient_fn=PrivateGradient(0.5, 1.0, 14, 8),
        ema_decay=0.9,
        augment=Augmentation(shift=2.0),
    )


def make_cnn():
    model = CNN(channels=(3,), kernel_sizes=(5,), pool_sizes=(4,), dense_size=8, dropout_rate=0.3)
    return create_train_state(model, optax.sgd(0.02), jax.random.key(3), gradient_fn=PrivateGradient(0.5, 1.0, 14, 8))


def run_on(make_state, num_devices):
    """Trains an epoch on devices that share each batch."""
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    state, split = jax.device_put((make_state(), make_split(45)), NamedSharding(mesh, PartitionSpec()))
    sampling = PoissonOrder(14)
    order_fn, size = jax.jit(sampling, static_argnames="num_examples"), sampling.max_batch_size(45)
    epochs = ChunkedEpoch(state, split, size, sharding=sharding, order_fn=order_fn, has_gaps=True)
    for chunk in epochs.run(state, 0):
        state = chunk.state
    return state.params, state.ema_params, chunk.total


@pytest.mark.slow
@pytest.mark.parametrize("make_state", [make_mlp, make_cnn])
def test_two_devices_add_the_noise_once(make_state):
    assert_trees_close(run_on(make_state, 2), run_on(make_state, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_four_and_eight_devices_give_the_numbers_of_one(run_on_eight_devices):
    run_on_eight_devices(__file__)


@pytest.mark.slow
def test_canaries_are_found_without_noise_and_not_beyond_epsilon_with_it():
    """Half of 400 random images are trained on: which, as told by their losses, bounds epsilon from below.

    Reference: Steinke, Nasr and Jagielski (2023), https://arxiv.org/abs/2305.08846.
    """
    from jax_privacy.auditing import CanaryScoreAuditor

    canaries, inside = make_split(400, seed=3), np.random.default_rng(0).random(400) < 0.5
    num_inside, sampling = int(inside.sum()), PoissonOrder(100)
    size = sampling.max_batch_size(num_inside)
    steps = jax.jit(functools.partial(loop_steps, batch_size=size, start=0, num_steps=2, has_gaps=True))

    def audit(noise):
        gradient_fn = PrivateGradient(1.0, noise, 100, 32)
        state = create_train_state(MLP(hidden_sizes=()), optax.sgd(1.0), jax.random.key(0), gradient_fn=gradient_fn)
        before = per_example_losses(state, canaries)
        for epoch in range(30):
            order = sampling(state.key, epoch, num_inside)
            state, _, _ = steps(state, Split(canaries.image[inside], canaries.label[inside]), order)
        scores = np.asarray(before - per_example_losses(state, canaries))
        return CanaryScoreAuditor(scores[inside], scores[~inside]).epsilon_one_run(significance=0.05, delta=1e-5)

    epsilon = Privacy(1.0, 10.0, 1e-5, num_inside, 100).epsilon(60)
    assert 1 < epsilon < 2
    assert audit(noise=10.0) < epsilon < audit(noise=0.0)
