import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_split

from mnist_jax import (
    MLP,
    AccumulatedGradient,
    Augmentation,
    create_train_state,
    evaluate_dataset,
    train_epoch,
    train_step,
)
from mnist_jax.core.augment import _linear_fields, _smooth_basis

KEY = jax.random.key(0)
ALL = Augmentation(shift=2, rotation=15, scale=0.1, shear=0.1, elastic=1, erasing=0.5)
distort = jax.jit(ALL)


def images(num_examples=5, seed=0):
    return np.random.default_rng(seed).random((num_examples, 28, 28, 1), np.float32)


def ramp(x_slope, y_slope):
    """One image whose value is linear in x and y: linear interpolation gives such images back exactly."""
    return (_linear_fields(28, 28) @ np.array([x_slope, y_slope, 0], np.float32)).reshape(1, 28, 28, 1)


def test_all_amounts_at_once_are_one_affine_map_too():
    augment = jax.jit(Augmentation(shift=2, rotation=30, scale=0.3, shear=0.3))
    middle, rows = np.s_[:, 11:17, 11:17, 0], _linear_fields(28, 28).reshape(28, 28, 3)[11:17, 11:17].reshape(-1, 3)
    for key in jax.random.split(KEY, 10):
        for slopes in ((1, 0), (0, 1)):
            values = np.asarray(augment(ramp(*slopes), key))[middle].reshape(-1)
            fit = np.linalg.lstsq(rows, values, rcond=None)[0]
            np.testing.assert_allclose(values, rows @ fit, atol=2e-3)


@pytest.mark.parametrize("amounts", [{"shift": 3}, {"rotation": 20}, {"scale": 0.2}, {"shear": 0.2}], ids=str)
def test_what_comes_out_of_the_two_passes_is_one_affine_map(amounts):
    """Found again from what happens to x and y as images; the middle is free of what comes in from the border."""
    augment = jax.jit(Augmentation(**amounts))
    middle = np.s_[:, 9:19, 9:19, 0]
    rows = _linear_fields(28, 28).reshape(28, 28, 3)[9:19, 9:19].reshape(-1, 3)
    maps = []
    for key in jax.random.split(KEY, 20):
        source = [np.asarray(augment(ramp(*slopes), key))[middle].reshape(-1) for slopes in ((1, 0), (0, 1))]
        (a, b, x), (c, d, y) = (np.linalg.lstsq(rows, values, rcond=None)[0] for values in source)
        for values, found in zip(source, ((a, b, x), (c, d, y)), strict=True):
            np.testing.assert_allclose(values, rows @ np.array(found), atol=1e-3)
        maps.append([a, b, x, c, d, y])
    a, b, x, c, d, y = np.array(maps).T
    angle = np.deg2rad(amounts.get("rotation", 0))
    limits = {
        "shift": (np.abs([x, y]), 3),
        "rotation": (np.abs(np.arctan2(c, a)), angle),
        "scale": (np.abs(1 / np.array([a, d]) - 1), 0.2),
        "shear": (np.abs(b), 0.2),
    }
    (name,) = amounts
    found, limit = limits[name]
    assert 0.7 * limit < found.max() < limit + 1e-3
    unmoved = {"shift": [a - 1, b, c, d - 1], "rotation": [x, y, a - d, b + c, a**2 + c**2 - 1]}
    unmoved |= {"scale": [b, c, x, y], "shear": [a - 1, c, d - 1, x, y]}
    np.testing.assert_allclose(np.array(unmoved[name]), 0, atol=2e-3)


def test_a_whole_shift_moves_pixels_and_fills_with_background():
    image, augment = images(1), jax.jit(Augmentation(shift=14))
    x, y = (np.asarray(augment(ramp(*slopes) + 100, KEY)) for slopes in ((1, 0), (0, 1)))
    assert np.asarray(x).min() == 0  # from outside
    dx, dy = (np.median((moved - ramp(*slopes) - 100)[moved > 80]) for moved, slopes in ((x, (1, 0)), (y, (0, 1))))
    left, top = int(np.floor(dx)), int(np.floor(dy))
    padded = np.pad(image[0, ..., 0], 20)
    corners = [[padded[20 + top + i : 48 + top + i, 20 + left + j : 48 + left + j] for j in (0, 1)] for i in (0, 1)]
    fx, fy = dx - left, dy - top
    expected = (1 - fy) * ((1 - fx) * corners[0][0] + fx * corners[0][1])
    expected = expected + fy * ((1 - fx) * corners[1][0] + fx * corners[1][1])
    np.testing.assert_allclose(np.asarray(augment(image, KEY))[0, ..., 0], expected, atol=1e-4)


@pytest.mark.parametrize("smoothness", [2.0, 4.0])
def test_elastic_displacements_are_smoothed_noise_of_unit_variance(smoothness):
    waves = _smooth_basis(28, 28, smoothness).astype(np.float64)
    distance = np.arange(28)[:, None] - np.arange(28)
    along = np.exp(-((distance / (2 * smoothness)) ** 2))  # what white noise has after a Gaussian of this width
    np.testing.assert_allclose(waves @ waves.T, np.kron(along, along), atol=0.07)
    np.testing.assert_allclose(np.square(waves).sum(axis=1).mean(), 1, rtol=1e-5)


