from pathlib import Path
from types import SimpleNamespace

import pytest

from mnist_jax import TrainConfig, build_augmentation
from mnist_jax.training.callbacks import LearningCurves


@pytest.mark.parametrize(
    ("options", "has_own_model", "label"),
    [
        ({}, False, "train (with dropout, during the epoch)"),
        ({"dropout_rate": 0.0}, False, "train (during the epoch)"),
        ({"hidden_sizes": ()}, False, "train (during the epoch)"),
        ({"model": "cnn", "augment_shift": 1.0}, False, "train (with dropout and augmentation, during the epoch)"),
        ({"dropout_rate": 0.0, "augment_erasing": 0.1}, False, "train (with augmentation, during the epoch)"),
        ({}, True, "train (during the epoch)"),
    ],
)
def test_the_training_curve_says_how_it_was_measured(monkeypatch, options, has_own_model, label):
    drawn = []
    monkeypatch.setattr("mnist_jax.report.figures.learning_curves", lambda *args: drawn.append(args))
    config = TrainConfig(**options)
    training = SimpleNamespace(
        config=config,
        model="mine" if has_own_model else config.model,
        state=SimpleNamespace(recipe=SimpleNamespace(augment=build_augmentation(config))),
        directory=SimpleNamespace(path=Path("run")),
        summary={"model": "mlp"},
        dataset=SimpleNamespace(name="some"),
        history=["a line"],
    )
    LearningCurves().on_finish(training)
    assert drawn == [(["a line"], Path("run/figures/learning_curves.png"), "mlp on some", label)]
