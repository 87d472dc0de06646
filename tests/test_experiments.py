"""Each experiment runs, and says what it found; the table says the same."""

import dataclasses
import functools
import importlib
import json
import operator
import re
import runpy
import statistics
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mnist_jax import (
    Augmentation,
    Evaluation,
    InputError,
    Run,
    Split,
    TrainConfig,
    build_state,
    evaluate_dataset,
    evaluate_views,
    fit,
    load_dataset,
    per_example_logits,
    per_example_losses,
)
from mnist_jax.presets import CROSS_VALIDATION

DIRECTORY = Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(DIRECTORY))  # as for a script in there

import adam_two_hidden
import calibration
import half_of_mnist
import label_errors
import record_cnn
import record_distilled
import record_ensemble
import steepest_descent
from experiment import (
    cleaned_accuracy,
    evaluate_training,
    evaluate_with_views,
    main,
    parse_seeds,
    report,
    train,
    write_results,
)
from table import build_row, build_table, insert_table

EXPERIMENTS = sorted(path.stem for path in DIRECTORY.glob("*.py") if path.stem not in ("experiment", "table"))
SMALL = TrainConfig(data="digits", hidden_sizes=(4,), epochs=1, optimizer="sgd", learning_rate=0.1, quiet=True)


@pytest.mark.slow
@pytest.mark.uses_adam
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_runs_on_the_digits(name, tmp_path, monkeypatch, capsys):
    if name == "dp_mnist":
        pytest.importorskip("jax_privacy", reason="needs the extra privacy")
    if "distilled" in name:
        small_members(monkeypatch)
    monkeypatch.chdir(tmp_path)
    path = str(DIRECTORY / f"{name}.py")
    flags = ["--data", "digits", "--epochs", "1", "--batch-size", "64", "--results", "found.json"]
    monkeypatch.setattr("sys.argv", [path, *flags])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(path, run_name="__main__")
    assert stopped.value.code == 0, capsys.readouterr().err
    found = json.loads(Path("found.json").read_text())
    assert (found["name"], found["variant"]) == (name, None)
    assert [run["dataset"] for run in found["runs"]] == ["digits"]
    assert f"{found['runs'][0]['test_accuracy']:.2%}" in capsys.readouterr().out
    for field in importlib.import_module(name).TARGETS:
        assert functools.reduce(operator.getitem, field.split("."), found["runs"][0]) > 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_header_says_command_machine_and_result(name):
    module = importlib.import_module(name)
    assert isinstance(module.CONFIG, TrainConfig)
    assert len(module.CLAIM.splitlines()) == 1
    for part in (f"python experiments/{name}.py", "cores", "±", "seeds"):
        assert part in module.__doc__