def test_elastic_distortion_moves_by_its_standard_deviation():
    augment = Augmentation(elastic=1.5)
    keys = jax.random.split(KEY, 200)
    moved = np.stack([jax.jit(jax.vmap(augment, (None, 0)))(ramp(*slopes)[0], keys) for slopes in ((1, 0), (0, 1))])
    start = np.stack([ramp(1, 0), ramp(0, 1)])
    displacement = (moved - start)[:, :, 10:18, 10:18, 0]
    np.testing.assert_allclose(displacement.std(axis=(1, 2, 3)), 1.5, rtol=0.1)


def test_erasing_takes_a_rectangle_from_its_share_of_the_images():
    image = np.ones((400, 28, 28, 1), np.float32)
    erased = np.asarray(jax.jit(Augmentation(erasing=0.25))(image, KEY))[..., 0] == 0
    hit = erased[erased.any(axis=(1, 2))]
    np.testing.assert_allclose(len(hit) / 400, 0.25, atol=0.06)
    for one in hit:
        rows, columns = one.any(axis=1), one.any(axis=0)
        np.testing.assert_array_equal(one, np.outer(rows, columns))
        assert max(rows.sum(), columns.sum()) <= 15
        assert np.flatnonzero(rows).size == np.ptp(np.flatnonzero(rows)) + 1


def test_nothing_asked_for_changes_nothing():
    image = images()
    np.testing.assert_array_equal(Augmentation()(image, KEY), image)
    assert not Augmentation(smoothness=2).changes_something
    assert ALL.changes_something


def test_each_image_is_distorted_by_itself():
    image = images(6)
    together = distort(image, KEY)
    other = distort(np.concatenate([image[:3], images(3, seed=1)]), KEY)
    np.testing.assert_array_equal(together[:3], other[:3])
    twice = distort(np.repeat(image[:1], 2, axis=0), KEY)
    assert np.abs(twice[0] - twice[1]).max() > 0.1
    assert np.abs(together - distort(image, jax.random.key(1))).max() > 0.1


def test_one_image_is_a_batch_of_one_and_vmap_takes_a_key_for_each():
    image, keys = images(4), jax.random.split(KEY, 4)
    expected = [distort(image[index : index + 1], keys[index])[0] for index in range(4)]
    np.testing.assert_allclose(jax.jit(jax.vmap(ALL))(image, keys), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(28, 28), (2, 28, 28, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"image must be \[B, height, width, 1\] or \[height, width, 1\], got \["):
        ALL(np.zeros(shape, np.float32), KEY)


def test_images_of_bytes_are_refused_and_of_half_precision_taken():
    with pytest.raises(ValueError, match="^image must be floating point, such as image / 255, got uint8$"):
        ALL(make_split(2).image, KEY)
    image = jnp.asarray(images(2), jnp.bfloat16)
    found = distort(image, KEY)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, distort(image.astype(jnp.float32), KEY).astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"rotation": 90}, r"rotation must be in \[0, 45\], got 90"),
        ({"scale": -0.1}, r"scale must be in \[0, 0.5\], got -0.1"),
        ({"smoothness": 0}, r"smoothness must be in \[2, 14\], got 0"),
        ({"shift": float("nan")}, r"shift must be in \[0, 14\], got nan"),
    ],
)
def test_an_amount_out_of_range_is_named(amounts, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Augmentation(**amounts)


@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_a_step_sees_the_distorted_images(microbatch_size):
    """The step's own images are recorded on their way through; a plain step on them does the same."""
    seen = []

    def augment(image, key):
        found = ALL(image, key)
        jax.debug.callback(seen.append, found, ordered=True)
        return found

    model, tx, batch = MLP(hidden_sizes=(8,), dropout_rate=0.0), optax.sgd(0.1), make_split(6)
    batch = {"image": batch.image, "label": batch.label}
    options = {"gradient_fn": AccumulatedGradient(microbatch_size)} if microbatch_size else {}
    distorted = create_train_state(model, tx, KEY, augment=augment, **options)
    plain = create_train_state(model, tx, KEY, **options)
    state, metrics = train_step(distorted, batch)
    jax.effects_barrier()
    image = np.concatenate(seen)
    if microbatch_size:
        assert len(seen) == 2
        image = image.reshape(2, 3, 28, 28, 1).swapaxes(0, 1).reshape(6, 28, 28, 1)
    assert np.abs(image - batch["image"] / np.float32(255)).max() > 0.1
    expected_state, expected = train_step(plain, {**batch, "image": image})
    assert_trees_close(state.params, expected_state.params)
    assert_trees_close(metrics, expected)


def test_evaluation_does_not_augment_and_no_step_repeats_another():
    split = make_split(6)
    model, tx = MLP(hidden_sizes=(8,), dropout_rate=0.0), optax.sgd(0.0)
    state = create_train_state(model, tx, KEY, augment=ALL)
    plain = create_train_state(model, tx, KEY)
    first, second = (train_epoch(state.replace(step=jnp.int32(step)), split, 6)[1] for step in (0, 1))
    assert float(first.loss) != float(second.loss)
    again = train_epoch(state, split, 6)[1]
    assert_trees_equal(first, again)
    np.testing.assert_array_equal(evaluate_dataset(state, split).logits, evaluate_dataset(plain, split).logits)
