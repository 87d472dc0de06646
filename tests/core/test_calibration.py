import numpy as np
import pytest

from mnist_jax.core.calibration import Calibration


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
