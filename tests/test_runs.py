import dataclasses
import re
import subprocess
import sys

import pytest
from rundirs import SUMMARY, write_run, write_runs

from mnist_jax.runs import main, runs_table
from mnist_jax.training.runs import find_runs


@pytest.fixture
def runs(tmp_path):
    return write_runs(tmp_path / "runs")


def test_the_table_has_a_line_for_each(runs, capsys):
    assert main([str(runs)]) == 0
    lines = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["run", "data", "model", "parameters", "epochs", "validation", "test", "training"],
        [str(runs / "going"), "digits", "mlp", "1/2", "unfinished"],
        [str(runs / "new"), "digits", "cnn", "12,345", "2", "97.50%", "50.00%", "1.2 s"],
        [str(runs / "started"), "digits", "mlp", "0/2", "unfinished"],
        [str(runs / "old"), "digits", "mlp", "12,345", "2", "97.50%", "96.25%", "1.2 s"],
    ]


def test_numbers_are_flush_right(runs):
    found = find_runs(runs)
    wide = dataclasses.replace(found[1], summary={**SUMMARY, "num_parameters": 123456789})
    lines = runs_table([wide, found[3]]).splitlines()
    for name in ("123,456,789", "     12,345"):
        assert sum(line.find(name) == lines[1].find("123,456,789") for line in lines) == 1


@pytest.mark.parametrize("change", [{"model": [1]}, {"test_accuracy": 10**400}, {"test_accuracy": float("nan")}])
def test_a_run_with_a_summary_of_other_types_is_skipped(tmp_path, change):
    write_run(tmp_path / "hostile", 2000, summary={**SUMMARY, **change})
    write_run(tmp_path / "good", 1000, summary=SUMMARY)
    assert [run.path.name for run in find_runs(tmp_path)] == ["good"]


def test_each_run_is_one_printable_line(tmp_path):
    write_run(tmp_path / "a\nb", 2000, summary={**SUMMARY, "model": "\x1b[31m"})
    line = runs_table(find_runs(tmp_path)).splitlines()[1]
    assert re.split(r" {2,}", line)[:3] == [rf"{tmp_path}/a\nb", "digits", r"\x1b[31m"]


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([__file__]) == 2
    assert main([str(tmp_path), "more"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == f"error: {tmp_path / 'nowhere'}: no such directory; train a run first, or name the directory"
    assert second == f"error: {__file__}: expected a directory of runs (Not a directory)"
    assert third == "error: unrecognized arguments: more"


def test_a_reader_that_goes_away_is_no_error(runs):
    command = [sys.executable, "-m", "mnist_jax.runs", str(runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, "")


def test_listing_does_not_import_jax(run_python, runs):
    code = f"import sys\nfrom mnist_jax.runs import main\nmain([{str(runs)!r}])\nprint('jax' in sys.modules)"
    assert run_python("-c", code).stdout.splitlines()[-1] == "False"
