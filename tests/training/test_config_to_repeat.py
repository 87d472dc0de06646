"""``train --config`` begins a new run with the training of an earlier one."""

import contextlib
import dataclasses
import json
import re

import pytest
from conftest import assert_trees_equal
from rundirs import write_run, write_runs

from mnist_jax import InputError, TrainConfig, fit, load_run
from mnist_jax.cli.flags import parse_flags
from mnist_jax.train import main
from mnist_jax.training.directory import RunDirectory
from mnist_jax.training.runs import config_to_repeat

SMALL = TrainConfig(data="digits", hidden_sizes=(8,), epochs=1, batch_size=100, quiet=True)


def parse(*args):
    return parse_flags(TrainConfig(), [*map(str, args)], "prog")


@pytest.mark.parametrize("file", ["", "config.json"])
def test_all_fields_but_those_of_one_run_are_taken_over(tmp_path, file):
    fields = {"model": "cnn", "channels": (2, 3), "microbatch_size": 16, "seed": 5, "keep_checkpoints": 1}
    of_one_run = {"workdir": "somewhere", "resume": True, "progress": True, "quiet": True, "num_devices": 2}
    run = write_run(tmp_path / "run", 1000, **fields, **of_one_run, data_dir="/data")
    expected = TrainConfig(data="digits", epochs=2, **fields, data_dir="/data")
    assert config_to_repeat(run / file) == expected
    assert parse("--config", run / file) == expected
    overridden = parse("--epochs", 3, "--config", run / file, "--workdir", "new", "--seed", 0)
    assert overridden == dataclasses.replace(expected, epochs=3, workdir="new", seed=0)


def test_a_config_may_be_any_file(tmp_path):
    (tmp_path / "data.json").write_text("not the file of a run")
    (tmp_path / "mine.json").write_text('{"epochs": 3}')
    assert parse("--config", tmp_path / "mine.json") == TrainConfig(epochs=3)


def test_fields_that_lose_their_effect_are_dropped(tmp_path):
    run = write_run(tmp_path / "run", 1000, model="cnn", channels=(2, 3))
    assert parse("--config", run, "--model", "mlp") == TrainConfig(data="digits", epochs=2)


@pytest.mark.uses_adam
def test_the_new_run_has_the_same_parameters_and_the_old_one_may_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = fit(dataclasses.replace(SMALL, workdir="first"))
    assert main(["--config", "first", "--quiet"]) == 0  # into a directory with a name of its own
    (second,) = (tmp_path / "runs").iterdir()
    assert_trees_equal(load_run(second)[1], first.state)
    assert main(["--config", "first", "--quiet", "--workdir", "first"]) == 2
    message = "error: workdir first already holds a run .*: name another directory, or continue the run with --resume\n"
    assert re.fullmatch(message, capsys.readouterr().err)
    more = parse("--config", "first/config.json", "--workdir", "first", "--resume", "--epochs", 2)
    with contextlib.closing(RunDirectory.claim(more)) as directory:
        assert directory.saved == first.config


@pytest.mark.uses_adam
def test_the_data_is_found_from_another_directory(tmp_path, monkeypatch, idx_dir):
    monkeypatch.chdir(idx_dir.parent)
    fit(dataclasses.replace(SMALL, data=idx_dir.name, batch_size=20, workdir="run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert parse("--config", "../run").data == str(idx_dir)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--config RUNS/going --preset fast", "argument --preset: not allowed with argument --config"),
        ("--preset fast --config RUNS/going", "argument --config: not allowed with argument --preset"),
        ("--config RUNS/nowhere", "RUNS/nowhere: cannot be read (No such file or directory)"),
        ("--config RUNS/nowhere/config.json", "RUNS/nowhere/config.json: cannot be read (No such file or directory)"),
        ("--config RUNS/empty", "RUNS/empty: expected a run with a config.json, found none"),
        ("--config RUNS/empty/config.json", "RUNS/empty: expected a run with a config.json, found none"),
        (
            "--config RUNS",
            "RUNS: expected a run with a config.json, found none; "
            "name one of its runs, such as RUNS/going, RUNS/new, RUNS/started",
        ),
        (
            "--config RUNS/damaged",
            "RUNS/damaged/config.json: config: not JSON "
            "(Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        ),
        ("--config RUNS/new/summary.json", "RUNS/new/summary.json: config: unknown field 'num_parameters'"),
        (
            "--config RUNS/old --model cnn --hidden-sizes 3",
            "hidden_sizes has no effect with model cnn: leave it out, or choose model mlp",
        ),
        ("--config", "argument --config: expected one argument"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, args, message):
    runs = str(write_runs(tmp_path / "runs"))
    assert main(args.replace("RUNS", runs).split()) == 2
    assert capsys.readouterr().err == f"error: {message.replace('RUNS', runs)}\n"


@pytest.mark.parametrize(
    ("data", "description"),
    [
        ({"model": "Net", "has_own_optimizer": True}, "a custom model, Net"),
        ({"model": None, "has_own_optimizer": True}, "a custom optimizer"),
    ],
)
def test_a_model_or_an_optimizer_of_ones_own_is_not_in_the_config(tmp_path, data, description):
    run = write_run(tmp_path / "run", 1000)
    (run / "data.json").write_text(json.dumps(data))
    message = f"{run}: the run has {description}, which its config does not describe: train it with fit in Python"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        config_to_repeat(run)
