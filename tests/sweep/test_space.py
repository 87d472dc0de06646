import dataclasses

import numpy as np
import pytest

from mnist_jax import InputError, Search, TrainConfig, Trial
from mnist_jax.sweep.space import PER_TRIAL
from mnist_jax.training.optimizer import HYPERPARAMETERS


def draw(*vary, config=None, **options):
    return Search(vary=vary, **{"trials": 200, "population": 1, **options}).draw(config or TrainConfig())


def values(text, name, **options):
    return [trial[name] for trial in draw(text, **options)]


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({"trials": 16}, 10, [(16, 10)]),
        ({"trials": 27, "method": "halving"}, 27, [(27, 1), (9, 3), (3, 9), (1, 27)]),
        ({"trials": 16, "method": "halving"}, 10, [(16, 1), (5, 3), (1, 10)]),
        ({"trials": 100, "method": "halving", "eta": 4}, 5, [(100, 1), (25, 5)]),
        ({"trials": 2, "method": "halving"}, 10, [(2, 10)]),
    ],
)
def test_halving_keeps_fewer_trials_for_more_epochs(options, epochs, expected):
    assert Search(vary=("b1=0.1:0.9",), **options).rungs(epochs) == expected


def test_what_is_drawn_per_trial_is_what_one_program_can_vary():
    assert {name for names in HYPERPARAMETERS.values() for name in names} == PER_TRIAL


def test_ranges_are_drawn_evenly_or_on_a_logarithmic_axis():
    rates = np.array(values("learning-rate=1e-4:1e-2", "learning_rate"))
    assert (rates >= 1e-4).all() and (rates <= 1e-2).all()
    np.testing.assert_allclose(np.histogram(np.log10(rates), 4, (-4, -2))[0], 50, atol=20)
    shares = np.array(values("dropout_rate=0.1:0.5", "dropout_rate"))
    np.testing.assert_allclose(np.histogram(shares, 4, (0.1, 0.5))[0], 50, atol=20)
    assert all(float(f"{rate:.4g}") == rate for rate in rates)  # short enough to type


def test_whole_numbers_are_drawn_whole_ends_included():
    sizes = values("batch_size=3:6", "batch_size")
    assert set(sizes) == {3, 4, 5, 6}
    np.testing.assert_allclose(np.bincount(sizes)[3:], 50, atol=20)
    sizes = values("batch_size=1:64", "batch_size")
    assert all(isinstance(size, int) for size in sizes)
    np.testing.assert_allclose(sum(size < 8 for size in sizes), 100, atol=20)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("hidden_sizes=128/512,256/()", "hidden_sizes", {(128,), (512, 256), ()}),
        ("ema_decay=None/0.99", "ema_decay", {None, 0.99}),
        ("batch_norm=True/False", "batch_norm", {True, False}),
        ("optimizer=adam/sgd", "optimizer", {"adam", "sgd"}),
        ("learning_rate=1e-3/1", "learning_rate", {1e-3, 1.0}),
        ("clip_norm=0.5/None", "clip_norm", {0.5, None}),
    ],
)
def test_choices_are_values_of_the_config(text, name, expected):
    assert set(values(text, name, trials=len(expected))) == expected


def test_each_choice_is_drawn_once_before_one_is_drawn_again():
    per_population = values("batch_size=1/2/3", "batch_size", trials=24, population=2)
    assert per_population[0::2] == per_population[1::2]
    per_trial = values("dropout_rate=0.1/0.2/0.3", "dropout_rate", trials=12, population=1)
    for turns in (np.reshape(per_population[::2], (4, 3)), np.reshape(per_trial, (4, 3))):
        assert {tuple(sorted(turn)) for turn in turns} == {tuple(sorted(turns[0]))}
        assert len(set(turns[0])) == 3
        assert len({tuple(turn) for turn in turns}) > 1  # in an order of its own


def test_two_populations_try_both_of_two_choices_whatever_the_seed():
    for seed in range(20):
        sizes = values("batch_size=128/512", "batch_size", trials=8, population=4, config=TrainConfig(seed=seed))
        assert sizes in ([128] * 4 + [512] * 4, [512] * 4 + [128] * 4)


def test_choices_of_two_names_meet_evenly():
    pairs = [(trial["batch_size"], trial["hidden_sizes"]) for trial in draw("batch_size=1/2", "hidden_sizes=3,4/5,6")]
    assert len(set(pairs)) == 4
    np.testing.assert_allclose([pairs.count(pair) for pair in set(pairs)], 50, atol=20)


def test_what_is_drawn_depends_on_the_seed_alone():
    vary = ("learning_rate=1e-4:1e-2", "dropout_rate=0:0.5", "batch_size=1/2/3/4/5")
    trials = draw(*vary, population=4, trials=12)
    assert draw(*vary, population=4, trials=8) == trials[:8]
    assert draw(*vary, population=4, trials=12, config=TrainConfig(seed=1)) != trials
    assert len({trial["learning_rate"] for trial in trials}) == 12
    rates = [trial["dropout_rate"] for trial in trials]
    assert rates[0:4] + rates[4:8] + rates[8:12] == [rates[0]] * 4 + [rates[4]] * 4 + [rates[8]] * 4
    assert len(set(rates)) == 3


