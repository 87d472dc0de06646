import json
import logging
import re
import shutil

import pytest
from conftest import assert_trees_equal

from mnist_jax import InputError, load_run, restore_checkpoint

KEPT = [198, 209, 220]  # of 20 epochs of 11 steps


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of a run, and a function that sets validation accuracies by epoch; the others become 0.5."""
    run = shutil.copytree(digits_run.workdir, tmp_path / "run")

    def set_accuracies(accuracies):
        lines = [{**line, "validation_accuracy": accuracies.get(line["epoch"], 0.5)} for line in digits_run.history]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    for path in (run / "checkpoints").iterdir():
        if int(path.name) not in KEPT:
            shutil.rmtree(path)
    return run, set_accuracies


@pytest.mark.parametrize(
    ("accuracies", "step"),
    [({18: 0.75}, 198), ({19: 0.75}, 209), ({18: 0.75, 19: 0.75}, 209), ({}, 220), ({3: 0.75, 19: 0.75}, 209)],
)
def test_the_best_state_is_loaded_and_the_newest_of_equals(run, digits_run, caplog, accuracies, step):
    path, set_accuracies = run
    set_accuracies(accuracies)
    config, state = load_run(path, best=True)
    assert config == digits_run.config
    assert_trees_equal(state, restore_checkpoint(path, digits_run.state, step=step))
    assert_trees_equal(load_run(path, best=True, state=digits_run.state)[1], state)
    assert caplog.messages == []


def test_a_better_epoch_without_a_checkpoint_is_named(run, caplog):
    path, set_accuracies = run
    set_accuracies({7: 0.875, 19: 0.75})
    with caplog.at_level(logging.WARNING):
        assert int(load_run(path, best=True)[1].step) == 209
    assert caplog.messages == [
        f"{path}: epoch 7 has the best validation accuracy, but no checkpoint: taking step 209 of epoch 19"
    ]


@pytest.mark.parametrize("content", [None, "", '{"step": [198]}'])
def test_without_the_accuracies_of_a_checkpoint_there_is_no_best(run, digits_run, content):
    path, _ = run
    if content is None:
        (path / "metrics.jsonl").unlink()
    else:
        line = {**digits_run.history[0], **json.loads(content or "{}")}
        (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    message = f"{path}: expected a checkpoint of an epoch in metrics.jsonl, found none"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_run(path, best=True)
