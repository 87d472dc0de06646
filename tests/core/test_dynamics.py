import itertools

import numpy as np
import pytest

from mnist_jax import Dynamics, ExampleMetrics

RNG = np.random.default_rng(0)
E, N = 5, 40
CORRECT = RNG.random((E, N)) < 0.6
CORRECT[:, 0], CORRECT[:, 1] = False, True
CONFIDENCE = RNG.random((E, N)).astype(np.float32)
MARGIN = RNG.normal(size=(E, N)).astype(np.float32)
DYNAMICS = Dynamics(-np.log(CONFIDENCE), CORRECT, MARGIN, CONFIDENCE)


def test_a_forgetting_event_is_a_step_from_correct_to_wrong():
    for example in range(N):
        history = CORRECT[:, example].tolist()
        events = sum(was and not now for was, now in itertools.pairwise(history))
        assert DYNAMICS.forgetting_events()[example] == (events if any(history) else E)
    assert DYNAMICS.forgetting_events()[:2].tolist() == [E, 0]


def test_area_under_margin_and_data_map_are_statistics_over_the_epochs():
    place = DYNAMICS.data_map()
    for example in range(N):
        values = CONFIDENCE[:, example].astype(float).tolist()
        mean = sum(values) / E
        deviation = (sum((value - mean) ** 2 for value in values) / E) ** 0.5
        found = [each[example] for each in (*place, DYNAMICS.area_under_margin(), DYNAMICS.score())]
        expected = [mean, deviation, sum(CORRECT[:, example]) / E, sum(MARGIN[:, example].tolist()) / E, 1 - mean]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert all(each.dtype == np.float32 for each in place)


def test_epochs_are_stacked_and_must_be_complete():
    arrays = (DYNAMICS.loss, CORRECT, MARGIN, CONFIDENCE)
    epochs = [ExampleMetrics(*(array[epoch] for array in arrays)) for epoch in range(E)]
    stacked = Dynamics.stack(epochs)
    for found, expected in zip(vars(stacked).values(), arrays, strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="epochs must have a value for each example, got 40 without in epoch 2"):
        Dynamics.stack([epochs[0], ExampleMetrics.empty(N)])
    with pytest.raises(ValueError, match="epochs must have at least one epoch, got none"):
        Dynamics.stack([])
