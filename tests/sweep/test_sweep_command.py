import dataclasses
from pathlib import Path

import pytest

from mnist_jax import Search, Sweep, TrainConfig, Trial
from mnist_jax.cli.flags import parse_flags
from mnist_jax.sweep.__main__ import main, results_table

VARY = ["--vary", "learning_rate=1e-2:1", "hidden_sizes=4/4,3"]


def test_the_table_has_the_best_first_and_its_command():
    lines = [
        Trial(7, 1, 3, 8, {"learning_rate": 0.002, "hidden_sizes": (8, 4)}, 0.1, 0.975, 1.5),
        Trial(2, 1, 3, 3, {"learning_rate": 0.001, "hidden_sizes": (16,)}, 0.2, 0.95, 1.5),
        Trial(7, 0, 1, 8, {"learning_rate": 0.002, "hidden_sizes": (8, 4)}, 0.3, 0.9, 0.5),
        Trial(2, 0, 1, 3, {"learning_rate": 0.001, "hidden_sizes": (16,)}, 0.4, 0.8, 0.5),
        *(Trial(9 + i, 0, 1, 0, {"learning_rate": 1.0, "hidden_sizes": ()}, None, 0.1, 0.5) for i in range(20)),
    ]
    config = TrainConfig(data="digits", batch_norm=True, clip_norm=1.0, ema_decay=None, workdir="w", resume=True)
    rows = results_table(Sweep(config, lines, Path("w"))).splitlines()
    assert rows[:3] == [
        "trial  epochs  learning_rate  hidden_sizes  validation loss  accuracy",
        "    7       3          0.002           8,4           0.1000    97.50%",
        "    2       3          0.001            16           0.2000    95.00%",
    ]
    assert len(rows) == 1 + 20 + 4
    assert rows[21] == f"and 2 more in {Path('w') / 'trials.jsonl'}"
    assert rows[24] == "14.0 s training; everything is in w"
    start = "best: python -m mnist_jax.train "
    assert rows[23].startswith(start)
    best = dataclasses.replace(
        config, workdir=None, resume=False, epochs=3, seed=8, learning_rate=0.002, hidden_sizes=(8, 4)
    )
    assert parse_flags(TrainConfig(), rows[23].removeprefix(start).split(), "prog") == best


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "error: vary must name the values to search"),
        (["--vary"], "error: argument --vary: expected at least one argument"),
        ([*VARY, "--method", "grid"], "error: method must be one of random, halving, got grid\n"),
        ([*VARY, "--trials", "x"], "error: argument --trials: invalid int value: 'x'"),
        ([*VARY, "--epochs", "0"], "error: epochs must be at least 1, got 0"),
        ([*VARY, "--bogus", "1"], "error: unknown flag --bogus\n"),
        ([*VARY, "--trails", "1"], "error: unknown flag --trails; did you mean --trials?\n"),
    ],
)
def test_a_wrong_flag_is_one_line(args, message, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert len(error.splitlines()) == 1


def test_help_all_has_the_flags_of_a_search_and_of_a_run(capsys):
    with pytest.raises(SystemExit):
        main(["--help-all"])
    text = capsys.readouterr().out
    for field in (*dataclasses.fields(Search), *dataclasses.fields(TrainConfig)):
        assert f"\n  --{field.name.replace('_', '-')}" in text


def test_help_shows_its_own_and_the_common_flags(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--vary NAME=VALUES" in text
    assert "--learning-rate" in text
    assert "--augment-shear" not in text
