"""``fit`` and the command, end to end."""

import dataclasses
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import optax
import pytest
from conftest import assert_trees_equal, make_arrays, read_events, write_idx_files
from flax import linen as nn
from matplotlib.image import imread

from mnist_jax import (
    CNN,
    MLP,
    Callback,
    InputError,
    NonFiniteLossError,
    Split,
    TrainConfig,
    build_state,
    create_train_state,
    cross_entropy,
    evaluate_dataset,
    fit,
    load_dataset,
    load_run,
    restore_checkpoint,
    train_epoch,
)
from mnist_jax.core.calibration import Confidence
from mnist_jax.train import main
from mnist_jax.training import compiled

pytestmark = pytest.mark.uses_adam
SMALL = TrainConfig(data="digits", hidden_sizes=(8,), epochs=2, batch_size=100, quiet=True)
STEPS_PER_EPOCH = 14  # 1,350 examples


def small(tmp_path, name="run", **options):
    if options.get("model") == "cnn":
        tiny = {"channels": (2,), "kernel_sizes": (5,), "pool_sizes": (4,), "dense_size": 4}
        options = {"hidden_sizes": TrainConfig.hidden_sizes, **tiny, **options}
    return dataclasses.replace(SMALL, workdir=str(tmp_path / name), **options)