@pytest.mark.slow
def test_several_seeds_are_each_a_run_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(SMALL, "", ["--seeds", "1-2", "--results", "new/found.json"]) == 0
    runs = json.loads(Path("new/found.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [1, 2]
    accuracies = [100 * run["test_accuracy"] for run in runs]
    expected = f"test accuracy {statistics.mean(accuracies):.3f} ± {statistics.stdev(accuracies):.3f} % over 2 seeds"
    assert expected in capsys.readouterr().out
    assert main(SMALL, "", ["--seed", "2", "--results", "one.json"]) == 0
    (alone,) = json.loads(Path("one.json").read_text())["runs"]
    assert alone["test_loss"] == runs[1]["test_loss"]


@pytest.mark.slow
def test_a_variant_is_another_config_and_hooks_come_before_and_after(tmp_path, monkeypatch, idx_dir):
    monkeypatch.chdir(tmp_path)
    options = {
        "variants": {"wide": dataclasses.replace(SMALL, hidden_sizes=(6,))},
        "prepare": lambda config: dataclasses.replace(config, batch_size=18, data=str(idx_dir)),
        "finish": lambda run: {"twice_the_steps": 2 * run.summary["steps"]},
    }
    flags = ["--variant", "wide", "--seed", "7", "--workdir", str(tmp_path / "run"), "--results", "found.json"]
    assert main(SMALL, "", flags, **options) == 0
    text = Path("found.json").read_text()
    found = json.loads(text)
    assert found["variant"] == "wide"
    expected = dataclasses.replace(SMALL, hidden_sizes=(6,), batch_size=18, seed=7, data=idx_dir.name)
    assert TrainConfig(**found["config"]) == expected
    assert str(tmp_path) not in text  # no directories
    assert found["runs"][0]["twice_the_steps"] == 6
    assert set(found["machine"]) == {"processor", "cores", "device"}
    assert found["versions"] == found["runs"][0]["versions"]


@pytest.mark.slow
def test_runs_in_a_workdir_are_taken_or_continued(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--workdir", "w", "--seeds", "0-1"]
    assert main(SMALL, "", [*flags, "--results", "one.json"]) == 0
    assert sorted(path.name for path in Path("w").iterdir()) == ["seed-0", "seed-1"]
    one = json.loads(Path("one.json").read_text())["runs"]
    (tmp_path / "w" / "seed-1" / "summary.json").unlink()  # as if it had been stopped
    written = (tmp_path / "w" / "seed-0" / "summary.json").stat().st_mtime_ns
    assert main(SMALL, "", [*flags, "--results", "one.json"], finish=lambda run: {"loss": run.test.loss}) == 0
    assert (tmp_path / "w" / "seed-0" / "summary.json").stat().st_mtime_ns == written
    two = json.loads(Path("one.json").read_text())["runs"]
    for before, after in zip(one, two, strict=True):
        np.testing.assert_allclose(after["seconds"]["train"], before["seconds"]["train"], rtol=1e-6)
    assert [run["test_loss"] for run in one] == [run["test_loss"] for run in two] == [run["loss"] for run in two]
    capsys.readouterr()
    assert main(SMALL, "", [*flags, "--hidden-sizes", "5"]) == 2
    message = "error: workdir w/seed-0 holds a run with hidden_sizes (4,), got (5,)\n"
    assert capsys.readouterr().err == message
    assert main(SMALL, "", [*flags, "--epochs", "2", "--results", "one.json"]) == 2
    assert capsys.readouterr().err == "error: one.json exists: choose another --results\n"


def test_runs_of_several_machines_are_not_averaged(tmp_path):
    summary = {"dataset": "digits", "device": {"kind": "cpu"}, "versions": {"jax": "0"}}
    other = {**summary, "device": {"kind": "gpu"}}
    message = "^workdir must hold runs with the same device, got {'kind': 'cpu'} and {'kind': 'gpu'}$"
    with pytest.raises(InputError, match=message):
        write_results(tmp_path / "found.json", SMALL, [summary, summary, other], None)
    assert not (tmp_path / "found.json").exists()


def test_results_do_not_say_where_the_data_were(tmp_path):
    run = {"dataset": "digits", "device": {"kind": "cpu"}, "versions": {"jax": "0"}, "seconds": {"train": 1.5}}
    elsewhere = run | {"data_path": "/somewhere"}
    write_results(tmp_path / "found.json", SMALL, [{**elsewhere, "members": [elsewhere, elsewhere]}], None)
    assert json.loads((tmp_path / "found.json").read_text())["runs"] == [{**run, "members": [run, run]}]


def test_nothing_is_written_without_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(SMALL, "", []) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "many"], "error: seeds must be like 0-9 or 1,4, got many"),
        (["--seeds", "3-1"], "error: seeds must be like 0-9 or 1,4, got 3-1"),
        (["--seeds"], "error: argument --seeds: expected one argument"),
        (["--results", "there.json"], "error: there.json exists: choose another --results"),
        (["--variant", "other"], "error: variant must be one of plain, tiny, got other"),
        (["--variant", "plan"], "error: variant must be one of plain, tiny, got plan; did you mean plain?"),
        (["--epoch", "1"], "error: unknown flag --epoch; did you mean --epochs?"),
        (["--epochs", "0"], "error: epochs must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("mine")
    assert main(SMALL, "", arguments, variants={"plain": SMALL, "tiny": SMALL}) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert len(error.splitlines()) == 1
    assert Path("there.json").read_text() == "mine"


def test_a_variant_of_an_experiment_that_has_none_is_bad_input(capsys):
    assert main(SMALL, "", ["--variant", "plain"]) == 2
    assert capsys.readouterr().err == "error: unknown flag --variant\n"


def test_help_shows_the_question_and_the_flags(run_python):
    done = run_python(str(DIRECTORY / "two_dense_100.py"), "--help")
    assert done.returncode == 0
    assert "Can two dense layers" in done.stdout
    for line in ("experiment:", "  --seeds SEEDS ", "  --results FILE ", "  --variant {plain} ", "data:"):
        assert f"\n{line}" in done.stdout
    assert "--learning-rate" in done.stdout
    assert "--augment-shear" not in done.stdout
    example = f"example: python {DIRECTORY / 'two_dense_100.py'} --seeds 0-4 --results found.json\n"
    assert done.stdout.endswith(f"\n\n{example}")
    everything = run_python(str(DIRECTORY / "two_dense_100.py"), "--help-all").stdout
    assert everything.startswith(done.stdout[: done.stdout.index("options:")])
    assert "\nexperiment:\n" in everything
    assert "--augment-shear" in everything


def test_no_experiment_loads_jax_before_it_runs(run_python):
    code = f"import sys, {', '.join(EXPERIMENTS)}, table; print('jax' in sys.modules)"
    done = run_python("-c", code, PYTHONPATH=str(DIRECTORY))
    assert done.stdout == "False\n", done.stderr


def test_ranges_and_lists_of_seeds():
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    with pytest.raises(InputError, match="seeds must be like"):
        parse_seeds("")


def test_one_seed_has_no_spread():
    summary = {"seed": 5, "validation_accuracy": 0.5, "test_accuracy": 0.75, "seconds": {"train": 1.5, "total": 2.5}}
    assert report([summary]).splitlines()[-1] == "test accuracy 75.000 % over 1 seeds, median training time 1.50 s"
    summary["cleaned_test_accuracy"] = 0.875
    assert report([summary]).splitlines()[-1] == "87.500 % on the cleaned test split"


def make_run(tmp_path, **options):
    """A run on the digits with random parameters, biases included."""
    config = dataclasses.replace(SMALL, **options)
    state, rng = build_state(config), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), state.params)
    state = state.replace(params=params, ema_params=None)
    return Run(config, state, [], {}, evaluate_dataset(state, load_dataset("digits").test), tmp_path)


