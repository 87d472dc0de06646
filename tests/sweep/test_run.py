import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import make_split
from filelock import FileLock

import mnist_jax.training.population
from mnist_jax import (
    Dataset,
    InputError,
    Population,
    Search,
    Split,
    TrainConfig,
    run_sweep,
    train_population,
)
from mnist_jax.sweep.__main__ import main, results_table

# Its test split has no images: whoever looks at it fails.
DATASET = Dataset(make_split(40), make_split(20, seed=1), Split(None, make_split(10).label), "some")
CONFIG = TrainConfig(hidden_sizes=(4,), batch_size=20, epochs=2, optimizer="sgd", dropout_rate=0.0, ema_decay=None)
CONFIG = dataclasses.replace(CONFIG, quiet=True, seed=5)
SEARCH = Search(vary=("learning_rate=1e-2:1", "hidden_sizes=4/4,3"), trials=4, method="halving", eta=2, population=2)
VARY = ["--vary", *SEARCH.vary]


@pytest.fixture(autouse=True)
def small_dataset(monkeypatch):
    monkeypatch.setattr("mnist_jax.sweep.run.load_dataset", lambda *args, **options: DATASET)


def guess_accuracy(learning_rate, seed, epochs):
    """In [0, 1], and with a maximum inside the range that is searched."""
    return np.round(1 / (1 + (np.log10(learning_rate) + 0.9) ** 2) - 0.1 / epochs - 1e-4 * seed, 6)


@pytest.fixture
def trained(monkeypatch):
    """The config and the seeds of each population that was trained: by a formula, which takes no time."""
    populations = []

    def train(config, seeds, hyperparameters, dataset, before_epoch):
        for epoch in range(1, config.epochs + 1):
            before_epoch(epoch)
        populations.append((config, seeds))
        rates = np.array(hyperparameters["learning_rate"])
        accuracy = guess_accuracy(rates, np.array(seeds), config.epochs)
        loss = np.where(rates < 1e30, 2 - accuracy, np.nan)
        return Population(config, tuple(seeds), hyperparameters, None, loss[None], accuracy[None])

    monkeypatch.setattr("mnist_jax.training.population.train_population", train)
    return populations


@pytest.fixture
def sweep(trained, tmp_path):
    return run_sweep(in_directory(tmp_path / "whole"), SEARCH)


def in_directory(path, **options):
    return dataclasses.replace(CONFIG, workdir=path, **options)


def without_seconds(trials):
    return [dataclasses.replace(trial, seconds=0.0) for trial in trials]


def test_a_trial_is_the_run_of_its_config(tmp_path):
    search = Search(vary=("learning_rate=1e-2:1", "hidden_sizes=3/3"), trials=2, population=2)
    sweep = run_sweep(in_directory(tmp_path / "new"), search)
    assert len(sweep.trials) == 2
    trial = sweep.trials[1]
    config = dataclasses.replace(sweep, trials=[trial]).best_config
    assert (config.learning_rate, config.hidden_sizes) == (trial.hyperparameters["learning_rate"], (3,))
    assert (config.epochs, config.seed, config.workdir) == (2, 5 + trial.number, None)
    alone = train_population(config, [config.seed], dataset=DATASET)
    assert alone.validation_accuracy[-1, 0] == trial.validation_accuracy
    np.testing.assert_allclose(alone.validation_loss[-1, 0], trial.validation_loss, rtol=1e-4)


def test_the_best_go_on_to_the_next_rung(sweep, trained):
    drawn = SEARCH.draw(CONFIG)
    accuracies = {
        number: guess_accuracy(each["learning_rate"], 5 + number, epochs=1) for number, each in enumerate(drawn)
    }
    ordered = sorted(accuracies, key=accuracies.get, reverse=True)
    assert len(set(accuracies.values())) == 4
    assert [(trial.number, trial.rung, trial.epochs, trial.seed, trial.hyperparameters) for trial in sweep.trials] == [
        *((number, 1, 2, 5 + number, drawn[number]) for number in ordered[:2]),
        *((number, 0, 1, 5 + number, drawn[number]) for number in ordered),
    ]
    assert [trial.validation_accuracy for trial in sweep.trials[2:]] == [accuracies[number] for number in ordered]
    for config, seeds in trained:
        expected = {"hidden_sizes": drawn[seeds[0] - 5]["hidden_sizes"], "epochs": config.epochs, "data": "some"}
        assert config == dataclasses.replace(sweep.config, **expected)


def test_an_optimizer_gets_the_hyperparameters_it_has(trained, tmp_path):
    vary = ("learning_rate=1e-2:1", "optimizer=sgd/momentum", "momentum=0.1:0.9")
    found = run_sweep(in_directory(tmp_path / "new"), Search(vary, trials=4, population=2))
    assert sorted(config.optimizer for config, _ in trained) == ["momentum", "sgd"]
    assert {tuple(trial.hyperparameters) for trial in found.trials} == {("learning_rate", "optimizer", "momentum")}
    with pytest.raises(
        InputError, match="^momentum has no effect with optimizer sgd: leave it out, or choose optimizer momentum$"
    ):
        run_sweep(in_directory(tmp_path / "other"), Search(("momentum=0.1:0.9",)))
    assert not (tmp_path / "other").exists()