def test_where_the_optimizer_varies_each_has_its_own():
    trials = draw("optimizer=sgd/momentum", "momentum=0.1:0.9", "b1=0.1:0.9", trials=2)
    assert {"optimizer", "momentum", "b1"} == set(trials[0])


def test_one_program_trains_what_is_alike():
    config, search = TrainConfig(), Search(vary=("b1=0:0.5", "batch_size=8/9"), trials=7, population=2)
    drawn = [{"b1": 0.1, "batch_size": size} for size in (8, 8, 9, 9, 8, 8, 9)]
    small, large = (dataclasses.replace(config, batch_size=size) for size in (8, 9))
    assert list(search.populations(config, drawn, range(7))) == [
        (small, [0, 1]),
        (small, [4, 5]),
        (large, [2, 3]),
        (large, [6]),
    ]
    assert list(search.populations(config, drawn, [1, 3, 4])) == [(small, [1, 4]), (large, [3])]


def test_the_best_trial_ranks_first():
    ordered = [  # number, rung, epochs, seed, hyperparameters, loss, accuracy, seconds
        Trial(4, 1, 3, 0, {}, 0.9, 0.5, 1.0),
        Trial(3, 1, 3, 0, {}, None, 0.9, 1.0),
        Trial(5, 0, 1, 0, {}, 0.3, 0.9, 1.0),
        Trial(2, 0, 1, 0, {}, 0.1, 0.8, 1.0),
        Trial(0, 0, 1, 0, {}, 0.2, 0.8, 1.0),
        Trial(1, 0, 1, 0, {}, 0.2, 0.8, 1.0),
        Trial(6, 0, 1, 0, {}, None, 0.9, 1.0),
    ]
    assert sorted(ordered[3:] + ordered[:3], key=Trial.rank) == ordered


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["b1"], "vary must be like learning_rate=1e-4:1e-2 or hidden_sizes=128/512,256, got b1"),
        (["bogus=1:2"], "vary must name a hyperparameter of mnist_jax.train, got bogus"),
        (
            ["learning-rat=1:2"],
            "vary must name a hyperparameter of mnist_jax.train, got learning_rat; did you mean learning_rate?",
        ),
        (["seed=1:2"], "vary must name a hyperparameter of mnist_jax.train, got seed"),
        (["epochs=1/2"], "vary must name a hyperparameter of mnist_jax.train, got epochs"),
        (["early_stopping=1/2"], "vary must name a hyperparameter of mnist_jax.train, got early_stopping"),
        (["workdir=a/b"], "vary must name a hyperparameter of mnist_jax.train, got workdir"),
        (["b1=0.1:1"], "b1 must be in [0, 1), got 1.0"),
        (["b1=0.5:0.1"], "vary must have a range from low to high for b1, got 0.5:0.1"),
        (["clip_norm=None:1"], "vary must have a range from low to high for clip_norm, got None:1"),
        (["b1=low:high"], "b1 must be a number, got 'low'"),
        (["batch_size=8:9.5"], "batch_size must be a whole number, got 9.5"),
        (["model=cnn:mlp"], "vary must have choices for model, as in model=A/B, got the range cnn:mlp"),
        (["batch_norm=0:1"], "vary must have choices for batch_norm, as in batch_norm=A/B, got the range 0:1"),
        (["hidden_sizes=8:9"], "vary must have choices for hidden_sizes, as in hidden_sizes=A/B, got the range 8:9"),
        (["model=mlp/rnn"], "model must be one of mlp, cnn, got rnn; did you mean cnn?"),
        (["hidden_sizes=8/x"], "hidden_sizes must be whole numbers, got ('x',)"),
        (["b1=0.1:0.2", "b1=0.3:0.4"], "vary must name each hyperparameter once, got b1, b1"),
    ],
)
def test_what_cannot_be_varied_is_refused(vary, message):
    with pytest.raises(InputError) as caught:
        draw(*vary)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vary": ()}, "vary must name the values to search, like learning_rate=1e-4:1e-2 or .*, got nothing"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"eta": 1}, "eta must be at least 2, got 1"),
        ({"population": 0}, "population must be at least 1, got 0"),
        ({"method": "grid"}, "method must be one of random, halving, got grid"),
    ],
)
def test_a_search_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        Search(**{"vary": ("b1=0:0.5",), **options})


def test_a_hyperparameter_without_effect_is_refused_unless_another_decides():
    with pytest.raises(InputError, match="^momentum has no effect with optimizer adam: leave it out, or choose"):
        draw("momentum=0.1/0.9")
    search = Search(vary=("optimizer=adam/momentum", "momentum=0.1:0.5"), trials=4, population=1)
    drawn = search.draw(TrainConfig())
    assert all({"optimizer", "momentum"} == trial.keys() for trial in drawn)
    search = Search(vary=("model=mlp/cnn", "channels=3,4/5,6", "hidden_sizes=7/8"), trials=4, population=1)
    drawn = search.draw(TrainConfig())
    for program, (number,) in search.populations(TrainConfig(), drawn, range(4)):
        trial = drawn[number]
        assert program.model == trial["model"]
        expected = {"mlp": {"hidden_sizes": trial["hidden_sizes"]}, "cnn": {"channels": trial["channels"]}}
        assert program == TrainConfig(model=trial["model"], **expected[trial["model"]])