def test_the_training_split_is_evaluated_as_it_is(tmp_path):
    run = make_run(tmp_path, dropout_rate=0.5, augment_shift=2, num_validation=1000)
    numbers = evaluate_training(run)
    train = load_dataset("digits", num_validation=1000).train
    losses = np.asarray(per_example_losses(run.state, train), np.float64)
    np.testing.assert_allclose(numbers["final_train_loss"], losses.mean(), rtol=1e-5)
    hidden, last = (run.state.params[name] for name in ("Dense_0", "Dense_1"))
    x = np.maximum(train.image.reshape(-1, 784) / 255 @ hidden["kernel"] + hidden["bias"], 0)
    predictions = (x @ last["kernel"] + last["bias"]).argmax(axis=-1)
    assert numbers["final_train_accuracy"] == np.mean(predictions == train.label)


def test_views_are_those_of_the_library(tmp_path):
    run = make_run(tmp_path, augment_shift=2, seed=3)
    expected = evaluate_views(run.state, load_dataset("digits").test, 16, jax.random.key(3))
    assert evaluate_with_views(run) == {"views_test_accuracy": expected.accuracy}


# record_ensemble, record_distilled


def small_members(monkeypatch):
    """Makes the ensemble one of small networks of two shapes."""
    members = {"one": SMALL, "other": dataclasses.replace(SMALL, hidden_sizes=(6,))}
    monkeypatch.setattr(record_ensemble, "CONFIG", SMALL)
    monkeypatch.setattr(record_ensemble, "MEMBERS", members)
    return members