def test_early_stopping_is_refused(trained, tmp_path):
    with pytest.raises(InputError, match="^early_stopping has no effect on a sweep: leave it out, got 3$"):
        run_sweep(dataclasses.replace(in_directory(tmp_path / "new"), early_stopping=3), Search(("b1=0.1:0.9",)))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("batch_size=20/41", "^batch_size must be at most the 40 training examples of some, got 41$"),
        ("kernel_sizes=3,3/5,13", "^kernel_sizes and pool_sizes must fit into the image, "),
    ],
)
def test_what_cannot_be_trained_is_found_before_the_first_is(trained, tmp_path, vary, message):
    config = in_directory(tmp_path / "new")
    if "kernel_sizes" in vary:
        config = dataclasses.replace(config, model="cnn", hidden_sizes=TrainConfig.hidden_sizes)
    with pytest.raises(InputError, match=message):
        run_sweep(config, Search((vary,), trials=2, population=1))
    assert not trained
    assert not (tmp_path / "new").exists()


def test_the_directory_holds_what_was_found(sweep):
    spec = json.loads((sweep.workdir / "sweep.json").read_text())
    assert spec["search"] == {**dataclasses.asdict(SEARCH), "vary": list(SEARCH.vary)}
    assert spec["config"]["learning_rate"] == CONFIG.learning_rate
    assert spec["config"]["data"] == "some"
    assert "workdir" not in spec["config"]
    assert spec["data"] == DATASET.identity()
    lines = [json.loads(line) for line in (sweep.workdir / "trials.jsonl").read_text().splitlines()]
    expected = [json.loads(json.dumps(dataclasses.asdict(trial))) for trial in sweep.trials]
    assert sorted(map(json.dumps, lines)) == sorted(map(json.dumps, expected))
    assert (sweep.workdir / "figures" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not (sweep.workdir / ".lock").exists()


def test_a_stopped_sweep_goes_on_to_the_same_end(sweep, trained, tmp_path, monkeypatch, capsys):
    train = mnist_jax.training.population.train_population
    whole, path = list(trained), tmp_path / "part"
    trained.clear()

    def be_stopped(*args):
        if len(trained) == 1:
            signal.raise_signal(signal.SIGTERM)
        return train(*args)

    flags = ["--hidden-sizes", "4", "--batch-size", "20", "--epochs", "2", "--optimizer", "sgd", "--dropout-rate", "0"]
    flags += ["--ema-decay", "None", "--seed", "5", *VARY, "--trials", "4", "--method", "halving", "--eta", "2"]
    flags += ["--population", "2", "--workdir", str(path)]
    with monkeypatch.context() as patch:
        patch.setattr("mnist_jax.training.population.train_population", be_stopped)
        assert main(flags) == 143
    *progress, stopped = capsys.readouterr().err.splitlines()
    best = max(trial.validation_accuracy for trial in sweep.trials if trial.rung == 0 and trial.number in (0, 1))
    assert progress == [f"rung 1/2  epochs 1  trials 2/4  best validation accuracy {best:.4f}"]
    assert stopped == (
        f"stopped: finished trials are in {path}; to continue, add --workdir {path} --resume to the command"
    )
    assert len((path / "trials.jsonl").read_text().splitlines()) == 2

    assert main([*flags, "--quiet", "--resume"]) == 0
    assert [seeds for _, seeds in trained] == [seeds for _, seeds in whole]  # the first is not trained again
    found, expected = capsys.readouterr().out.splitlines(), results_table(sweep).splitlines()
    assert found[:-1] == expected[:-1]
    trained.clear()
    resumed = run_sweep(in_directory(path, resume=True), SEARCH)
    assert without_seconds(resumed.trials) == without_seconds(sweep.trials)
    assert trained == []


def test_what_diverges_comes_last(trained, tmp_path):
    search = Search(vary=("learning_rate=0.1/1e38",), trials=4, population=4)
    found = run_sweep(in_directory(tmp_path / "new"), search)
    rates = [trial.hyperparameters["learning_rate"] for trial in found.trials]
    assert rates == [0.1, 0.1, 1e38, 1e38]
    assert [trial.validation_loss is None for trial in found.trials] == [rate == 1e38 for rate in rates]
    assert results_table(found).splitlines()[4].split()[3] == "diverged"


@pytest.mark.parametrize(
    ("options", "search", "message"),
    [
        ({"batch_size": 10}, {}, "resume: config batch_size must be 20 as in {path}, got 10"),
        ({"epochs": 3}, {}, "resume: config epochs must be 2 as in {path}, got 3"),
        ({}, {"trials": 5}, "resume: search trials must be 4 as in {path}, got 5"),
        ({}, {"vary": ("clip_norm=1:2",)}, "resume: search vary must be {vary} as in {path}, got ['clip_norm=1:2']"),
        ({"data": "mnist"}, {}, "resume: config data must be 'some' as in {path}, got 'mnist'"),
    ],
)
def test_a_sweep_goes_on_as_it_began(sweep, options, search, message):
    with pytest.raises(InputError) as caught:
        run_sweep(in_directory(sweep.workdir, resume=True, **options), dataclasses.replace(SEARCH, **search))
    assert str(caught.value) == message.format(path=sweep.workdir / "sweep.json", vary=list(SEARCH.vary))


def test_a_sweep_goes_on_with_its_data(sweep, monkeypatch):
    others = dataclasses.replace(DATASET, train=make_split(40, seed=9))
    monkeypatch.setattr("mnist_jax.sweep.run.load_dataset", lambda *args, **options: others)
    with pytest.raises(InputError, match="^resume: data label_checksum must be '.*' as in .*sweep.json, got '.*'$"):
        run_sweep(in_directory(sweep.workdir, resume=True), SEARCH)


@pytest.mark.parametrize(
    ("files", "resume", "message"),
    [
        (
            {"trials.jsonl": ""},
            False,
            "workdir {path} exists: name another directory, or continue the sweep in it with --resume",
        ),
        ({}, True, "resume: expected a sweep with a sweep.json in {path}, found none; leave out --resume to begin one"),
        ({"sweep.json": "{"}, True, "{path}/sweep.json: expected a JSON object (Expecting property name"),
        ({"sweep.json": "\xff"}, True, "{path}/sweep.json: expected a JSON object ('utf-8' codec can't decode"),
        ({"sweep.json": "[]"}, True, "{path}/sweep.json: expected config, search and data, got something else"),
        (
            {"sweep.json": '{"config": 3}'},
            True,
            "{path}/sweep.json: expected config, search and data, got something else",
        ),
    ],
)
def test_a_directory_that_cannot_be_used_is_refused(tmp_path, files, resume, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        run_sweep(in_directory(tmp_path, resume=resume), SEARCH)
    assert str(caught.value).startswith(message.format(path=tmp_path))


def test_a_sweep_killed_before_its_first_file_can_begin_again(trained, tmp_path):
    for name in (".lock", "sweep.json.0badf00d.part"):
        (tmp_path / name).write_text("")
    sweep = run_sweep(in_directory(tmp_path), SEARCH)
    assert {path.name for path in sweep.workdir.iterdir()} == {"sweep.json", "trials.jsonl", "figures"}


def test_two_at_once_do_not_share_a_directory(trained, tmp_path, monkeypatch):
    def begin_another(*args, **options):
        monkeypatch.setattr("mnist_jax.sweep.run.load_dataset", lambda *args, **options: DATASET)
        run_sweep(in_directory(tmp_path / "new"), SEARCH)
        return DATASET

    monkeypatch.setattr("mnist_jax.sweep.run.load_dataset", begin_another)
    with pytest.raises(InputError, match="^workdir .*new exists: name another directory, or continue the sweep in it"):
        run_sweep(in_directory(tmp_path / "new"), SEARCH)


def test_a_name_that_is_too_long_is_refused():
    with pytest.raises(InputError, match="^workdir x{80}: cannot be used .File name too long.$"):
        run_sweep(in_directory("x" * 300, resume=True), SEARCH)


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"^workdir must be a writable directory, got .*file/new \(Not a directory\)$"):
        run_sweep(in_directory(tmp_path / "file" / "new"), SEARCH)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_written_must_be_ours(sweep):
    continued, file = in_directory(sweep.workdir, resume=True), sweep.workdir / "trials.jsonl"
    text = file.read_text()
    file.write_text(text.replace('"hidden_sizes": [4, 3]', '"hidden_sizes": [4]'))
    message = f"{file} does not match the hyperparameters this version samples; start a new sweep"
    with pytest.raises(InputError) as caught:
        run_sweep(continued, SEARCH)
    assert str(caught.value) == message
    file.write_text('{"number": 0}\n')
    with pytest.raises(InputError, match="^.*trials.jsonl: expected one trial per line, got something else"):
        run_sweep(continued, SEARCH)
    with (
        FileLock(sweep.workdir / ".lock"),
        pytest.raises(InputError, match="is in use by another process: wait for it, or name another directory$"),
    ):
        run_sweep(continued, SEARCH)


def test_without_a_workdir_it_makes_one(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (run_sweep(CONFIG, SEARCH).workdir for _ in range(2))
    assert first != second
    for path in (first, second):
        assert path.parent == Path("sweeps")
        assert path.name.startswith("some-mlp-")
