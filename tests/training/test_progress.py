import itertools
import sys
from types import SimpleNamespace

import pytest
import tqdm
import tqdm.notebook

from mnist_jax.training.progress import Progress, closing_table

LINE = {
    "epoch": 3,
    "train_loss": 0.25,
    "train_accuracy": 0.9,
    "validation_loss": 0.125,
    "validation_accuracy": 0.95,
    "examples_per_second": 12345.6,
}


def report(progress):
    progress.begin_epoch(3)
    progress.update(30, 0.5, 0.75)
    progress.update(30, 0.25, 0.9)
    progress.end_epoch(LINE)


def clock(*seconds):
    return iter(seconds).__next__


def test_without_a_terminal_an_epoch_is_a_line(capsys):
    report(Progress(10, 60, quiet=False, clock=clock(100.0, 102.0)))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "epoch  3/10  loss 0.2500  accuracy 0.9000  validation loss 0.1250  accuracy 0.9500  12,346 examples/s"
        "  14 s left\n"  # 7 epochs of 2 s
    )


def test_the_time_left_is_that_of_the_run_since_its_first_epoch_here(capsys):
    """As after a resume, with 20 of the 60 examples of epoch 2 done; one second per 10 examples."""
    progress = Progress(3, 60, quiet=False, clock=clock(1000.0, 1004.0))
    progress.begin_epoch(2, count=20)
    progress.update(40, 0.5, 0.75)
    progress.end_epoch({**LINE, "epoch": 2})
    progress.begin_epoch(3)
    progress.update(30, 0.5, 0.75)
    progress.update(30, 0.5, 0.75)
    progress.end_epoch(LINE)
    second, third = capsys.readouterr().err.splitlines()
    assert second.endswith("12,346 examples/s  6 s left")
    assert third.endswith("12,346 examples/s")


def test_the_bar_shows_the_time_left_of_the_run(capsys):
    progress = Progress(10, 60, quiet=False, bar=True, clock=itertools.count(0.0, 60.0).__next__)
    progress.begin_epoch(9, count=15)
    progress.update(15, 0.5, 0.75)
    progress._bar.refresh()
    progress.close()
    assert "50%" in (err := capsys.readouterr().err)
    assert "examples/s, loss 0.5000, accuracy 0.7500, 6 min left]" in err  # one minute for 15 of the 105 examples


@pytest.mark.parametrize("bar", [False, True])
def test_quiet_is_quiet(capsys, monkeypatch, bar):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report(Progress(10, 60, quiet=True, bar=bar))
    assert capsys.readouterr().err == ""


def test_a_bar_may_be_wanted_where_there_is_no_terminal(capsys):
    report(Progress(10, 60, quiet=False, bar=True))
    err = capsys.readouterr().err
    assert "epoch 3/10:  50%" in err
    assert "loss 0.5000, accuracy 0.7500" in err


def test_on_a_terminal_there_is_a_bar_that_goes_away(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(10, 60, quiet=False)
    report(progress)
    err = capsys.readouterr().err
    assert "epoch 3/10:" in err
    assert "30/60" in err
    assert "examples/s, loss 0.5000, accuracy 0.7500" in err
    assert err.splitlines()[-1].startswith("epoch  3/10  loss 0.2500")
    progress.close()


@pytest.fixture
def jupyter(monkeypatch):
    """A kernel of Jupyter; returns the text bar that stands for the bar of widgets, with the names it was given."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    descriptions = []

    class Bar(tqdm.tqdm):
        def __init__(self, **options):
            descriptions.append(options["desc"])
            super().__init__(**options)

    monkeypatch.setattr(tqdm.notebook, "tqdm", Bar)
    monkeypatch.setattr(tqdm.notebook, "IProgress", object)
    return descriptions


def test_in_a_notebook_the_bar_is_a_widget(capsys, jupyter):
    report(Progress(10, 60, quiet=False))
    assert jupyter == ["epoch 3/10"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("epoch  3/10  loss 0.2500")


def test_without_ipywidgets_a_notebook_gets_a_line_per_epoch_and_no_warning(capsys, jupyter, monkeypatch):
    monkeypatch.setattr(tqdm.notebook, "IProgress", None)
    report(Progress(10, 60, quiet=False))
    assert jupyter == []
    assert capsys.readouterr().err.splitlines()[0].startswith("epoch  3/10  loss 0.2500")


def test_quiet_is_quiet_in_a_notebook(capsys, jupyter):
    report(Progress(10, 60, quiet=True))
    assert (jupyter, capsys.readouterr().err) == ([], "")


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["imported", "terminal"])
def test_ipython_in_a_terminal_is_no_notebook(capsys, jupyter, monkeypatch, shell):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    report(Progress(10, 60, quiet=False))
    assert jupyter == []


def test_the_closing_table():
    splits = {"train": (55_000, 0.03, 0.9912), "validation": (5_000, 0.05, 0.98), "test": (10_000, 0.06, 0.97999)}
    summary = {
        "model": "mlp",
        "dataset": "mnist",
        "data_path": "path/to/mnist",
        "num_parameters": 535818,
        "epochs": 10,
        "seed": 0,
        "device": {"kind": "cpu", "count": 1},
        "seconds": {"train": 4.56, "total": 9.04},
    }
    for split, (count, loss, accuracy) in splits.items():
        summary |= {f"num_{split}": count, f"{split}_loss": loss, f"{split}_accuracy": accuracy}
    assert closing_table(summary, "runs/x").splitlines() == [
        "              examples      loss   accuracy",
        "train           55,000    0.0300     99.12%",
        "validation       5,000    0.0500     98.00%",
        "test            10,000    0.0600     98.00%",
        "",
        "mlp on mnist, 535,818 parameters, 10 epochs, seed 0, cpu",
        "4.6 s training, 9.0 s in all; everything is in runs/x",
    ]
    assert "parameters, 1 epoch, seed" in closing_table({**summary, "epochs": 1}, "runs/x")
    digits = closing_table({**summary, "dataset": "digits", "data_path": None}, "runs/x").splitlines()
    assert digits[5:7] == [
        "mlp on digits, 535,818 parameters, 10 epochs, seed 0, cpu",
        "trained on scikit-learn's 1,797 small digits, not on MNIST",
    ]
    assert "not on MNIST" not in closing_table({**summary, "dataset": "digits"}, "runs/x")  # a directory of that name