def test_each_ensemble_has_seeds_of_its_own():
    for seed, first, second in ((0, 0, 1), (3, 6, 7)):
        config = dataclasses.replace(record_ensemble.CONFIG, data_dir="d", seed=seed, epochs=2, workdir="w")
        cnn, deep = (
            dataclasses.replace(member, data_dir="d", workdir=f"w/{name}")
            for name, member in (("record_cnn", record_cnn.CONFIG), ("record_cnn-deep", record_cnn.VARIANTS["deep"]))
        )
        expected = [dataclasses.replace(member, seed=each) for member in (cnn, deep) for each in (first, second)]
        assert record_ensemble.choose_members(config, record_ensemble.DATA_FIELDS) == expected


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_its_members(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = small_members(monkeypatch)
    summary = record_ensemble.measure_ensemble(dataclasses.replace(SMALL, seed=1, epochs=2, workdir="w"))
    found = [f"w/{name}/seed-{seed}" for name in members for seed in (2, 3)]
    assert sorted(str(path) for path in Path("w").glob("*/*")) == found
    runs = [
        train(dataclasses.replace(member, seed=seed, epochs=2, workdir=f"w/{name}"))
        for name, member in members.items()
        for seed in (2, 3)
    ]
    logits = np.stack([run.test.logits for run in runs]).astype(np.float64)
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)).mean(axis=0)
    label = runs[0].test.label
    assert summary["seed"] == 1
    assert summary["test_accuracy"] == np.mean(probabilities.argmax(-1) == label)
    np.testing.assert_allclose(summary["test_loss"], -np.log(probabilities[np.arange(297), label]).mean(), rtol=1e-5)
    assert [member["test_accuracy"] for member in summary["members"]] == [run.test.accuracy for run in runs]
    assert summary["num_parameters"] == sum(run.summary["num_parameters"] for run in runs)
    assert summary["seconds"]["train"] == sum(run.summary["seconds"]["train"] for run in runs)


def test_views_are_distorted_images_with_the_mean_probabilities_of_the_teachers():
    teachers = [build_state(SMALL, key=jax.random.key(seed)) for seed in (0, 1)]
    split, augment = load_dataset("digits").train, Augmentation(shift=2)
    split = Split(split.image[:1001], split.label[:1001])
    views = record_distilled.teach(teachers, split, augment, seed=5, num_views=2)
    assert (views.image.dtype, views.image.shape) == (np.uint8, (2002, 28, 28, 1))
    parts = split.image[:501], split.image[501:]  # of at most 1,000 images
    expected = [
        255 * augment(part.astype(np.float32) / 255, each)
        for key in jax.random.split(jax.random.key(5), 2)
        for part, each in zip(parts, jax.random.split(key, 2), strict=True)
    ]
    np.testing.assert_allclose(views.image.astype(np.float32), np.concatenate(expected), atol=0.5 + 1e-3)
    logits = np.stack([per_example_logits(teacher, views) for teacher in teachers]).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(views.label, probabilities.mean(axis=0), rtol=1e-5)


@pytest.mark.slow
def test_a_student_sees_the_views_and_is_taught_once(tmp_path, monkeypatch):
    small_members(monkeypatch)
    config = dataclasses.replace(SMALL, augment_shift=1.0, augment_erasing=0.5, seed=3, workdir=str(tmp_path))
    summary = record_distilled.measure_student(config, "student", num_views=2)
    assert (summary["num_train"], summary["seed"]) == (2 * 1350, 3)
    members = record_ensemble.choose_members(config, record_ensemble.DATA_FIELDS)
    teachers = [train(member).state for member in members]
    dataset = load_dataset("digits")
    views = record_distilled.teach(teachers, dataset.train, Augmentation(shift=1, erasing=0.5), 3, 2)
    student = fit(dataclasses.replace(SMALL, seed=3), dataset=dataclasses.replace(dataset, train=views))
    assert summary["test_loss"] == student.test.loss
    monkeypatch.setattr(record_distilled, "teach", None)
    assert record_distilled.measure_student(config, "student", num_views=2) == summary
    message = f"^workdir {re.escape(str(tmp_path))}/student holds a student of other views: choose another --workdir$"
    for other, num_views in ((config, 3), (dataclasses.replace(config, augment_shift=2.0), 2)):
        with pytest.raises(InputError, match=message):
            record_distilled.measure_student(other, "student", num_views)


