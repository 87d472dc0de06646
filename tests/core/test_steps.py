import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_split
from flax import linen as nn

from mnist_jax import (
    CNN,
    MLP,
    AccumulatedGradient,
    CrossEntropy,
    MeanLoss,
    Metrics,
    Split,
    create_train_state,
    eval_step,
    evaluate_dataset,
    loss_fn,
    mean_gradient,
    train_epoch,
    train_step,
)
from mnist_jax.core.losses import cross_entropy


def make_state(model=None, tx=None, seed=0, **options):
    return create_train_state(
        model or MLP(hidden_sizes=(8,)), tx or optax.sgd(0.1, momentum=0.9), jax.random.key(seed), **options
    )


def make_batch(size, seed=0):
    return make_split(size, seed)._asdict()


def params_of(state):
    return state.params, state.opt_state, state.ema_params


def test_one_step_of_softmax_regression_is_the_textbook_gradient():
    state = make_state(MLP(hidden_sizes=(), dropout_rate=0.0), optax.sgd(0.5))
    batch = make_batch(6)
    x = batch["image"].reshape(6, -1) / np.float64(255)
    weights, bias = (np.asarray(state.params["Dense_0"][name], np.float64) for name in ("kernel", "bias"))
    logits = x @ weights + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = (probabilities - np.eye(10)[batch["label"]]) / 6

    new_state, metrics = train_step(state, batch)

    np.testing.assert_allclose(new_state.params["Dense_0"]["kernel"], weights - 0.5 * x.T @ error, atol=1e-6)
    np.testing.assert_allclose(new_state.params["Dense_0"]["bias"], bias - 0.5 * error.sum(axis=0), atol=1e-6)
    losses = -np.log(probabilities[np.arange(6), batch["label"]])
    np.testing.assert_allclose(metrics.loss_sum, losses.sum(), rtol=1e-5)
    assert metrics.correct == (logits.argmax(axis=1) == batch["label"]).sum()
    assert metrics.count == 6
    assert new_state.step == 1


@pytest.mark.parametrize("model", [MLP(hidden_sizes=(8, 4)), CNN(channels=(2, 3), dense_size=5)])
def test_gradient_is_the_finite_difference(model):
    state = make_state(model)
    batch = make_batch(5)
    key = jax.random.key(7)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), state.params)
        batch = {"image": batch["image"] / np.float64(255), "label": batch["label"]}
        direction = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(1).normal(size=leaf.shape)), params)

        @jax.jit
        def loss(t):
            moved = jax.tree.map(lambda leaf, d: leaf + t * d, params, direction)
            return loss_fn(moved, state, batch, key)[0]

        step = 1e-6
        difference = (loss(step) - loss(-step)) / (2 * step)
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.0), difference, rtol=1e-5)


def test_scan_is_the_loop():
    state = make_state()
    batches = [make_batch(4, seed) for seed in range(5)]
    looped, total = state, Metrics.zeros()
    for batch in batches:
        looped, metrics = train_step(looped, batch)
        total = total + metrics
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    scanned, metrics = jax.lax.scan(train_step, state, stacked)
    assert_trees_close(params_of(scanned), params_of(looped))
    assert scanned.step == looped.step == 5
    assert_trees_close(jax.tree.map(lambda leaf: leaf.sum(0), metrics), total)


@pytest.mark.parametrize(
    "model", [MLP(hidden_sizes=(8,)), pytest.param(CNN(channels=(2, 3), dense_size=5), marks=pytest.mark.slow)]
)
def test_vmap_is_one_by_one(model):
    tx = optax.sgd(0.1, momentum=0.9)
    keys = jax.random.split(jax.random.key(3), 3)
    states = [create_train_state(model, tx, key) for key in keys]
    batch = make_batch(6)
    one_by_one = [train_step(state, batch) for state in states]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, metrics = jax.vmap(train_step, in_axes=(0, None))(stacked, batch)
    for index, (state, expected) in enumerate(one_by_one):
        assert_trees_close(params_of(jax.tree.map(lambda leaf: leaf[index], together)), params_of(state))  # noqa: B023
        assert_trees_close(jax.tree.map(lambda leaf: leaf[index], metrics), expected)  # noqa: B023