def read_json(run, name):
    return json.loads((run.workdir / name).read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(small(tmp_path_factory.mktemp("module"), epochs=3))


def test_a_run_leaves_its_directory(run):
    names = {path.name for path in run.workdir.iterdir()}
    (events,) = (name for name in names if name.startswith("events.out.tfevents."))
    files = {"config.json", "data.json", "metrics.jsonl", "confidence.json", "summary.json", events}
    assert names == {*files, "checkpoints", "figures"}
    assert TrainConfig.from_json((run.workdir / "config.json").read_text()) == run.config
    assert read_json(run, "summary.json") == run.summary
    validation = load_dataset("digits").validation
    confidence = Confidence.fit(evaluate_dataset(run.state, validation).logits, *validation)
    assert read_json(run, "confidence.json") == confidence.to_dict()
    lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.history
    assert (run.workdir / "figures" / "learning_curves.png").stat().st_size > 10_000


def test_the_summary_is_what_the_state_says(run):
    dataset = load_dataset("digits")
    summary = run.summary
    for name, split in (("validation", dataset.validation), ("test", dataset.test)):
        evaluation = evaluate_dataset(run.state, split)
        assert summary[f"{name}_loss"] == evaluation.loss
        assert summary[f"{name}_accuracy"] == evaluation.accuracy
    assert (summary["dataset"], summary["model"], summary["seed"]) == ("digits", "mlp", 0)
    assert (summary["num_train"], summary["num_validation"], summary["num_test"]) == (1350, 150, 297)
    assert summary["num_parameters"] == 784 * 8 + 8 + 8 * 10 + 10
    assert (summary["epochs"], summary["steps"]) == (3, 3 * STEPS_PER_EPOCH)
    assert summary["device"] == {"platform": "cpu", "kind": "cpu", "count": 1}
    assert summary["versions"]["jax"] == jax.__version__
    seconds = summary["seconds"]
    assert set(seconds) == {"import", "data", "compile", "train", "evaluate", "total"}
    parts = seconds["import"] + seconds["compile"] + seconds["train"] + seconds["evaluate"]
    assert 0 < parts < seconds["total"]
    assert "notice" not in summary


@pytest.mark.parametrize(
    ("num_test", "dtype", "num_programs"), [(450, np.uint8, 1), (450, np.float32, 2), (750, np.uint8, 2)]
)
def test_a_test_split_that_shares_the_program_of_validation(tmp_path, monkeypatch, num_test, dtype, num_programs):
    """It is cut into pieces, up to four; the result is that of the whole."""
    programs, trace = [], compiled.Compiled.__init__

    def init(self, function, *args, **kwargs):
        programs.append(function.__name__)
        trace(self, function, *args, **kwargs)

    monkeypatch.setattr(compiled.Compiled, "__init__", init)
    dataset = load_dataset("digits")
    image, label = (array[:num_test] for array in dataset.train)
    dataset = dataclasses.replace(dataset, test=Split(image.astype(dtype), label))
    run = fit(small(tmp_path, epochs=1), dataset=dataset)
    assert programs.count("evaluate_arrays") == num_programs
    evaluation = evaluate_dataset(run.state, dataset.test)
    np.testing.assert_allclose(run.test.logits, evaluation.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run.test.label, dataset.test.label)
    assert run.summary["test_accuracy"] == evaluation.accuracy
    assert run.summary["test_loss"] == pytest.approx(evaluation.loss)


def test_an_empty_validation_split_is_one_clear_error(tmp_path):
    dataset = load_dataset("digits")
    dataset = dataclasses.replace(dataset, validation=Split(*(array[:0] for array in dataset.test)))
    with pytest.raises(ValueError, match="the split to evaluate must have at least one example, got none"):
        fit(small(tmp_path, epochs=1), dataset=dataset)


def test_the_history_has_a_line_an_epoch(run):
    assert [line["epoch"] for line in run.history] == [1, 2, 3]
    assert [line["step"] for line in run.history] == [14, 28, 42]
    assert all(line["num_examples"] == 1350 for line in run.history)
    assert run.history[-1]["validation_accuracy"] == run.summary["validation_accuracy"]
    assert run.history[0]["train_loss"] > run.history[-1]["train_loss"] == run.summary["train_loss"]


def test_tensorboard_reads_the_history(run):
    found = read_events(run.workdir)
    scalars = {key: value.simple_value for key, value in found.items()}
    for line in run.history:
        for split in ("train", "validation"):
            for name in ("loss", "accuracy"):
                np.testing.assert_allclose(scalars[f"{name}/{split}", line["step"]], line[f"{split}_{name}"], rtol=1e-6)
        assert scalars["learning_rate", line["step"]] == np.float32(1e-3)
    np.testing.assert_allclose(scalars["accuracy/test", 42], run.summary["test_accuracy"], rtol=1e-6)
    curves = imread(run.workdir / "figures" / "learning_curves.png")
    picture = found["learning_curves", 42].image.encoded_image_string
    np.testing.assert_array_equal(imread(io.BytesIO(picture)), curves)


def test_the_last_checkpoint_is_the_final_state(run):
    restored = restore_checkpoint(run.workdir, run.state)
    assert_trees_equal(restored, run.state)


def test_the_same_seed_is_the_same_run_and_another_seed_another(tmp_path, run):
    again = fit(small(tmp_path, epochs=3))
    assert_trees_equal(again.state.params, run.state.params)
    other = fit(small(tmp_path, "other", epochs=1, seed=1))
    assert other.history[0]["train_loss"] != run.history[0]["train_loss"]


@pytest.mark.parametrize("model", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, model):
    options = {"model": model, "ema_decay": 0.9}
    straight = fit(small(tmp_path, "straight", epochs=4, **options))
    fit(small(tmp_path, epochs=2, **options))
    resumed = fit(small(tmp_path, epochs=4, resume=True, **options))
    assert_trees_equal(resumed.state, straight.state.replace(recipe=resumed.state.recipe))
    assert [line["epoch"] for line in resumed.history] == [1, 2, 3, 4]
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        np.testing.assert_allclose(
            [line[name] for line in resumed.history], [line[name] for line in straight.history], rtol=1e-6
        )
    assert resumed.summary["test_loss"] == straight.summary["test_loss"]


def test_a_run_may_lie_at_any_path(tmp_path, capsys):
    """Orbax takes brackets for a pattern, and bytes that are not UTF-8 are no text."""
    path = tmp_path / os.fsdecode(b"run [1] \xff")
    assert main([*COMMAND[2:], "--workdir", str(path), "--quiet"]) == 0
    assert "everything is in" in capsys.readouterr().out
    resumed = fit(small(tmp_path, path.name, epochs=2, batch_size=128, resume=True, quiet=True))
    _, state = load_run(path)
    assert_trees_equal(state.params, resumed.state.params)
    assert len(resumed.history) == 2


def test_a_config_of_huge_layers_is_one_line_and_allocates_nothing(tmp_path):
    run = fit(small(tmp_path, epochs=1))
    config = json.loads((run.workdir / "config.json").read_text())
    (run.workdir / "config.json").write_text(json.dumps({**config, "hidden_sizes": [10**9, 10**9]}))
    with pytest.raises(
        InputError, match=r"14: does not fit: expected params/Dense_0/bias as float32\[1000000000\], got"
    ):
        load_run(run.workdir)


def test_resuming_a_finished_run_evaluates_it_again(tmp_path):
    first = fit(small(tmp_path, epochs=1))
    (first.workdir / "summary.json").unlink()
    again = fit(small(tmp_path, epochs=1, resume=True))
    assert_trees_equal(again.state.params, first.state.params)
    assert again.history == first.history
    assert again.summary["test_accuracy"] == first.summary["test_accuracy"]
    with pytest.raises(InputError, match="learning_rate must be 0.001 as in"):
        fit(small(tmp_path, epochs=1, resume=True, learning_rate=0.5))


def test_resuming_with_fewer_epochs_is_refused(tmp_path, run):
    with pytest.raises(InputError, match="epochs must be at least the 3 trained already, got 2"):
        fit(dataclasses.replace(run.config, epochs=2, resume=True))


def test_a_longer_schedule_is_said(tmp_path, caplog):
    fit(small(tmp_path, epochs=1, schedule="cosine"))
    with caplog.at_level(logging.WARNING, "mnist_jax"):
        fit(small(tmp_path, epochs=2, schedule="cosine", resume=True))
    assert caplog.messages == ["the cosine schedule now spans 2 epochs instead of 1: an uninterrupted run would differ"]


def test_resuming_finds_its_data_directory_again_and_refuses_other_data(tmp_path, monkeypatch, idx_dir):
    other = write_idx_files(tmp_path / "other", make_arrays(50))
    first = fit(small(tmp_path, data="mnist", data_dir=str(idx_dir), epochs=1, batch_size=10))
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(other))
    again = fit(small(tmp_path, data="mnist", epochs=2, batch_size=10, resume=True))
    assert again.summary["num_train"] == first.summary["num_train"] == 54
    before = (first.workdir / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match="resume: expected the data of .*'num_train': 54.*, got .*'num_train': 45"):
        fit(small(tmp_path, data="mnist", data_dir=str(other), epochs=3, batch_size=10, resume=True))
    assert (first.workdir / "metrics.jsonl").read_text() == before


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    straight = fit(small(tmp_path, "straight"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(small(tmp_path).to_json())
    (tmp_path / "run" / "checkpoints" / "14.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / ".unfinished-x" / "14").mkdir(parents=True)
    resumed = fit(small(tmp_path, resume=True))
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"14", "28"}
    assert_trees_equal(resumed.state.params, straight.state.params)


def test_checkpoints_come_every_so_many_epochs_and_at_the_end(tmp_path):
    run = fit(small(tmp_path, epochs=5, checkpoint_every=2, keep_checkpoints=9))
    steps = sorted(int(path.name) for path in (run.workdir / "checkpoints").iterdir())
    assert steps == [2 * STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH, 5 * STEPS_PER_EPOCH]


def test_the_best_checkpoint_by_validation_accuracy_is_kept(tmp_path):
    run = fit(small(tmp_path, epochs=6, keep_checkpoints=1, learning_rate=0.3, ema_decay=None))
    steps = {int(path.name) for path in (run.workdir / "checkpoints").iterdir()}
    best = max(run.history, key=lambda line: (line["validation_accuracy"], line["step"]))
    assert steps == {run.history[-1]["step"], best["step"]}
    assert len(steps) == 2
    assert int(load_run(run.workdir, best=True)[1].step) == best["step"]
    assert int(load_run(run.workdir)[1].step) == run.history[-1]["step"]


def test_a_run_that_found_its_data_goes_on_with_the_same(tmp_path, monkeypatch, idx_dir):
    """Begun without a name on the digits, it does not switch to MNIST where that turns up later."""
    first = fit(small(tmp_path, data=None, epochs=1))
    assert first.summary["dataset"] == "digits"
    assert first.summary["notice"].startswith("MNIST is not on disk and could not be downloaded")
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(idx_dir))
    assert fit(small(tmp_path, data=None, epochs=2, resume=True)).summary["dataset"] == "digits"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoints(tmp_path, monkeypatch):
    good = fit(small(tmp_path, epochs=1))
    with monkeypatch.context() as patch:
        original = load_dataset

        def load_poisoned(*args, **options):
            dataset = original(*args, **options)
            image = dataset.train.image.astype(np.float32) / 255
            image[7] = np.inf
            return dataclasses.replace(dataset, train=dataset.train._replace(image=image))

        patch.setattr("mnist_jax.training.prepare.load_dataset", load_poisoned)
        with pytest.raises(NonFiniteLossError, match=r"the loss became nan in epoch 2, step \d+: stopped") as caught:
            fit(small(tmp_path, epochs=3, resume=True))
    assert STEPS_PER_EPOCH < caught.value.step <= 2 * STEPS_PER_EPOCH
    assert_trees_equal(restore_checkpoint(good.workdir, good.state), good.state)
    assert len((good.workdir / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1351}, "batch_size must be at most the 1350 training examples of digits, got 1351"),
        ({"num_validation": 1500}, "num_validation must be 1 to 1499, for 1500 training examples of digits, got 1500"),
        ({"data": "nowhere"}, "data must be one of mnist, .*, got 'nowhere'"),
        (
            {"model": "cnn", "kernel_sizes": (26,)},
            r"kernel_sizes and pool_sizes must fit into the image, got \(26,\) and \(4,\)",
        ),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        fit(small(tmp_path, **options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("in_epoch", [True, False])
def test_a_signal_saves_and_the_rest_makes_it_the_uninterrupted_run(tmp_path, monkeypatch, number, in_epoch):
    straight = fit(small(tmp_path, "straight"))
    monkeypatch.setattr("mnist_jax.training.epochs._CHUNK_S", 0.0)
    target = (
        "mnist_jax.training.progress.Progress.update" if in_epoch else "mnist_jax.training.progress.Progress.end_epoch"
    )
    with monkeypatch.context() as patch:
        patch.setattr(target, lambda *args: os.kill(os.getpid(), number))
        with pytest.raises(
            KeyboardInterrupt, match="saved at step .* add --workdir .*run --resume to the command"
        ) as caught:
            fit(small(tmp_path))
    assert caught.value.exit_status == 128 + number
    resumed = fit(small(tmp_path, resume=True))
    assert_trees_equal(resumed.state.params, straight.state.params)
    assert [line["epoch"] for line in resumed.history] == [1, 2]


COMMAND = ("-m", "mnist_jax.train", "--data", "digits", "--hidden-sizes", "8", "--epochs", "1")


def test_the_command_prints_lines_and_a_table(run_python, tmp_path, monkeypatch, capsys):
    done = run_python(*COMMAND, "--workdir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    table, _, epoch = done.stderr.partition("\n\n")
    assert table.splitlines() == [
        "layer    output  parameters",
        "Dense_0       8       6,280",
        "Dense_1      10          90",
        "total                 6,370",
    ]
    assert re.fullmatch(r"epoch 1/1  loss \d\.\d{4}  accuracy .* examples/s\n", epoch)
    accuracy = json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"]
    assert f"{accuracy:.2%}" in done.stdout
    assert done.stdout.splitlines()[0].split() == ["examples", "loss", "accuracy"]
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND[2:], "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert re.search(r"everything is in runs/digits-mlp-\d{8}-\d{6}$", quiet.out)


@pytest.mark.slow
@pytest.mark.parametrize("home", ["unset", "/dev/null"])
def test_without_a_home_directory_there_is_one_line_about_the_caches(run_python, tmp_path, idx_dir, home):
    """As in a container whose user is in no list of users."""

    def run(data):
        settings = "os.environ.pop('HOME')" if home == "unset" else f"os.environ['HOME'] = {home!r}"
        command = f"""
            import os, pwd, sys
            del os.environ["XDG_CACHE_HOME"]
            pwd.getpwuid = {{}}.__getitem__  # which finds nobody
            {settings}
            from mnist_jax.train import main
            sys.exit(main(["--data", {data!r}, *"--batch-size 10 --epochs 1 --quiet".split()]))
        """
        done = run_python("-c", textwrap.dedent(command), TMPDIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"~/.* cannot be written: caches and downloads go to .*/mnist_jax-\d+\n", done.stderr)

    for data in ("digits", str(idx_dir)):
        run(data)
    assert len([*tmp_path.glob("mnist_jax-*/**/*.npz")]) == 2  # each data set once


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "nowhere"], "data must be one of mnist, fashion_mnist, .* got 'nowhere'"),
        (["--data-dir", "nowhere", "--data", "mnist"], "data_dir must be an existing directory, got 'nowhere'"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--batch-size", "5000"], "batch_size must be at most the 1350 training examples of digits, got 5000"),
        (["--learning-rate", "NaN"], "learning_rate must be a finite number above 0, got nan"),
        (["--model", "rnn"], r"model must be one of mlp, cnn, got rnn; did you mean cnn\?"),
        (["--workdir", "/dev/null/run"], "workdir must be a writable directory, got /dev/null/run .Not a directory."),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, args, message):
    assert main(["--data", "digits", "--hidden-sizes", "8", *args]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(f"error: {message}\n", captured.err)
    assert captured.out == ""


def test_a_workdir_in_use_is_one_line_and_untouched(capsys, run):
    before = {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*")}
    assert main(["--data", "digits", "--workdir", str(run.workdir)]) == 2
    assert main(["--data", "digits", "--workdir", str(run.workdir), "--resume", "--seed", "5"]) == 2
    assert {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*")} == before
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: workdir .* already holds a run \(.*\): name another directory, or .*--resume", first)
    assert re.fullmatch(r"error: resume: hidden_sizes must be \(8,\) as in .*config.json, got \(512, 256\)", second)


@pytest.mark.slow
def test_sigterm_ends_the_command_with_143(tmp_path):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *COMMAND[:-1], "5000", "--workdir", str(workdir)],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (workdir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert re.match(r"stopped: saved at step \d+ in .*run; to continue, add --workdir", err.splitlines()[-1])
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_default_run_on_the_digits_is_good(tmp_path):
    run = fit(TrainConfig(data="digits", workdir=str(tmp_path / "run"), quiet=True))
    assert run.summary["test_accuracy"] >= 0.95


@pytest.mark.slow
def test_two_epochs_on_the_real_mnist_are_good(tmp_path, mnist_dir):
    config = TrainConfig(data=str(mnist_dir), epochs=2, workdir=str(tmp_path / "run"), quiet=True)
    summary = fit(config).summary
    assert (summary["num_train"], summary["num_validation"], summary["num_test"]) == (55_000, 5_000, 10_000)
    assert summary["steps"] == 860
    assert summary["test_accuracy"] >= 0.975


class OwnModel(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Dense(8)(image.reshape(image.shape[0], -1))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


PLAIN = dataclasses.replace(SMALL, hidden_sizes=TrainConfig.hidden_sizes)


class Recorder(Callback):
    """Notes what it sees, and stops after an epoch if told to."""

    def __init__(self, last_epoch=None):
        self.events, self.metrics, self.last_epoch = [], [], last_epoch

    def on_begin(self, training):
        self.events.append(("begin", int(training.state.step)))

    def on_epoch_begin(self, training):
        self.events.append(("epoch", training.epoch))

    def on_chunk(self, training):
        self.metrics.append(training.chunk_metrics)

    def on_epoch_end(self, training):
        self.events.append(("end", training.epoch, int(training.state.step), training.validation.accuracy))
        if training.epoch == self.last_epoch:
            training.stop()

    def on_finish(self, training):
        self.events.append(("finish", training.test.accuracy, (training.directory.path / "summary.json").exists()))

    def on_close(self, training):
        self.events.append("close")


def test_a_callback_sees_the_run_and_may_stop_it(tmp_path):
    recorder = Recorder(last_epoch=2)
    run = fit(small(tmp_path, epochs=9), callbacks=[recorder])
    accuracies = [line["validation_accuracy"] for line in run.history]
    assert recorder.events == [
        ("begin", 0),
        *(("epoch", 1), ("end", 1, 14, accuracies[0]), ("epoch", 2), ("end", 2, 28, accuracies[1])),
        ("finish", run.summary["test_accuracy"], True),
        "close",
    ]
    assert sum(int(metrics.count) for metrics in recorder.metrics) == 2 * 1350
    assert (run.summary["epochs"], run.summary["steps"], run.summary["total_steps"]) == (2, 28, 9 * 14)
    assert_trees_equal(restore_checkpoint(run.workdir, run.state), run.state)
    assert fit(small(tmp_path, epochs=9, resume=True)).summary["epochs"] == 9


def test_a_callback_is_closed_after_an_error(tmp_path):
    class Failing(Recorder):
        def on_epoch_end(self, training):
            raise RuntimeError("mine")

    recorder = Failing()
    with pytest.raises(RuntimeError, match="mine"):
        fit(small(tmp_path), callbacks=[recorder])
    assert recorder.events[-1] == "close"
    assert not (tmp_path / "run" / ".lock").exists()


def test_an_own_model_has_checkpoints_and_resume(tmp_path):
    def train(name, epochs, resume=False):
        config = dataclasses.replace(PLAIN, workdir=str(tmp_path / name), epochs=epochs, resume=resume)
        return fit(config, model=OwnModel(), tx=optax.sgd(0.1))

    straight = train("straight", 4)
    train("run", 2)
    resumed = train("run", 4, resume=True)
    assert_trees_equal(resumed.state, straight.state.replace(recipe=resumed.state.recipe))
    assert resumed.summary["model"] == "OwnModel"
    assert "learning_rate" not in resumed.history[-1]
    _, state = load_run(resumed.workdir, model=OwnModel(), tx=optax.sgd(0.1))
    assert_trees_equal(state.params, straight.state.params)
    with pytest.raises(InputError, match="run: the run has a custom model, OwnModel: in Python, pass it as model="):
        load_run(resumed.workdir)
    with pytest.raises(InputError, match="resume: the run in .*run has a custom model, OwnModel, got the model of"):
        fit(dataclasses.replace(PLAIN, workdir=str(tmp_path / "run"), epochs=5, resume=True))
    with pytest.raises(InputError, match="run: the run has a custom optimizer: in Python, pass it as tx="):
        load_run(resumed.workdir, model=OwnModel())
    with pytest.raises(InputError, match="straight: the run has a custom model, OwnModel, got a custom model, CNN"):
        load_run(straight.workdir, model=CNN(), tx=optax.sgd(0.1))


def test_an_own_state_brings_its_whole_recipe_and_stays_valid(tmp_path):
    def doubled(logits, label):
        return 2 * cross_entropy(logits, label)

    state = create_train_state(OwnModel(), optax.sgd(0.1), jax.random.key(5), example_loss=doubled)
    run = fit(dataclasses.replace(PLAIN, workdir=str(tmp_path / "run"), epochs=1), state=state)
    expected, _ = train_epoch(state, load_dataset("digits").train, 100)
    assert_trees_equal(run.state.params, expected.params)
    assert_trees_equal(load_run(run.workdir, state=state)[1].params, run.state.params)
    np.testing.assert_allclose(run.test.losses.mean() * 2, run.summary["test_loss"], rtol=1e-5)


def test_an_own_data_set_is_taken(tmp_path):
    digits = load_dataset("digits")
    half = digits.train._replace(image=digits.train.image[:700], label=digits.train.label[:700])
    dataset = dataclasses.replace(digits, train=half, name="half", class_names=(*"0123456789", "ten"))
    config = dataclasses.replace(SMALL, data=None, workdir=str(tmp_path / "run"), epochs=1)
    run = fit(config, dataset=dataset)
    assert (run.summary["dataset"], run.summary["num_train"]) == ("half", 700)
    assert run.state.recipe.num_classes == 11
    assert load_run(run.workdir)[1].recipe.num_classes == 11


@pytest.mark.parametrize(
    ("fields", "own", "message"),
    [
        (
            {"hidden_sizes": (8,)},
            {"model": OwnModel()},
            "hidden_sizes has no effect on a model, tx or state of your own",
        ),
        ({"learning_rate": 0.5}, {"tx": optax.sgd(0.1)}, "learning_rate has no effect on a model, tx or state of your"),
        ({"ema_decay": None}, {"state": "any"}, "ema_decay has no effect on a model, tx or state of your own"),
        ({"seed": 1}, {"state": "any"}, "seed has no effect on a model, tx or state of your own"),
        ({}, {"callbacks": [Callback]}, "callbacks must be instances of mnist_jax.Callback, got <class "),
        ({}, {"state": "any", "tx": "any"}, "state must be given without model and tx, which it holds already"),
        ({}, {"model": MLP(num_classes=3)}, "model must have a logit for each of the 10 classes of digits, got 3"),
    ],
)
def test_what_is_given_twice_or_does_not_fit_is_refused(tmp_path, fields, own, message):
    config = dataclasses.replace(PLAIN, workdir=str(tmp_path / "run"), **fields)
    with pytest.raises(InputError, match=f"^{message}"):
        fit(config, **own)
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_what_was_chosen_for_it(tmp_path, monkeypatch, idx_dir):
    monkeypatch.chdir(idx_dir.parent)
    run = fit(small(tmp_path, data="small", epochs=1, batch_size=10, model="cnn"))
    assert run.config.microbatch_size == run.summary["microbatch_size"] == 32
    assert run.config.data == run.summary["data_path"] == str(idx_dir)
    assert run.summary["class_names"] == [*"0123456789"]
    assert run.summary["total_steps"] == 6
    assert TrainConfig.from_json((run.workdir / "config.json").read_text()) == run.config
    monkeypatch.chdir("/")
    config, _ = load_run(run.workdir)
    assert load_dataset(config.data).train.num_examples == 54
    monkeypatch.setattr("mnist_jax.training.build.jax.default_backend", lambda: "gpu")  # which would choose another
    again = fit(dataclasses.replace(config, microbatch_size=None, epochs=2, resume=True, workdir=str(run.workdir)))
    assert again.config.microbatch_size == 32


def test_a_loaded_state_has_the_schedule_it_was_trained_with(tmp_path):
    run = fit(small(tmp_path, schedule="cosine", epochs=2))
    _, state = load_run(run.workdir)
    assert state.recipe.tx is run.state.recipe.tx


def test_an_interrupted_epoch_counts_all_its_examples_and_seconds(tmp_path, monkeypatch):
    straight = fit(small(tmp_path, "straight", epochs=2))
    monkeypatch.setattr("mnist_jax.training.epochs._CHUNK_S", 0.0)
    config = small(tmp_path, epochs=2)

    class Interrupt(Callback):
        def on_chunk(self, training):
            if training.step == STEPS_PER_EPOCH + 3:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(config, callbacks=[Interrupt()])
    before = json.loads((tmp_path / "run" / "checkpoints" / "17" / "metrics" / "metrics").read_text())["progress"]
    assert before["epoch"]["count"] == 300
    resumed = fit(dataclasses.replace(config, resume=True))
    assert_trees_equal(resumed.state, straight.state)
    line = resumed.history[-1]
    assert line["num_examples"] == 1350
    for name in ("train_loss", "train_accuracy"):
        np.testing.assert_allclose(line[name], straight.history[-1][name], rtol=1e-5)
    assert line["seconds"] > before["epoch"]["seconds"] > 0
    for name, seconds in resumed.summary["seconds"].items():
        assert seconds > before["seconds"][name] > 0
    total = sum(line["seconds"] for line in resumed.history)
    np.testing.assert_allclose(resumed.summary["seconds"]["train"], total, rtol=1e-6)


def test_a_figure_that_cannot_be_drawn_leaves_a_finished_run(tmp_path, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr("mnist_jax.report.figures.learning_curves", fail)
    with caplog.at_level(logging.WARNING, "mnist_jax"):
        run = fit(small(tmp_path, epochs=1))
    assert read_json(run, "summary.json") == run.summary
    assert re.search(r"learning_curves.png could not be drawn \(no fonts\); the run is complete$", caplog.messages[0])


@pytest.mark.parametrize("event", ["on_finish", "on_close"])
def test_a_signal_at_the_very_end_is_not_forgotten(tmp_path, event):
    class Late(Callback):
        pass

    setattr(Late, event if event == "on_finish" else "on_epoch_end", lambda self, training: os.kill(os.getpid(), 15))
    with pytest.raises(KeyboardInterrupt, match="received a signal after training; the run in .* is complete"):
        fit(small(tmp_path, epochs=1), callbacks=[Late()])
    assert "test_accuracy" in json.loads((tmp_path / "run" / "summary.json").read_text())


def test_reading_a_run_changes_nothing_and_works_while_it_is_trained(tmp_path):
    found = []

    class Read(Callback):
        def on_epoch_end(self, training):
            if training.epoch == 2:
                before = {path: path.stat().st_mtime_ns for path in training.directory.path.rglob("*")}
                found.append(int(load_run(training.directory.path)[1].step))
                assert {path: path.stat().st_mtime_ns for path in training.directory.path.rglob("*")} == before

    fit(small(tmp_path), callbacks=[Read()])
    assert found == [STEPS_PER_EPOCH]


@pytest.mark.parametrize("ema_decay", [0.5, None])
def test_batch_statistics_belong_to_the_parameters_that_are_evaluated(ema_decay):
    """With a first layer that is normed and a decay of the average, the recurrence is that of the parameters."""
    config = TrainConfig(hidden_sizes=(4,), batch_norm=True, ema_decay=ema_decay, dropout_rate=0.0)
    state, split = build_state(config), load_dataset("digits").train
    expected = np.asarray(state.model_state["batch_stats"]["BatchNorm_0"]["mean"])
    for step in range(4):
        state, _ = train_epoch(state, split, 100, num_steps=1)
        newest = np.asarray(state.model_state["batch_stats"]["BatchNorm_0"]["mean"])
        decay = 0.0 if ema_decay is None else min(ema_decay, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * newest
    found = state.eval_model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    by_hand = state.recipe.model.module.apply(
        {"params": state.eval_params, **state.eval_model_state}, split.image[:50] / np.float32(255)
    )
    evaluated = evaluate_dataset(state, split._replace(image=split.image[:50], label=split.label[:50]))
    np.testing.assert_allclose(evaluated.logits, by_hand, rtol=1e-4, atol=1e-5)