def predict(label, predictions):
    """The evaluation of a model that predicts so."""
    return Evaluation(0.5, float(np.mean(predictions == label)), len(label), np.eye(10)[predictions], label)


def test_the_cleaned_test_split_has_ten_other_labels_and_five_images_less(mnist_dir):
    label = load_dataset("mnist", data_dir=mnist_dir).test.label
    right = {947: 9, 1621: 6, 1901: 4, 2462: 0, 2597: 3, 3558: 0, 5937: 3, 6651: 6, 6783: 6, 9729: 6}
    predictions = label.copy()
    predictions[[2130, 2654, 3520, 8527, 9679]] += 1  # count for nothing
    for num_right, (index, digit) in enumerate(right.items()):
        assert cleaned_accuracy(predict(label, predictions)) == {"cleaned_test_accuracy": (9985 + num_right) / 9995}
        predictions[index] = digit
    assert cleaned_accuracy(predict(label, predictions)) == {"cleaned_test_accuracy": 1}


def test_another_test_split_has_no_cleaned_one():
    label = load_dataset("digits").test.label
    assert cleaned_accuracy(predict(label, label)) == {}


# steepest_descent


def test_the_csv_holds_the_first_images_of_mnist(tmp_path, monkeypatch, idx_dir):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(steepest_descent, "NUM_EXAMPLES", 42)
    config = dataclasses.replace(steepest_descent.CONFIG, data_dir=str(idx_dir))
    made = steepest_descent.make_data(config)
    assert dataclasses.replace(made, data=None) == config
    dataset, first = load_dataset(made.data, num_validation=6), load_dataset("mnist", data_dir=idx_dir).train
    for part, start, stop in ((dataset.train, 0, 30), (dataset.validation, 30, 36), (dataset.test, 36, 42)):
        np.testing.assert_array_equal(part.image, first.image[start:stop])
        np.testing.assert_array_equal(part.label, first.label[start:stop])
    written = Path(made.data).stat().st_mtime_ns
    assert steepest_descent.make_data(config) == made
    assert Path(made.data).stat().st_mtime_ns == written
    assert steepest_descent.make_data(made) is made


def test_too_few_images_for_the_csv_are_bad_input(idx_dir):
    config = dataclasses.replace(steepest_descent.CONFIG, data_dir=str(idx_dir))
    with pytest.raises(InputError, match="^data_dir must hold 42000 training images, got 54$"):
        steepest_descent.make_data(config)


@pytest.mark.parametrize("config", [steepest_descent.CONFIG, *steepest_descent.VARIANTS.values()])
def test_forty_epochs_are_14_000_iterations(config):
    num_train = 42_000 - 42_000 // 7 - config.num_validation
    assert num_train % config.batch_size == 0
    assert config.epochs * num_train // config.batch_size == 14_000


@pytest.mark.parametrize("hidden_sizes", [(), (5, 4)])
def test_numpy_alone_reads_the_model_back(tmp_path, hidden_sizes):
    run = make_run(tmp_path, hidden_sizes=hidden_sizes)
    assert steepest_descent.finish(run) == {}
    x = load_dataset("digits").test.image.reshape(297, 784) / 255
    for index, layer in enumerate(json.loads((run.workdir / "model.json").read_text())["layers"]):
        kernel = np.array(layer["kernel"])
        assert list(kernel.shape) == layer["shape"]
        x = (np.maximum(x, 0) if index else x) @ kernel + np.array(layer["bias"])
    np.testing.assert_allclose(x, run.test.logits, rtol=1e-5, atol=1e-5)


