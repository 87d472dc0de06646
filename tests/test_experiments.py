"""Each experiment runs, and says what it found."""

import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest

from mnist_jax import TrainConfig

DIRECTORY = Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(DIRECTORY))  # as for a script in there

from experiment import main, parse_seeds, report

from mnist_jax import InputError

EXPERIMENTS = sorted(path.stem for path in DIRECTORY.glob("*.py") if path.stem != "experiment")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_runs_on_the_digits(name, run_python, tmp_path):
    flags = ["--data", "digits", "--epochs", "1", "--batch-size", "64", "--results", "found.json"]
    done = run_python(str(DIRECTORY / f"{name}.py"), *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "elsewhere" / "found.json").read_text())
    assert [run["dataset"] for run in found["runs"]] == ["digits"]
    assert f"{found['runs'][0]['test_accuracy']:.2%}" in done.stdout


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_header_says_command_machine_and_result(name):
    spec = importlib.util.spec_from_file_location(name, DIRECTORY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(module.CONFIG, TrainConfig)
    for part in (f"python experiments/{name}.py", "cores", "±", "seeds"):
        assert part in module.__doc__


def test_several_seeds_are_each_a_run_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(data="digits", hidden_sizes=(4,), epochs=1, optimizer="sgd", learning_rate=0.1)
    assert main(config, "", ["--seeds", "1,3-4", "--results", "new/found.json"]) == 0
    runs = json.loads(Path("new/found.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [1, 3, 4]
    accuracies = [100 * run["test_accuracy"] for run in runs]
    expected = f"test accuracy {statistics.mean(accuracies):.3f} ± {statistics.stdev(accuracies):.3f} % over 3 seeds"
    assert expected in capsys.readouterr().out
    assert main(config, "", ["--seed", "3", "--results", "one.json"]) == 0
    (alone,) = json.loads(Path("one.json").read_text())["runs"]
    assert alone["test_loss"] == runs[1]["test_loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "many"], "error: seeds must be like 0-9 or 1,4, got many"),
        (["--seeds", "3-1"], "error: seeds must be like 0-9 or 1,4, got 3-1"),
        (["--seeds"], "error: argument --seeds: expected one argument"),
        (["--seeds", "1,2", "--workdir", "w"], "error: workdir must be left out with several seeds, as each run has"),
        (["--results", "there.json"], "error: there.json exists: choose another --results"),
        (["--epochs", "0"], "error: epochs must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("mine")
    assert main(TrainConfig(data="digits"), "", arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert len(error.splitlines()) == 1
    assert Path("there.json").read_text() == "mine"


def test_help_shows_the_question_and_the_flags(run_python):
    done = run_python(str(DIRECTORY / "fast_99.py"), "--help")
    assert done.returncode == 0
    assert "--seeds 0-9 or 1,4 repeats it" in done.stdout
    assert "--learning-rate" in done.stdout


def test_ranges_and_lists_of_seeds():
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    with pytest.raises(InputError, match="seeds must be like"):
        parse_seeds("")


def test_one_seed_has_no_spread():
    summary = {"seed": 5, "validation_accuracy": 0.5, "test_accuracy": 0.75, "seconds": {"train": 1.5, "total": 2.5}}
    assert report([summary]).splitlines()[-1] == "test accuracy 75.000 % over 1 seeds, 1.50 s training at the median"
