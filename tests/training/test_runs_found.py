import json
import re

import pytest
from rundirs import SUMMARY, write_runs

from mnist_jax import InputError, TrainConfig, load_run
from mnist_jax.training.runs import find_runs, newest_mnist_run


@pytest.fixture
def runs(tmp_path):
    return write_runs(tmp_path / "runs")


def test_runs_come_newest_first_without_what_is_none(runs):
    found = find_runs(runs)
    assert [(run.path.name, run.num_epochs, run.modified) for run in found] == [
        ("going", 1, 4000),
        ("new", 2, 3000),
        ("started", 0, 2000),
        ("old", 2, 1000),
    ]
    assert found[3].summary == SUMMARY
    assert found[0].summary == {}
    assert found[1].config == TrainConfig(data="digits", epochs=2, model="cnn")


def test_the_newest_finished_one_on_mnist_is_found(runs, tmp_path):
    assert newest_mnist_run(runs) is None  # all are on digits
    for name, dataset in (("old", "mnist"), ("new", "mnist+digits")):
        (runs / name / "summary.json").write_text(json.dumps(SUMMARY | {"dataset": dataset}))
        assert newest_mnist_run(runs) == runs / name
    assert newest_mnist_run(runs / "empty") is None
    assert newest_mnist_run(tmp_path / "nowhere") is None


def test_a_directory_of_runs_in_place_of_a_run_is_answered_with_their_names(runs):
    names = ", ".join(str(runs / name) for name in ("going", "new", "started"))
    message = f"{runs}: expected a run with a config.json, found none; name one of its runs, such as {names}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_run(runs)