# adam_two_hidden


def draw(monkeypatch, tmp_path, logits):
    """What ``draw_figures`` hands to the figures, for a model with these logits on the digits."""
    drawn = {}
    monkeypatch.setattr(adam_two_hidden, "confusion_matrix", lambda *args: drawn.update({args[3].name: args}))
    monkeypatch.setattr(adam_two_hidden, "example_grid", lambda *args: drawn.update({args[4].name: args}))
    label = load_dataset("digits").test.label
    test = Evaluation(0.5, float(np.mean(logits.argmax(-1) == label)), len(label), logits, label)
    numbers = adam_two_hidden.draw_figures(Run(SMALL, None, [], {}, test, tmp_path))
    return numbers, drawn


def test_the_misclassified_come_by_confidence(tmp_path, monkeypatch):
    test = load_dataset("digits").test
    logits = np.eye(10)[test.label] * 3
    for index, logit in ((5, 4.0), (8, 6.0), (290, 5.0)):
        logits[index, (test.label[index] + 1) % 10] = logit
    numbers, drawn = draw(monkeypatch, tmp_path, logits)
    assert numbers == {"num_misclassified": 3}
    np.testing.assert_array_equal(drawn["confusion_matrix.png"][1], logits.argmax(-1))
    assert drawn["confusion_matrix.png"][4] == "98.99% of 297 test images of digits"
    image, label, shown_logits, *_, title = drawn["misclassified.png"]
    np.testing.assert_array_equal(image, test.image[[8, 290, 5]])
    np.testing.assert_array_equal(label, test.label[[8, 290, 5]])
    np.testing.assert_array_equal(shown_logits, logits[[8, 290, 5]])
    assert title == "3 of 3 misclassified test images, most confident first"
    np.testing.assert_array_equal(drawn["predictions.png"][0], test.image[:30])


def test_nothing_misclassified_is_an_empty_figure(tmp_path, monkeypatch):
    numbers, drawn = draw(monkeypatch, tmp_path, np.eye(10)[load_dataset("digits").test.label])
    assert numbers == {"num_misclassified": 0}
    assert drawn["misclassified.png"][0].shape == (0, 28, 28, 1)


# label_errors


def test_the_models_are_those_of_the_command():
    assert label_errors.CONFIG == CROSS_VALIDATION


def test_flipped_labels_are_a_twentieth_and_all_wrong():
    label = np.arange(2000) % 4
    others = np.array([[1, 2], [3, 3], [0, 0], [1, 2]])
    found, flipped = label_errors.flip_labels(label, others, np.random.default_rng(0))
    assert flipped.sum() == 100
    np.testing.assert_array_equal(found != label, flipped)
    for before, after in zip(label[flipped], found[flipped], strict=True):
        assert after in others[before]
    assert {(0, 1), (0, 2), (1, 3), (2, 0), (3, 1), (3, 2)} == {*zip(label[flipped], found[flipped], strict=True)}


# half_of_mnist


def test_the_hardest_are_kept():
    score = np.array([0.1, 0.9, 0.5, 0.5, 0.0])
    assert half_of_mnist.keep_hardest(score).tolist() == [False, True, True, False, False]
    assert half_of_mnist.keep_hardest(score, 0.6).tolist() == [False, True, True, True, False]


# calibration


def test_the_least_error_is_that_of_a_calibrated_model(tmp_path):
    numbers = calibration.calibrate(make_run(tmp_path))
    assert 0.2 < numbers["temperature"] < 20
    assert 0 < numbers["least_error"] < numbers["calibrated_error"]


# table


def make_results(accuracies, variant=None, cleaned=(), machine="cpu", **fields):
    """A file of results of an experiment named ``made_up``."""
    runs = [
        {"test_accuracy": accuracy, "validation_loss": 0.06 + 0.01 * index, "num_parameters": 101_770, **fields}
        | {"seconds": {"train": 1.0 + index, "total": 300.0 * (index + 1)}}
        for index, accuracy in enumerate(accuracies)
    ]
    for run, accuracy in zip(runs, cleaned, strict=False):
        run["cleaned_test_accuracy"] = accuracy
    return {
        "name": "made_up",
        "variant": variant,
        "machine": {"processor": "Processor X", "cores": 2, "device": machine},
        "versions": {"python": "3.11.9", "jax": "0.10.2"},
        "runs": runs,
    }


