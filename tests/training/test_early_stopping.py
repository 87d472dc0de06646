"""``early_stopping`` ends a run after the same epoch, resumed or not."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from conftest import assert_trees_equal

from mnist_jax import Callback, TrainConfig, fit
from mnist_jax.train import main
from mnist_jax.training.callbacks import EarlyStopping
from mnist_jax.training.progress import closing_table
from mnist_jax.training.run import Training

# The loss goes up and down.
CONFIG = TrainConfig(
    data="digits", hidden_sizes=(8,), epochs=12, batch_size=100, learning_rate=0.3, ema_decay=None, quiet=True
)


def stop_epoch(losses, patience):
    """The epoch after which a run stops, and the best; by the definition."""
    for epoch in range(1, len(losses)):
        best = min(range(epoch), key=losses.__getitem__) + 1
        if epoch - best >= patience:
            return epoch, best
    return len(losses), None


@pytest.mark.parametrize(
    ("losses", "patience", "best"),
    [
        ([], 1, None),
        ([3.0], 1, None),
        ([3.0, 2.0, 1.0], 1, None),
        ([3.0, 4.0], 1, 1),
        ([3.0, 3.0], 1, 1),  # equal is not lower
        ([3.0, 4.0], 2, None),
        ([3.0, 4.0, 2.9], 2, None),
        ([3.0, 1.0, 2.0, 1.5], 2, 2),
        ([3.0, 1.0, 2.0, 1.0], 2, 2),
        ([3.0, 4.0, 5.0], None, None),
        ([3.0, 4.0, 4.0, 4.0, 4.0], 1, None),  # the last epoch anyway
    ],
)
@pytest.mark.parametrize("event", ["on_epoch_end", "on_begin"])
def test_it_stops_after_so_many_epochs_without_a_lower_loss(losses, patience, best, event):
    training = SimpleNamespace(
        config=TrainConfig(epochs=5, early_stopping=patience),
        history=[{"validation_loss": loss} for loss in losses],
        reasons=[],
    )
    training.stop = training.reasons.append
    getattr(EarlyStopping(), event)(training)
    expected = [] if best is None else [f"no lower validation loss than {losses[best - 1]:.4f} of epoch {best}"]
    assert training.reasons == expected


def numbers(history):
    return [{name: line[name] for name in line if name not in ("seconds", "examples_per_second")} for line in history]


def without_seconds(summary):
    return {name: value for name, value in summary.items() if name != "seconds"}


class StopAtOnce(Callback):
    """Interrupts after each epoch, as Ctrl-C does."""

    def on_epoch_end(self, training):
        training.signals.requested = 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(dataclasses.replace(CONFIG, workdir=str(tmp_path_factory.mktemp("whole") / "run")))


@pytest.mark.uses_adam
def test_a_run_stops_early_and_its_summary_says_why(tmp_path, whole, capsys):
    losses = [line["validation_loss"] for line in whole.history]
    epoch, best = stop_epoch(losses, patience=1)
    assert 1 < epoch < 12
    flags = "--hidden-sizes 8 --batch-size 100 --learning-rate 0.3 --ema-decay None --epochs 12 --early-stopping 1"
    path = tmp_path / "run"
    assert main(["--data", "digits", *flags.split(), "--quiet", "--workdir", str(path)]) == 0
    reason = f"no lower validation loss than {losses[best - 1]:.4f} of epoch {best}"
    assert f"\nstopped early: {reason}\n" in capsys.readouterr().out
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["epochs"], summary["stop_reason"]) == (epoch, reason)
    assert "stopped" not in closing_table(whole.summary, path)
    history = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert numbers(history) == numbers(whole.history[:epoch])
    (path / "summary.json").unlink()  # as if it had been killed before the end
    resumed = fit(dataclasses.replace(CONFIG, workdir=str(path), resume=True))  # takes over the patience
    assert without_seconds(resumed.summary) == without_seconds(summary)
    assert resumed.config.early_stopping == 1


@pytest.mark.slow
@pytest.mark.uses_adam
@pytest.mark.parametrize("patience", [1, 2])
def test_a_run_interrupted_after_each_epoch_stops_at_the_same_one(tmp_path, whole, patience):
    config = dataclasses.replace(CONFIG, early_stopping=patience)
    straight = fit(dataclasses.replace(config, workdir=str(tmp_path / "straight")))
    epoch, _ = stop_epoch([line["validation_loss"] for line in whole.history], patience)
    assert len(straight.history) == epoch
    config = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    for _ in straight.history[:-1]:
        with pytest.raises(KeyboardInterrupt):
            fit(config, callbacks=[StopAtOnce()])
        config = dataclasses.replace(config, resume=True)
    run = fit(config)
    assert numbers(run.history) == numbers(straight.history)
    assert without_seconds(run.summary) == without_seconds(straight.summary)
    assert_trees_equal(run.state, straight.state)
    more = fit(dataclasses.replace(config, early_stopping=100))  # a larger number goes on
    assert numbers(more.history) == numbers(whole.history)
    assert "stop_reason" not in more.summary


def test_a_reason_may_be_left_out_and_is_not_lost():
    training = Training(*[None] * 7)
    training.stop()
    assert (training.stop_requested, training.stop_reason) == (True, None)
    training.stop("enough")
    training.stop()
    assert training.stop_reason == "enough"
