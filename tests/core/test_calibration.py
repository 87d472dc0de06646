import json

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from mnist_jax.core.calibration import Calibration, Confidence


def make_predictions(num_examples):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(num_examples, 10))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, rng.integers(0, 10, num_examples)


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_the_bins_are_those_of_a_loop(num_bins):
    probabilities, label = make_predictions(200)
    found = Calibration.compute(probabilities, label, num_bins)
    total = 0
    for index in range(num_bins):
        inside = [
            (row.max(), row.argmax() == true)
            for row, true in zip(probabilities, label, strict=True)
            if index / num_bins < row.max() <= (index + 1) / num_bins
        ]
        assert found.count[index] == len(inside)
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            np.testing.assert_allclose([found.confidence[index], found.accuracy[index]], [confidence, accuracy])
            total += len(inside) / 200 * abs(confidence - accuracy)
        else:
            assert np.isnan([found.confidence[index], found.accuracy[index]]).all()
    assert found.expected_error == pytest.approx(total)
    assert found.edges.tolist() == [pytest.approx(index / num_bins) for index in range(num_bins + 1)]


def test_certain_and_right_is_no_error_and_certain_and_wrong_all_of_it():
    certain = np.eye(10)[[3, 4]]
    assert Calibration.compute(certain, np.array([3, 4])).expected_error == 0
    assert Calibration.compute(certain, np.array([4, 3])).expected_error == 1
    assert Calibration.compute(certain, np.array([3, 3])).expected_error == 0.5


def draw_examples(temperature=1.0, num_examples=2000, seed=0):
    """Logits and images, and labels drawn from the softmax of the logits at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (num_examples, 10))
    image = rng.integers(0, 256, (num_examples, 6, 5, 1), dtype=np.uint8)
    noise = rng.gumbel(size=logits.shape)
    return logits, image, (logits / temperature + noise).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_has_the_largest_likelihood(temperature):
    logits, image, label = draw_examples(temperature)

    def loss(candidate):
        return -np.mean(scipy.special.log_softmax(logits / candidate, axis=1)[np.arange(len(label)), label])

    expected = scipy.optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    fitted = Confidence.fit(logits, image, label)
    assert fitted.temperature == pytest.approx(expected, rel=1e-5)
    assert fitted.temperature == pytest.approx(temperature, rel=0.1)
    np.testing.assert_allclose(
        fitted.probabilities(logits), scipy.special.softmax(logits / fitted.temperature, axis=1), rtol=1e-6
    )


def describe(logits, image):
    """The features, by loops."""
    rows = []
    for z, x in zip(logits, image[..., 0] / 255, strict=True):
        down = sum(abs(x[i + 1, j] - x[i, j]) for i in range(5) for j in range(5))
        across = sum(abs(x[i, j + 1] - x[i, j]) for i in range(6) for j in range(4))
        rows.append([*z, x.sum(), down, across])
    return np.array(rows)


def test_the_distance_is_minus_twice_the_largest_log_density():
    logits, image, label = draw_examples(num_examples=500)
    fitted, feature = Confidence.fit(logits, image, label), describe(logits, image)
    residual = feature - fitted.mean[label]
    shared = residual.T @ residual / len(label)
    densities = []
    for k in range(10):
        own = feature[label == k]
        np.testing.assert_allclose(fitted.mean[k], own.mean(axis=0))
        weight = len(own) / (len(own) + 25)
        covariance = weight * np.cov(own.T, bias=True) + (1 - weight) * shared
        density = scipy.stats.multivariate_normal(own.mean(axis=0), covariance)
        densities.append(density.logpdf(feature) + 13 / 2 * np.log(2 * np.pi))
    expected = -2 * np.max(densities, axis=0)
    np.testing.assert_allclose(fitted.distance(logits, image), expected, rtol=1e-3)
    np.testing.assert_allclose(fitted.distance(logits, image / 255), expected, rtol=1e-3)


def test_one_in_a_hundred_of_other_examples_is_refused():
    logits, image, label = draw_examples()
    fitted = Confidence.fit(logits, image, label)
    distance = np.empty(2000)
    for fold in range(5):  # each fifth, from the Gaussians of the others
        out = np.arange(2000) % 5 == fold
        distance[out] = Confidence.fit(logits[~out], image[~out], label[~out]).distance(logits[out], image[out])
    assert np.sum(distance > fitted.threshold) == 20
    assert fitted.threshold in distance
    assert fitted.refuses(*draw_examples(seed=1)[:2]).mean() == pytest.approx(0.01, abs=0.005)
    assert not Confidence().refuses(logits, image).any()


def test_more_than_twenty_classes_or_one_example_refuse_nothing():
    logits, image = np.random.default_rng(0).normal(size=(50, 21)), np.zeros((50, 6, 5, 1), np.uint8)
    fitted = Confidence.fit(logits, image, np.arange(50) % 21)
    assert fitted.mean is None
    assert not fitted.refuses(100 * logits, image).any()
    one = logits[:1, :10], image[:1]
    assert not Confidence.fit(*one, np.array([3])).refuses(*one).any()


def test_a_confidence_is_the_same_after_a_file():
    logits, image, label = draw_examples()
    for confidence in (Confidence(2.0), Confidence.fit(logits, image, label)):
        content = json.loads(json.dumps(confidence.to_dict()))
        again = Confidence.from_dict(content)
        assert again.to_dict() == content
        np.testing.assert_array_equal(again.distance(logits, image), confidence.distance(logits, image))


def test_logits_without_errors_do_not_make_the_temperature_zero():
    fitted = Confidence.fit(np.eye(10) * 20, np.zeros((10, 6, 5, 1), np.uint8), np.arange(10))
    assert fitted.temperature == pytest.approx(0.05)
