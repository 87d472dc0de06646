import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

from mnist_jax import TrainConfig
from mnist_jax.runs import find_runs, main, newest_run, runs_table

SUMMARY = {
    "num_parameters": 12345,
    "validation_accuracy": 0.975,
    "test_accuracy": 0.9625,
    "seconds": {"train": 1.25},
}


def write_run(path, modified, num_epochs=2, summary=None, **fields):
    path.mkdir(parents=True)
    (path / "config.json").write_text(TrainConfig(data="digits", epochs=2, **fields).to_json())
    os.utime(path / "config.json", (modified, modified))
    if num_epochs:
        (path / "metrics.jsonl").write_text("{}\n" * num_epochs)
        os.utime(path / "metrics.jsonl", (modified, modified))
    if summary:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs" / "old", 1000, summary=SUMMARY)
    write_run(tmp_path / "runs" / "new", 3000, summary={**SUMMARY, "test_accuracy": 0.5}, model="cnn")
    write_run(tmp_path / "runs" / "going", 4000, num_epochs=1)
    write_run(tmp_path / "runs" / "begun", 2000, num_epochs=0)
    (tmp_path / "runs" / "notes.txt").write_text("not a run")
    (tmp_path / "runs" / "empty").mkdir()
    damaged = write_run(tmp_path / "runs" / "damaged", 5000)
    (damaged / "config.json").write_text("{")
    write_run(tmp_path / "runs" / "incomplete", 5000, summary={"test_accuracy": 0.5})
    damaged = write_run(tmp_path / "runs" / "damaged too", 5000)
    (damaged / "summary.json").write_text("[3]")
    return tmp_path / "runs"


def test_runs_come_newest_first_without_what_is_none(runs):
    found = find_runs(runs)
    assert [(run.path.name, run.num_epochs, run.modified) for run in found] == [
        ("going", 1, 4000),
        ("new", 2, 3000),
        ("begun", 0, 2000),
        ("old", 2, 1000),
    ]
    assert found[3].summary == SUMMARY
    assert found[0].summary == {}
    assert found[1].config == TrainConfig(data="digits", epochs=2, model="cnn")


def test_the_newest_is_a_finished_one(runs, tmp_path):
    assert newest_run(runs) == runs / "new"
    assert newest_run(runs / "empty") is None
    assert newest_run(tmp_path / "nowhere") is None


def test_the_table_has_a_line_for_each(runs, capsys):
    assert main([str(runs)]) == 0
    lines = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["run", "data", "model", "parameters", "epochs", "validation", "test", "training"],
        [str(runs / "going"), "digits", "mlp", "1/2", "unfinished"],
        [str(runs / "new"), "digits", "cnn", "12,345", "2", "97.50%", "50.00%", "1.2 s"],
        [str(runs / "begun"), "digits", "mlp", "0/2", "unfinished"],
        [str(runs / "old"), "digits", "mlp", "12,345", "2", "97.50%", "96.25%", "1.2 s"],
    ]


def test_numbers_are_flush_right(runs):
    found = find_runs(runs)
    wide = dataclasses.replace(found[1], summary={**SUMMARY, "num_parameters": 123456789})
    lines = runs_table([wide, found[3]]).splitlines()
    for name in ("123,456,789", "     12,345"):
        assert sum(line.find(name) == lines[1].find("123,456,789") for line in lines) == 1


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path), "more"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {tmp_path / 'nowhere'}: a directory of runs wanted (No such file or directory)"
    assert second == "error: unrecognized arguments: more"


def test_a_reader_that_goes_away_is_no_error(runs):
    command = [sys.executable, "-m", "mnist_jax.runs", str(runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, "")


def test_listing_does_not_import_jax(run_python, runs):
    code = f"import sys\nfrom mnist_jax.runs import main\nmain([{str(runs)!r}])\nprint('jax' in sys.modules)"
    assert run_python("-c", code).stdout.splitlines()[-1] == "False"
