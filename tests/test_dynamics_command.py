import csv
import re

import numpy as np
import pytest
from matplotlib.image import imread

from mnist_jax import TrainConfig, fit, load_dataset, load_dynamics
from mnist_jax.dynamics import main
from mnist_jax.train import main as train

pytestmark = pytest.mark.uses_adam


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dynamics")
    config = TrainConfig(data="digits", hidden_sizes=(8,), epochs=3, batch_size=100, learning_rate=0.05, quiet=True)
    return fit(TrainConfig(**{**vars(config), "workdir": str(directory / "run"), "record": True})).workdir


def test_it_prints_the_table_and_writes_scores_and_figures(workdir, capsys, tmp_path):
    assert main([str(workdir)]) == 0
    output = capsys.readouterr().out
    dynamics, label = load_dynamics(workdir), load_dataset("digits").train.label
    events = dynamics.forgetting_events()
    assert output.startswith("1,350 training examples over 3 epochs\n")
    rows = [re.split(r" {2,}", line) for line in output.splitlines()[2:14]]
    for name, chosen in (("7", label == 7), ("all", label >= 0)):
        counts = [events[chosen] == 0, (events[chosen] > 0) & (events[chosen] < 3), events[chosen] == 3]
        numbers = [chosen.sum(), *(count.sum() for count in counts)]
        expected = [name, *(f"{n:,}" for n in numbers), f"{dynamics.margin[:, chosen].mean():.2f}"]
        assert expected in rows
    with (workdir / "dynamics" / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["index"]) for line in lines] == list(range(1350))
    np.testing.assert_array_equal([int(line["label"]) for line in lines], label)
    np.testing.assert_array_equal([int(line["forgetting_events"]) for line in lines], events)
    for name, values in {
        "score": dynamics.score(),
        "area_under_margin": dynamics.area_under_margin(),
        **dynamics.data_map()._asdict(),
    }.items():
        np.testing.assert_allclose([float(line[name]) for line in lines], values, rtol=1e-5)
    for name in ("data_map", "easy", "ambiguous", "forgotten", "never_learned"):
        assert imread(workdir / "dynamics" / f"{name}.png").shape[1] > 1000
    # The scores are those that a run on the hardest half takes, whose dynamics name the same examples.
    scores = str(workdir / "dynamics" / "scores.csv")
    flags = ["--data", "digits", "--hidden-sizes", "8", "--epochs", "1", "--quiet", "--record"]
    half = tmp_path / "half"
    assert train([*flags, "--keep-hardest", "0.5", "--scores", scores, "--workdir", str(half)]) == 0
    assert main([str(half)]) == 0
    with (half / "dynamics" / "scores.csv").open() as file:
        kept = [int(line["index"]) for line in csv.DictReader(file)]
    order = np.argsort([-float(line["score"]) for line in lines], kind="stable")
    np.testing.assert_array_equal(kept, np.sort(order[:675]))


def test_a_run_that_recorded_nothing_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: expected values of each example, found none; train the run with --record\n"
    )
