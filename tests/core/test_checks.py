"""Guards against silent nonsense: each by its message, under jit and without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_split

from mnist_jax import (
    MLP,
    AccumulatedGradient,
    CrossEntropy,
    Split,
    VirtualAdversarialLoss,
    create_train_state,
    cross_entropy,
    eval_step,
    evaluate_dataset,
    mean_gradient,
    stream_batches,
    train_epoch,
    train_step,
)
from mnist_jax.core.checks import check_extra_keys

STATE = create_train_state(MLP(hidden_sizes=(8,), dropout_rate=0.0), optax.sgd(0.1), jax.random.key(0))
BATCH = make_split(4)._asdict()


@pytest.mark.parametrize("step", [train_step, eval_step])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": BATCH["image"].astype(np.int32)}, r"^image must be uint8, or float in \[0, 1\], got int32"),
        ({"image": BATCH["image"].astype(np.int8)}, "^image must be uint8, .* got int8"),
        ({"image": BATCH["image"][..., 0]}, r"^image must be \[B, 28, 28, 1\], got \[4, 28, 28\]"),
        (
            {"label": BATCH["label"].astype(np.float32)},
            r"^label must be int\[4\], or probabilities float\[4, 10\], for logits of 10 classes, got float32\[4\]",
        ),
        ({"label": BATCH["label"][:, None]}, r"^label must be int\[4\], .* got int32\[4, 1\]"),
        ({"label": BATCH["label"][:3]}, r"^label must be int\[4\], .* got int32\[3\]"),
        ({"label": np.full((4, 9), 1 / 9, np.float32)}, r"^label must be int\[4\], .* got float32\[4, 9\]"),
        ({"label": np.eye(10, dtype=np.int32)[:4]}, r"^label must be int\[4\], .* got int32\[4, 10\]"),
        ({"label": np.ones(4, bool)}, r"^label must be int\[4\], .* got bool\[4\]"),
        ({"label": np.array([0, 10, 1, 2])}, r"^label must be in \[0, 10\), the classes of the model, got 10"),
        ({"label": np.array([0, -1, 1, 2])}, r"^label must be in \[0, 10\), the classes of the model, got -1"),
    ],
    ids=range(11),
)
def test_a_batch_that_makes_no_sense_is_refused(step, changed, message):
    with pytest.raises(ValueError, match=message):
        step(STATE, {**BATCH, **changed})


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.ones((4, 10), np.float32), "got 10 as the sum and 1 as the least of example 0$"),
        (np.eye(10)[:4] * 1.5 - 0.05, "got 1 as the sum and -0.05 as the least of example 0$"),
        (np.full((4, 10), np.nan), "got nan as the sum and nan as the least of example 0$"),
        (np.concatenate([np.eye(10)[:3], np.zeros((1, 10))]), "got 0 as the sum and 0 as the least of example 3$"),
    ],
    ids=range(4),
)
def test_probabilities_that_are_none_are_refused(label, message):
    message = f"^label must have probabilities that are at least 0 and add up to 1, {message}"
    split = Split(BATCH["image"], label)
    for call in (
        lambda: train_step(STATE, {**BATCH, "label": label}),
        lambda: train_epoch(STATE, split, 2),
        lambda: evaluate_dataset(STATE, split),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    nearly = np.full((4, 10), 0.0999, np.float32)  # as rounding to half precision may leave them
    assert np.isfinite(train_step(STATE, {**BATCH, "label": nearly})[1].loss_sum)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused(value):
    image = BATCH["image"] / np.float32(255)
    image[2, 5, 5, 0] = value
    split = Split(image, BATCH["label"])
    for call in (
        lambda: train_step(STATE, split._asdict()),
        lambda: eval_step(STATE, split._asdict()),
        lambda: train_epoch(STATE, split, 2),
        lambda: evaluate_dataset(STATE, split),
    ):
        with pytest.raises(ValueError, match="^image must be finite, got NaN or infinity in example 2$"):
            call()
    assert np.isnan(train_step(STATE, jax.device_put(split)._asdict())[1].loss_sum)


def test_a_split_has_a_label_for_each_image():
    split = Split(BATCH["image"], np.zeros(8, np.int32))
    message = "^split must have as many labels as images, got 8 labels of 4 images$"
    for call in (
        lambda: train_epoch(STATE, split, 2),
        lambda: evaluate_dataset(STATE, split),
        lambda: stream_batches(split, 2),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_settings_out_of_range_are_refused_where_they_are_made():
    with pytest.raises(ValueError, match=r"^ema_decay must be in \[0, 1\), or None for no average, got 2$"):
        create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0), ema_decay=2)
    with pytest.raises(ValueError, match=r"^label_smoothing must be in \[0, 1\), got 3$"):
        CrossEntropy(3)
    with pytest.raises(ValueError, match="^radius must be a finite number, 0 or above, got -1$"):
        VirtualAdversarialLoss(-1)
    for batch_size in (0, -5):
        with pytest.raises(ValueError, match=f"^batch_size must be at least 1, got {batch_size}$"):
            stream_batches(make_split(4), batch_size)


@pytest.mark.parametrize("wrong", [-1, 10, 255])
def test_a_traced_label_that_is_no_class_makes_the_loss_nan(wrong):
    label = jnp.array([0, wrong, 1, 2])
    assert np.isnan(train_step(STATE, {**BATCH, "label": label})[1].loss_sum)
    assert np.isnan(eval_step(STATE, {**BATCH, "label": label}).loss_sum)
    for label_smoothing in (0.0, 0.1):
        losses = cross_entropy(jnp.zeros((4, 10)), label, label_smoothing)
        np.testing.assert_array_equal(np.isnan(losses), [False, True, False, False])
    mask = np.array([True, False, True, True])  # it does not count
    assert np.isfinite(train_step(STATE, {**BATCH, "label": label, "mask": mask})[1].loss_sum)


def test_labels_of_a_split_are_checked_too():
    split = Split(BATCH["image"], np.array([0, 1, 11, 2]))
    message = r"^label must be in \[0, 10\), the classes of the model, got 11$"
    with pytest.raises(ValueError, match=message):
        train_epoch(STATE, split, 2)
    with pytest.raises(ValueError, match=message):
        evaluate_dataset(STATE, split)
    assert np.isnan(train_epoch(STATE, jax.device_put(split), 2)[1].loss_sum)


@pytest.mark.parametrize("gradient_fn", [None, AccumulatedGradient(3)])
def test_a_batch_of_which_nothing_counts_changes_nothing(gradient_fn):
    options = {} if gradient_fn is None else {"gradient_fn": gradient_fn}
    state = create_train_state(STATE.recipe.model.module, optax.sgd(0.1), jax.random.key(0), **options)
    after, metrics = train_step(state, {**BATCH, "mask": np.zeros(4, bool)})
    assert_trees_equal(after.params, state.params)
    assert (int(metrics.count), float(metrics.loss_sum)) == (0, 0.0)


def test_more_steps_than_an_epoch_has_are_refused_and_the_end_is_never_passed():
    split = make_split(10)
    with pytest.raises(ValueError, match="^num_steps must be between 0 and the 3 steps of an epoch, got 4$"):
        train_epoch(STATE, split, 4, num_steps=4)
    part, _ = train_epoch(STATE, split, 4, num_steps=2)
    for rest, metrics in (train_epoch(part, split, 4, num_steps=3), train_epoch(part, split, 4)):
        assert (int(rest.step), int(metrics.count)) == (3, 2)
    whole, _ = train_epoch(STATE, split, 4)
    np.testing.assert_allclose(whole.params["Dense_1"]["bias"], rest.params["Dense_1"]["bias"], rtol=1e-5, atol=1e-7)


def test_a_traced_epoch_that_begins_in_the_middle_is_no_silent_nonsense():
    split = make_split(10)
    whole = jax.jit(lambda state: train_epoch(state, split, 4)[1].loss)
    assert np.isfinite(whole(STATE))
    assert np.isnan(whole(STATE.replace(step=jnp.int32(1))))


def test_extra_keys_of_a_batch_are_passed_on():
    batch = {**BATCH, "id": np.arange(4), "scale": np.float32(2)}
    expected = train_step(STATE, BATCH)
    assert_trees_equal(train_step(STATE, batch)[0].params, expected[0].params)
    seen = []

    def loss_fn(params, state, batch, key):
        seen.append({name: np.shape(x) for name, x in batch.items() if name in ("id", "scale")})
        return STATE.recipe.loss_fn(params, state, batch, key)

    model, tx = STATE.recipe.model.module, optax.sgd(0.1)
    options = {"loss_fn": loss_fn, "gradient_fn": AccumulatedGradient(2)}
    train_step(create_train_state(model, tx, jax.random.key(0), **options), batch)
    assert seen[0] == {"id": (2,), "scale": ()}


EXTRA = {
    "id": np.arange(5, dtype=np.int64),
    "weight": np.float32(2),
    "number": 3,
    "pixels": np.full((5, 3, 4), 200, np.uint8),
    "empty": np.zeros((5, 0), np.float32),
    "is_new": np.ones(5, bool),
    "key": jax.random.split(jax.random.key(3), 5),
    "list": [4, 3, 2, 1, 0],
    "nested": {"rows": np.ones((5, 2), np.float16), "pair": (np.arange(5), np.ones((3, 2))), "nothing": None},
    "bytes": np.array([b"a", b"b", b"c", b"d", b"e"]),
    "objects": np.array([b"a", "b", "c", "d", "e"], object),
    "words": ["a", "b", "c", "d", "e"],
    "text": {"file": "five.png", "sha": b"\x00"},
}


@pytest.mark.parametrize(
    ("transform", "gradient_fn"),
    [
        ("call", mean_gradient),
        ("call", AccumulatedGradient(2)),
        ("vmap", AccumulatedGradient(2)),
        ("scan", mean_gradient),
    ],
)
def test_extra_keys_of_any_kind_reach_a_loss_function(transform, gradient_fn):
    seen = []

    def loss_fn(params, state, batch, key):
        seen.append(batch)
        return STATE.recipe.loss_fn(params, state, batch, key)

    options = {"loss_fn": loss_fn, "gradient_fn": gradient_fn}
    state = create_train_state(STATE.recipe.model.module, optax.sgd(0.1), jax.random.key(0), **options)
    plain = state.replace(recipe=dataclasses.replace(state.recipe, loss_fn=STATE.recipe.loss_fn))
    batch = make_split(5)._asdict()
    own, num_rows = {**batch, **EXTRA}, 5 if gradient_fn is mean_gradient else 2
    expected = train_step(plain, batch)[0].params
    if transform == "call":
        assert_trees_equal(train_step(state, own)[0].params, expected)
        assert int(eval_step(state, own).count) == 5
    elif transform == "vmap":
        states = jax.tree.map(lambda x: x[None], state)
        after, _ = jax.vmap(train_step, in_axes=(0, None))(states, own)
        assert_trees_close(jax.tree.map(lambda x: x[0], after.params), expected)
    else:
        numbers = check_extra_keys(own)
        after, _ = jax.lax.scan(lambda state, _: train_step(state, numbers), state, None, length=1)
        assert_trees_close(after.params, expected)
    found = seen[0]
    shapes = {name: np.shape(found[name]) for name in ("id", "weight", "number", "pixels", "empty", "is_new", "key")}
    assert shapes == {
        "id": (num_rows,),
        "weight": (),
        "number": (),
        "pixels": (num_rows, 3, 4),
        "empty": (num_rows, 0),
        "is_new": (num_rows,),
        "key": (num_rows,),
    }
    assert len(found["list"]) == num_rows
    assert [np.shape(x) for x in found["nested"]["pair"]] == [(num_rows,), (3, 2)]
    assert (found["pixels"].dtype, found["nested"]["rows"].shape) == (np.uint8, (num_rows, 2))
    assert found["nested"]["nothing"] is found["bytes"] is found["objects"] is None
    assert found["words"] == [None] * 5
    assert found["text"] == {"file": None, "sha": None}


def test_extra_keys_are_split_as_the_images_are():
    def loss_fn(params, state, batch, key):
        loss, (metrics, model_state) = STATE.recipe.loss_fn(params, state, batch, key)
        matches = (batch["pixels"] == batch["image"]) & (batch["nested"]["id"] == batch["label"])[:, None, None, None]
        return loss, (metrics.replace(correct=matches.all((1, 2, 3)).sum(dtype=jnp.int32)), model_state)

    options = {"loss_fn": loss_fn, "gradient_fn": AccumulatedGradient(3)}
    state = create_train_state(STATE.recipe.model.module, optax.sgd(0.1), jax.random.key(0), **options)
    split = make_split(9)  # three microbatches, without padding
    batch = {**split._asdict(), "pixels": split.image, "nested": {"id": split.label}}
    assert int(train_step(state, batch)[1].correct) == 9


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.array([1.0, None], object),
            r"^batch\['extra'\] must hold numbers or text, got an array of object; convert",
        ),
        ({"day": np.array(["2026-01-02"], "datetime64[D]")}, r"^batch\['extra'\]\['day'\] must .* of datetime64\[D\]"),
        ({1, 2}, "got a set; convert it, or leave it out$"),
    ],
)
@pytest.mark.parametrize("step", [train_step, eval_step])
def test_an_extra_key_that_holds_neither_numbers_nor_text_is_named(value, message, step):
    with pytest.raises(ValueError, match=message):
        step(STATE, {**BATCH, "extra": value})


def test_a_positional_argument_that_a_check_changes_is_not_passed_twice():
    split = make_split(10)
    part, _ = train_epoch(STATE, split, 4, num_steps=2)
    assert int(train_epoch(part, split, 4, None)[0].step) == 3