def test_the_table_is_the_results(tmp_path, monkeypatch):
    (tmp_path / "made_up.py").write_text("CLAIM = '98 %'\nTARGETS = {'test_accuracy': 0.98, 'validation_loss': 0.07}\n")
    monkeypatch.syspath_prepend(tmp_path)
    results = tmp_path / "results"
    results.mkdir()
    (results / "b.json").write_text(json.dumps(make_results([0.981, 0.983, 0.982], cleaned=[0.984, 0.986, 0.985])))
    other = make_results([0.97], variant="plain", machine="Device Y", views_test_accuracy=0.975)
    (results / "a.json").write_text(json.dumps(other))
    assert build_table(results) == (
        "| experiment | claim | measured | on the cleaned test split | training / whole run | verdict |\n"
        "|---|---|---|---|---|---|\n"
        "| [made_up](made_up.py) | 98 % | 98.200 ± 0.100 % (n = 3), validation loss 0.0700 ± 0.0100 | 98.500 ± 0.100 % "
        "| 2.0 s / 10.0 min | met |\n"
        "| [made_up](made_up.py) plain on Device Y | 98 % | 97.000 % (n = 1), validation loss 0.0600, "
        "with 16 distorted copies of each image 97.500 % |  "
        "| 1.0 s / 5.0 min | missed: test accuracy by 1.000 points |\n"
        "\n"
        "Measured on 2 cores of Processor X, Python 3.11.9, jax 0.10.2: made_up.\n"
        "\n"
        "Measured on Device Y, 2 cores of Processor X, Python 3.11.9, jax 0.10.2: made_up plain on Device Y.\n"
    )


@pytest.mark.parametrize(
    ("bars", "verdict"),
    [
        ({}, ""),
        ({"test_accuracy": 0.97}, "met"),
        ({"test_accuracy": 0.9801}, "missed: test accuracy by 0.010 points"),
        ({"validation_loss": 0.065}, "met"),
        ({"validation_loss": 0.0649}, "missed: validation loss by 0.0001"),
        ({"seconds.train": 1.5}, "met"),
        ({"seconds.train": 1.25}, "missed: time by 0.2 s"),
        ({"num_parameters": 101_770}, "met"),
        ({"num_parameters": 100_000}, "missed: parameters by 1,770"),
        (
            {"test_accuracy": 0.99, "validation_loss": 0.06},
            "missed: test accuracy by 1.000 points, validation loss by 0.0050",
        ),
    ],
)
def test_accuracies_are_at_least_their_bar_and_all_else_at_most(bars, verdict):
    row = build_row(make_results([0.97, 0.99]), "a claim", bars)
    assert row.split(" | ")[-1] == f"{verdict} |"


def test_the_readme_holds_the_table_of_the_results():
    readme = (DIRECTORY / "README.md").read_text()
    assert insert_table(readme, build_table(DIRECTORY / "results")) == readme


@pytest.mark.parametrize("path", sorted((DIRECTORY / "results").glob("*.json")), ids=lambda path: path.stem)
def test_results_are_of_the_config_that_the_experiment_has_now(path):
    found = json.loads(path.read_text())
    experiment = importlib.import_module(found["name"])
    config = experiment.VARIANTS[found["variant"]] if found["variant"] else experiment.CONFIG
    measured = TrainConfig(**found["config"])
    assert measured.differences(dataclasses.replace(config, data=measured.data)) == []


def test_a_readme_without_marks_is_bad_input():
    with pytest.raises(InputError, match="^README.md must have a line <!-- table --> and a line <!-- /table -->$"):
        insert_table("# Experiments\n", "| |")