def test_masked_step_is_the_step_on_the_subset():
    state = make_state(MLP(hidden_sizes=(8,), dropout_rate=0.0))
    batch = make_batch(7)
    mask = np.array([True, False, True, True, False, False, True])
    subset = {name: array[mask] for name, array in batch.items()}
    masked, metrics = train_step(state, {**batch, "mask": mask})
    expected, expected_metrics = train_step(state, subset)
    assert_trees_close(params_of(masked), params_of(expected))
    assert_trees_close(metrics, expected_metrics)


def test_a_mask_in_the_batch_counts_everywhere():
    state = make_state()
    batch = {**make_batch(8), "mask": np.arange(8) < 3}
    assert train_step(state, batch)[1].count == eval_step(state, batch).count == 3


@pytest.mark.parametrize(
    "model",
    [
        MLP(hidden_sizes=(8,), dropout_rate=0.0),
        pytest.param(CNN((2, 3), dense_size=5, dropout_rate=0), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("microbatch_size", [1, 3, 4, 12, 13])
@pytest.mark.parametrize("masked", [False, True])
def test_microbatches_add_up_to_the_batch(model, microbatch_size, masked):
    batch = make_batch(12)
    if masked:
        batch["mask"] = np.arange(12) % 3 > 0
    expected = train_step(make_state(model), batch)
    found = train_step(make_state(model, gradient_fn=AccumulatedGradient(microbatch_size)), batch)
    assert_trees_close(params_of(found[0]), params_of(expected[0]), rtol=1e-4, atol=1e-6)
    assert_trees_close(found[1], expected[1], rtol=1e-5)


def test_each_microbatch_has_dropout_of_its_own():
    batch = make_batch(2)
    batch = {name: np.concatenate([array[:1], array[:1]]) for name, array in batch.items()}  # one example twice
    state = make_state(MLP(hidden_sizes=(50,), dropout_rate=0.5), gradient_fn=AccumulatedGradient(1))
    _, together = train_step(state, batch)
    keys = jax.random.split(jax.random.fold_in(state.key, 0))
    one = {name: array[:1] for name, array in batch.items()}
    alone = [loss_fn(state.params, state, one, key)[0] for key in keys]
    assert alone[0] != alone[1]
    np.testing.assert_allclose(together.loss_sum, sum(alone), rtol=1e-5)


@pytest.mark.parametrize("microbatch_size", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_a_batch_spread_over_devices_is_the_batch(microbatch_size):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    batch = make_batch(16)
    spread = jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    gradient_fn = mean_gradient if microbatch_size is None else AccumulatedGradient(microbatch_size)
    state = make_state(CNN((2, 3), dense_size=5, dropout_rate=0.0), gradient_fn=gradient_fn)
    expected, found = train_step(state, batch), train_step(state, spread)
    assert len(mesh.devices) == 2
    assert_trees_close(params_of(found[0]), params_of(expected[0]), rtol=1e-4, atol=1e-6)
    assert_trees_close(found[1], expected[1], rtol=1e-5)


def test_uint8_images_are_scaled_to_the_unit_interval():
    state = make_state()
    batch = make_batch(4)
    as_float = {"image": batch["image"].astype(np.float32) / 255, "label": batch["label"]}
    assert_trees_close(params_of(train_step(state, batch)[0]), params_of(train_step(state, as_float)[0]))


def test_a_batch_of_tfds_is_taken_as_it_comes():
    state = make_state()
    batch = make_batch(4)
    tfds_batch = {"image": batch["image"], "label": batch["label"].astype(np.int64)}
    assert_trees_equal(params_of(train_step(state, tfds_batch)[0]), params_of(train_step(state, batch)[0]))


@pytest.mark.parametrize("num_examples", [24, pytest.param(25, marks=pytest.mark.slow), 31])  # 3 B, 3 B + 1, 4 B - 1
def test_an_epoch_counts_every_example_once(num_examples):
    split = make_split(num_examples)
    state = make_state(MLP(hidden_sizes=(8,), dropout_rate=0.0), optax.set_to_zero())
    logits = state.recipe.model.module.apply({"params": state.params}, split.image.astype(np.float32) / 255)
    expected = np.asarray(cross_entropy(logits, split.label)).sum()
    for _ in range(2):
        state, metrics = train_epoch(state, split, 8)
        assert metrics.count == num_examples
        assert metrics.correct == (np.asarray(logits).argmax(axis=1) == split.label).sum()
        np.testing.assert_allclose(metrics.loss_sum, expected, rtol=1e-5)
    assert state.step == 2 * -(-num_examples // 8)


def test_an_epoch_is_train_step_over_its_batches():
    """Finds the order from outside, by a split whose example i is the only one with pixel i set."""
    image = np.zeros((20, 28, 28, 1), np.uint8)
    for index in range(20):
        image[index, index] = 255
    split = Split(image, np.arange(20, dtype=np.int32) % 10)
    tx = optax.sgd(0.1)
    state = make_state(MLP(hidden_sizes=(), dropout_rate=0.0), tx)
    seen = []
    stepped = state
    for _ in range(3):
        before = stepped
        stepped, metrics = train_epoch(stepped, split, 8, num_steps=1)
        moved = np.abs(np.asarray(stepped.params["Dense_0"]["kernel"] - before.params["Dense_0"]["kernel"])).sum(axis=1)
        rows = np.flatnonzero(moved.reshape(28, 28).sum(axis=1))
        seen.append(rows)
        again, expected = train_step(before, {"image": image[rows], "label": split.label[rows]})
        assert_trees_close(stepped.params, again.params)
        assert_trees_close(metrics, expected)
    assert [len(rows) for rows in seen] == [8, 8, 4]
    assert sorted(np.concatenate(seen)) == list(range(20))
    whole, _ = train_epoch(state, split, 8)
    assert_trees_close(params_of(whole), params_of(stepped))


def test_each_epoch_has_an_order_of_its_own():
    split = make_split(32)
    state = make_state(MLP(hidden_sizes=(), dropout_rate=0.0), optax.set_to_zero())
    first = [train_epoch(state.replace(step=state.step + 4 * epoch), split, 8, num_steps=1)[1] for epoch in range(4)]
    assert len({float(metrics.loss_sum) for metrics in first}) == 4


def test_pieces_of_an_epoch_are_the_epoch_bit_for_bit():
    split = make_split(30)
    state = make_state(ema_decay=0.9)
    whole, _ = train_epoch(state, split, 8, num_steps=4)
    part, _ = train_epoch(state, split, 8, num_steps=1)
    part, _ = train_epoch(part, split, 8, num_steps=3)
    assert_trees_equal(params_of(part), params_of(whole))


def test_an_epoch_can_be_differentiated():
    split = make_split(12)
    state = make_state(MLP(hidden_sizes=(4,), dropout_rate=0.0), optax.sgd(0.1))

    def loss_after(scale):
        params = jax.tree.map(lambda leaf: leaf * scale, state.params)
        return train_epoch(state.replace(params=params), split, 4)[1].loss

    difference = (loss_after(1.01) - loss_after(0.99)) / 0.02
    np.testing.assert_allclose(jax.grad(loss_after)(1.0), difference, rtol=1e-2)


def test_dropout_depends_on_the_step_alone():
    state = make_state(tx=optax.set_to_zero())
    batch = make_batch(8)
    after, first = train_step(state, batch)
    _, second = train_step(after, batch)
    _, again = train_step(state.replace(step=jnp.int32(1)), batch)
    assert first.loss_sum != second.loss_sum
    assert_trees_equal(second, again)


def test_label_smoothing_is_the_formula():
    logits = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    label = np.array([0, 3, 9, 9, 1])
    target = 0.9 * np.eye(10)[label] + 0.1 / 10
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(target * log_probabilities).sum(axis=1)
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(label), 0.1), expected, rtol=1e-5)
    state = make_state(loss_fn=MeanLoss(CrossEntropy(0.1)))
    plain = make_state()
    batch = make_batch(4)
    assert loss_fn(state.params, state, batch)[0] != loss_fn(plain.params, plain, batch)[0]
    assert_trees_equal(eval_step(state, batch), eval_step(plain, batch))  # evaluation is never smoothed


@pytest.mark.parametrize("label_smoothing", [pytest.param(0.0, marks=pytest.mark.slow), 0.25])
def test_labels_may_be_probabilities(label_smoothing):
    """Their loss is linear in them: the mean of the losses of the classes, weighted."""
    state, batch = make_state(loss_fn=MeanLoss(CrossEntropy(label_smoothing))), make_batch(4)
    target = np.random.default_rng(0).dirichlet(np.ones(10), size=4).astype(np.float32)
    logits = evaluate_dataset(state, Split(batch["image"], batch["label"])).logits
    each = [cross_entropy(jnp.asarray(logits), np.full(4, label), label_smoothing) for label in range(10)]
    expected = (target * np.stack(each, axis=1)).sum()
    loss, (metrics, _) = loss_fn(state.params, state, {**batch, "label": target})
    np.testing.assert_allclose([loss, metrics.loss_sum / 4], expected / 4, rtol=1e-5)
    assert int(metrics.correct) == (logits.argmax(axis=1) == target.argmax(axis=1)).sum()
    hard = {**batch, "label": np.eye(10, dtype=np.float32)[batch["label"]]}
    (from_hard, hard_metrics), (from_label, metrics) = train_step(state, hard), train_step(state, batch)
    assert_trees_close((from_hard.params, hard_metrics), (from_label.params, metrics))
    split = Split(batch["image"], hard["label"])
    assert_trees_close(train_epoch(state, split, 2)[0].params, train_epoch(state, Split(**batch), 2)[0].params)


def test_the_running_average_follows_its_recurrence():
    state = make_state(ema_decay=0.5)
    expected = np.asarray(state.params["Dense_0"]["kernel"])
    for step in range(4):
        state, _ = train_step(state, make_batch(4, seed=step))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["Dense_0"]["kernel"])
    np.testing.assert_allclose(state.ema_params["Dense_0"]["kernel"], expected, rtol=1e-5, atol=1e-7)
    averaged = eval_step(state.replace(params=state.ema_params, ema_params=None), make_batch(8))
    assert_trees_equal(eval_step(state, make_batch(8)), averaged)


class WithBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(image.reshape(image.shape[0], -1))
        return nn.Dense(10)(x)


def test_a_model_with_batch_norm_keeps_its_statistics():
    state = make_state(WithBatchNorm())
    batch = make_batch(16)
    after, _ = train_step(state, batch)
    x = batch["image"].reshape(16, -1).astype(np.float32) / 255
    mean = after.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.5 * x.mean(axis=0), rtol=1e-4)
    epoch, _ = train_epoch(state, Split(**batch), 8)
    assert epoch.step == 2
    one = eval_step(after, {name: array[:1] for name, array in batch.items()})
    both = eval_step(after, batch, np.arange(16) < 1)
    assert_trees_close(one, both)  # evaluation does not look at the other examples of its batch


def test_running_statistics_move_on_once_a_step_by_the_mean_of_the_microbatches():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, image, train):
            steps = self.variable("counter", "steps", lambda: jnp.int32(0))
            steps.value += int(train)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(image.reshape(image.shape[0], -1))
            return nn.Dense(10)(x)

    batch = make_batch(7)
    state = make_state(Normed(), gradient_fn=AccumulatedGradient(3))
    parts = [[0, 3, 6], [1, 4, 0], [2, 5, 1]]  # filled up with the first examples again
    means = [(batch["image"][part].reshape(3, -1) / np.float32(255)).mean(axis=0) for part in parts]
    found, _ = train_step(state, batch)
    expected = 0.1 * np.mean(means, axis=0)
    np.testing.assert_allclose(found.model_state["batch_stats"]["BatchNorm_0"]["mean"], expected, rtol=1e-4, atol=1e-6)
    assert int(found.model_state["counter"]["steps"]) == 1  # what is no statistic is that of the last


