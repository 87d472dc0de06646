"""What a run records of each example does not depend on interruptions, and is that of its epochs."""

import dataclasses

import numpy as np
import pytest
from conftest import assert_trees_equal

from mnist_jax import (
    Callback,
    InputError,
    RecordDynamics,
    TrainConfig,
    build_state,
    fit,
    load_dataset,
    load_dynamics,
    train_epoch,
)

pytestmark = pytest.mark.uses_adam
CONFIG = TrainConfig(data="digits", hidden_sizes=(8,), epochs=3, batch_size=100, learning_rate=0.05, quiet=True)


def arrays(dynamics):
    return list(vars(dynamics).values())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(dataclasses.replace(CONFIG, workdir=str(tmp_path_factory.mktemp("whole") / "run"), record=True))


def test_a_run_records_its_epochs(whole):
    dataset = load_dataset("digits")
    state = build_state(CONFIG, 3 * 14)
    dynamics = load_dynamics(whole.workdir)
    for epoch in range(3):
        state, metrics = train_epoch(state, dataset.train, CONFIG.batch_size, record=True)
        for name, values in vars(dynamics).items():
            np.testing.assert_allclose(values[epoch], getattr(metrics.examples, name), rtol=1e-4, atol=1e-5)
        assert dynamics.correct[epoch].mean() == pytest.approx(whole.history[epoch]["train_accuracy"])
        assert dynamics.loss[epoch].mean() == pytest.approx(whole.history[epoch]["train_loss"], rel=1e-5)


def test_recording_does_not_change_the_training(whole, tmp_path):
    plain = fit(dataclasses.replace(CONFIG, workdir=str(tmp_path / "run")))
    assert_trees_equal(plain.state.params, whole.state.params)
    assert not (plain.workdir / "dynamics").exists()
    with pytest.raises(InputError, match="expected values of each example, found none; train the run with --record"):
        load_dynamics(plain.workdir)


class Watch(Callback):
    """Looks at the examples of each chunk."""

    needs_examples = True

    def __init__(self):
        self.counts = []

    def on_chunk(self, training):
        losses = np.asarray(training.examples.loss)
        assert np.nansum(losses) == pytest.approx(float(training.metrics.loss_sum), rel=1e-5)
        self.counts.append(int(np.isfinite(losses).sum()))


def test_a_callback_of_ones_own_sees_the_examples(tmp_path):
    watch = Watch()
    fit(dataclasses.replace(CONFIG, epochs=1, workdir=str(tmp_path / "run")), callbacks=[watch])
    assert watch.counts == sorted(watch.counts)
    assert watch.counts[-1] == 1350
    assert not (tmp_path / "run" / "dynamics").exists()


class StopInTheMiddle(Callback):
    """Interrupts within the second epoch, as Ctrl-C does."""

    def on_chunk(self, training):
        training.signals.requested = 2 if training.step > 14 else None


def test_a_resumed_run_has_recorded_what_an_uninterrupted_one_has(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("mnist_jax.training.epochs._CHUNK_S", 0.0)  # a step each
    config = dataclasses.replace(CONFIG, workdir=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        fit(config, callbacks=[StopInTheMiddle(), RecordDynamics()])
    partial = np.load(tmp_path / "run" / "dynamics" / "epoch_0002.npz")["loss"]
    assert 0 < np.isfinite(partial).sum() < 1350
    assert len(load_dynamics(tmp_path / "run").loss) == 1
    fit(dataclasses.replace(config, resume=True, record=True))
    for found, expected in zip(
        arrays(load_dynamics(tmp_path / "run")), arrays(load_dynamics(whole.workdir)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_damaged_files_are_named(whole, tmp_path):
    with pytest.raises(InputError, match="no such directory; train a run with --record first, or name its directory"):
        load_dynamics(tmp_path / "missing")
    (tmp_path / "dynamics").mkdir()
    path = tmp_path / "dynamics" / "epoch_0001.npz"
    path.write_bytes(b"PK\3\4 not a zip file")
    with pytest.raises(InputError, match="epoch_0001.npz: expected the arrays loss, correct, margin, confidence"):
        load_dynamics(tmp_path)
    np.savez(path, loss=np.zeros(3), correct=np.zeros(3), margin=np.zeros(3), confidence=np.zeros(3))
    with pytest.raises(InputError, match=r"epoch_0001.npz: expected a float32\[N\] each, and bool\[N\] for correct"):
        load_dynamics(tmp_path)
    path.unlink()
    for epoch, size in ((1, 3), (2, 4)):
        values = dict.fromkeys(("loss", "margin", "confidence"), np.zeros(size, np.float32))
        np.savez(tmp_path / "dynamics" / f"epoch_000{epoch}.npz", correct=np.zeros(size, bool), **values)
    with pytest.raises(InputError, match="expected as many examples in each epoch, got different numbers"):
        load_dynamics(tmp_path)


def test_streamed_examples_are_not_recorded(tmp_path):
    from mnist_jax import StreamedSplit

    dataset = load_dataset("digits")
    train = dataset.train
    streamed = StreamedSplit(lambda index: type(train)(train.image[index], train.label[index]), 1350)
    with pytest.raises(InputError, match="record needs the training examples in memory: leave out stream, or do not"):
        fit(
            dataclasses.replace(CONFIG, workdir=str(tmp_path / "run"), record=True),
            dataset=dataclasses.replace(dataset, train=streamed),
        )
    assert not (tmp_path / "run").exists()
