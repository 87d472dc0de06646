import json
import re

import pytest
from matplotlib.image import imread
from rundirs import SUMMARY, write_run

from mnist_jax.compare import main

LINES = [
    {"epoch": epoch, "seconds": 1.0, "train_loss": 0.5, "train_accuracy": 0.5, "validation_loss": loss,
     "validation_accuracy": accuracy}
    for epoch, loss, accuracy in ((1, 0.25, 0.9), (2, 0.125, 0.975))
]  # fmt: skip


def write(path, num_epochs=2, **options):
    write_run(path, 1000, num_epochs=0, **options)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES[:num_epochs]))
    return path


@pytest.fixture
def runs(tmp_path):
    write(tmp_path / "mine", summary=SUMMARY, workdir="mine", quiet=True)
    seconds = {"train": 2, "total": 3.75}
    summary = {**SUMMARY, "test_accuracy": 0.5, "test_loss": 1.5, "stop_reason": "enough", "seconds": seconds}
    write(tmp_path / "other", summary=summary, hidden_sizes=(), ema_decay=None, seed=3)
    write(tmp_path / "going", num_epochs=1, model="cnn")
    write_run(tmp_path / "started", 1000, num_epochs=0)
    return tmp_path


def rows(text):
    return [re.split(r" {2,}", line) for line in text.splitlines()]


def test_the_table_has_what_differs_and_the_results(runs, capsys):
    assert main([str(runs / name) for name in ("mine", "other", "going", "started")]) == 0
    assert rows(capsys.readouterr().out) == [
        ["", "mine", "other", "going", "started"],
        ["model", "mlp", "mlp", "cnn", "mlp"],
        ["hidden_sizes", "512 256", "none", "-", "512 256"],
        ["ema_decay", "0.999", "None", "0.999", "0.999"],
        ["seed", "0", "3", "0", "0"],
        ["status", "finished", "stopped early", "unfinished", "unfinished"],
        ["epochs trained", "2", "2", "1/2", "0/2"],
        ["parameters", "12,345", "12,345", "-", "-"],
        ["validation accuracy", "97.50%", "97.50%", "90.00%", "-"],
        ["validation loss", "0.1250", "0.1250", "0.2500", "-"],
        ["test accuracy", "96.25%", "50.00%", "-", "-"],
        ["test loss", "-", "1.5000", "-", "-"],
        ["training time", "1.2 s", "2.0 s", "-", "-"],
        ["total time", "-", "3.8 s", "-", "-"],
    ]


def test_runs_of_the_same_name_are_called_by_their_paths(runs, capsys, monkeypatch):
    write(runs / "b" / "mine")
    monkeypatch.chdir(runs)
    assert main(["mine/", "b/mine"]) == 0
    assert rows(capsys.readouterr().out)[:2] == [["", "mine", "b/mine"], ["status", "finished", "unfinished"]]


def test_the_figure_is_a_new_file(runs, capsys):
    command = [*(str(runs / name) for name in ("mine", "going", "started")), "--output", str(runs / "curves.png")]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"the curves are in {runs / 'curves.png'}"
    assert imread(runs / "curves.png").shape[1] == 1350
    before = (runs / "curves.png").read_bytes()
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: --output {runs / 'curves.png'} exists already: name another file\n"
    assert (captured.out, (runs / "curves.png").read_bytes()) == ("", before)


def test_any_name_has_a_curve(tmp_path):
    paths = [str(write(tmp_path / name)) for name in ("$x$", "a_b$", "_hidden", "two\nlines", "x" * 60)]
    assert main([*paths, "--output", str(tmp_path / "curves.png")]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "the following arguments are required: RUN"),
        ("mine nowhere", "nowhere: expected a run with a config.json, found none"),
        ("mine other --output curves.pdf", "--output must be a .png file, got curves.pdf"),
        ("mine other --output no/curves.png", "--output no/curves.png: cannot be written (No such file or directory)"),
        ("started --output curves.png", "none of the runs has finished an epoch: leave out --output"),
        ("lines", "lines/metrics.jsonl: expected epochs 1, 2, ... one on each line, got something else"),
        ("summary", "summary/summary.json: expected the results of a run ('num_parameters')"),
        ("--outptu x", "unknown flag --outptu; did you mean --output?"),
    ],
)
def test_bad_input_is_one_line_and_status_2(runs, capsys, monkeypatch, args, message):
    monkeypatch.chdir(runs)
    if args == "lines":
        write_run(runs / "lines", 1000)
    if args == "summary":
        write_run(runs / "summary", 1000, summary={"test_accuracy": 0.5})
    assert main(args.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_comparing_imports_neither_jax_nor_matplotlib(run_python, runs):
    code = f"import sys\nfrom mnist_jax.compare import main\nmain([{str(runs / 'mine')!r}])\n"
    code += "print([name for name in ('jax', 'matplotlib') if name in sys.modules])"
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"