def test_the_filling_of_the_last_batch_is_a_sample_of_the_epoch():
    """Batch norm sees what fills the last batch: 7 times the same image would ruin its statistics."""
    split = make_split(9)
    state = make_state(WithBatchNorm(), optax.set_to_zero())
    after, _ = train_epoch(state, split, 8)
    variance = after.model_state["batch_stats"]["BatchNorm_0"]["var"]
    expected = (split.image.astype(np.float32) / 255).reshape(9, -1).var(axis=0)
    assert 0.5 < np.mean((variance - 0.25) / 0.75) / expected.mean() < 1.5


class TrainWithoutDefault(nn.Module):
    @nn.compact
    def __call__(self, image, train):
        x = nn.Dense(8)(image.reshape(image.shape[0], -1))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


class TrainByDefault(nn.Module):
    @nn.compact
    def __call__(self, image, train=True):
        x = nn.BatchNorm(use_running_average=not train)(image.reshape(image.shape[0], -1))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


@pytest.mark.parametrize("model", [TrainWithoutDefault(), TrainByDefault()])
def test_train_may_have_any_default(model):
    state, _ = train_step(make_state(model), make_batch(4))
    assert eval_step(state, make_batch(4)).loss_sum == eval_step(state, make_batch(4)).loss_sum


def test_a_running_average_keeps_its_dtype():
    state = make_state(ema_decay=0.9)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    state = state.replace(params=params, ema_params=params, opt_state=state.recipe.tx.init(params))
    with jax.numpy_dtype_promotion("standard"):
        after, _ = train_epoch(state, make_split(8), 4)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.ema_params)} == {jnp.dtype(jnp.bfloat16)}


class WithoutTrainArgument(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.Dense(10)(image.reshape(image.shape[0], -1))


def test_a_model_without_a_train_argument_is_taken():
    state, metrics = train_step(make_state(WithoutTrainArgument()), make_batch(4))
    assert state.step == 1
    assert metrics.count == 4


def test_steps_compile_once():
    split = make_split(20)
    state = make_state()
    before = train_epoch._cache_size(), train_step._cache_size(), eval_step._cache_size()
    for epoch in range(3):
        state, _ = train_epoch(state, split, 8)
        train_step(state, make_batch(4, seed=epoch))
        eval_step(state, make_batch(4), np.arange(4) < epoch)
    after = train_epoch._cache_size(), train_step._cache_size(), eval_step._cache_size()
    assert [new - old for old, new in zip(before, after, strict=True)] == [1, 1, 1]
    for length in (1, 2):
        train_epoch(state, split, 8, num_steps=length)
    assert train_epoch._cache_size() == after[0] + 1


def test_errors_name_what_is_wrong():
    state = make_state()
    with pytest.raises(ValueError, match=r"image must be \[B, 28, 28, 1\], got \[4, 28, 28\]"):
        train_step(state, {"image": np.zeros((4, 28, 28), np.uint8), "label": np.zeros(4, np.int32)})
    with pytest.raises(ValueError, match="batch_size must be between 1 and the 6 examples of the split, got 7"):
        train_epoch(state, make_split(6), 7)
    with pytest.raises(ValueError, match="batch_size must be between 1 and the 6 examples of the split, got 0"):
        train_epoch(state, make_split(6), 0)


def test_metrics_divide_once():
    total = Metrics(jnp.float32(3.0), jnp.int32(1), jnp.int32(2)) + Metrics(
        jnp.float32(1.0), jnp.int32(5), jnp.int32(6)
    )
    assert total.loss == 0.5
    assert total.accuracy == 0.75
    assert_trees_equal(total + Metrics.zeros(), total)
