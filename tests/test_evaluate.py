import base64
import csv
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import read_events
from matplotlib.image import imread

from mnist_jax import (
    Calibration,
    TrainConfig,
    evaluate_dataset,
    fit,
    fit_temperature,
    load_dataset,
    load_run,
    per_example_gradient_norms,
)
from mnist_jax.evaluate import evaluate_run, main


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    """A copy of a run, in which evaluations are written."""
    return dataclasses.replace(
        digits_run, workdir=shutil.copytree(digits_run.workdir, tmp_path_factory.mktemp("run") / "run")
    )


@pytest.fixture(scope="module")
def report(run):
    return evaluate_run(run.workdir)


def test_the_report_has_the_numbers_of_the_run(run, report):
    content = report.content
    assert content["accuracy"] == run.summary["test_accuracy"]
    assert content["loss"] == pytest.approx(run.summary["test_loss"], rel=1e-6)
    assert (content["dataset"], content["split"], content["num_examples"]) == ("digits", "test", 297)
    assert (content["model"], content["step"]) == ("mlp", run.summary["steps"])
    assert json.loads((run.workdir / "evaluation.json").read_text()) == content
    seconds = content["seconds"]
    assert seconds["start"] + seconds["evaluate"] + seconds["write"] == pytest.approx(seconds["total"], abs=0.01)
    np.testing.assert_array_equal(report.evaluation.logits, run.test.logits)


def test_the_files_are_in_the_run(run, report):
    assert report.directory == run.workdir
    figures = {path.name for path in (run.workdir / "figures").iterdir()}
    names = {"confusion_matrix", "calibration", "predictions", "misclassified", "hardest", "learning_curves"}
    names |= {"confused_classes", "saliency"}
    assert figures == {f"{name}.png" for name in names}
    assert {"evaluation.json", "examples.csv", "report.html"} <= {path.name for path in run.workdir.iterdir()}


def test_the_table_of_the_examples_is_what_the_functions_give(run, report):
    config, state = load_run(run.workdir)
    test = load_dataset(config.data).test
    with (run.workdir / "examples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(297))
    assert [int(row["label"]) for row in rows] == test.label.tolist()
    evaluation = evaluate_dataset(state, test)
    assert [int(row["prediction"]) for row in rows] == evaluation.predictions.tolist()
    expected = {
        "loss": evaluation.losses,
        "margin": evaluation.margins,
        "gradient_norm": per_example_gradient_norms(state, test),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(np.array([row[name] for row in rows], np.float32), values)
    assert list(rows[0]) == ["index", "label", "prediction", *expected]


class Links(HTMLParser):
    """What a page refers to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_needs_nothing_else(run, report):
    text = (run.workdir / "report.html").read_text()
    links = Links()
    links.feed(text)
    prefix = "data:image/png;base64,"
    assert all(tag == "img" and value.startswith(prefix) for tag, value in links.found)
    pictures = {base64.b64decode(value.removeprefix(prefix)) for _, value in links.found}
    assert pictures == {path.read_bytes() for path in (run.workdir / "figures").iterdir()}
    first = (run.workdir / "figures" / "learning_curves.png").read_bytes()
    assert base64.b64decode(links.found[0][1].removeprefix(prefix)) == first
    assert not re.search(r"url\(|@import|<script|https?:", text)
    for shown in (
        f"{report.content['accuracy']:.2%}",
        f"{report.content['loss']:.4f}",
        *(f"{row['f1']:.2%}" for row in report.content["classes"]),
    ):
        assert shown in text


def test_tensorboard_has_the_figures(run, report):
    pictures = {tag: value.image for (tag, _), value in read_events(run.workdir).items() if value.HasField("image")}
    paths = list((run.workdir / "figures").iterdir())
    assert pictures.keys() == {path.stem for path in paths}
    for path in paths:
        shown = imread(io.BytesIO(pictures[path.stem].encoded_image_string))
        np.testing.assert_array_equal(shown, imread(path))


@pytest.mark.slow
def test_another_evaluation_takes_the_place_of_the_last(run, report):
    names = {path.name for path in run.workdir.iterdir()}
    evaluate_run(run.workdir)
    assert len({path.name for path in run.workdir.iterdir()}) == len(names)


@pytest.mark.parametrize(
    ("options", "name", "num_examples"),
    [({"split": "validation"}, "digits-validation", 150), ({"data": "small"}, "small-test", 10)],
)
def test_other_examples_go_into_a_directory_of_their_own(run, idx_dir, options, name, num_examples):
    before = (run.workdir / "evaluation.json").read_bytes()
    options = {**options, **({"data": str(idx_dir)} if "data" in options else {})}
    report = evaluate_run(run.workdir, **options)
    assert report.directory == run.workdir / name
    assert report.content["num_examples"] == num_examples
    assert (report.directory / "report.html").exists()
    assert (run.workdir / "evaluation.json").read_bytes() == before


def test_the_command_prints_the_table(run, capsys):
    assert main([str(run.workdir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    content = json.loads((run.workdir / "evaluation.json").read_text())
    assert lines[0].split() == ["class", "examples", "precision", "recall", "F1"]
    for line, row in zip(lines[1:11], content["classes"], strict=True):
        scores = [f"{row[name]:.2%}" for name in ("precision", "recall", "f1")]
        assert line.split() == [row["name"], str(row["num_examples"]), *scores]
    accuracy, loss = f"{content['accuracy']:.2%}", f"{content['loss']:.4f}"
    assert lines[13] == f"mlp on the 297 test examples of digits: accuracy {accuracy}, loss {loss}"
    matrix = np.array(content["confusion_matrix"])
    np.fill_diagonal(matrix, 0)
    wrong, times = re.fullmatch(
        r"(\d+) misclassified, most often . taken for . \((\d+) times\); .*", lines[14]
    ).groups()
    assert (int(wrong), int(times)) == (matrix.sum(), matrix.max())
    assert lines[15].endswith(f"everything is in {run.workdir / 'report.html'}")


def test_the_best_checkpoint_goes_into_a_directory_of_its_own(digits_run, tmp_path, capsys):
    path = shutil.copytree(digits_run.workdir, tmp_path / "run")
    lines = [{**line, "validation_accuracy": 0.75 if line["epoch"] == 19 else 0.5} for line in digits_run.history]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(path), "--best", "--split", "validation"]) == 0
    *_, before, last = capsys.readouterr().out.splitlines()
    assert before == "checkpoint of step 209, the best by validation accuracy"
    assert last.endswith(f"everything is in {path / 'digits-validation-best' / 'report.html'}")
    content = json.loads((path / "digits-validation-best" / "evaluation.json").read_text())
    expected = digits_run.history[18]["validation_accuracy"]
    assert (content["step"], content["accuracy"]) == (209, pytest.approx(expected, abs=1e-6))
    assert not (path / "evaluation.json").exists()


def test_calibrate_shows_the_error_before_and_after(run, report, tmp_path, capsys):
    path = shutil.copytree(run.workdir, tmp_path / "run")
    assert main([str(path), "--calibrate"]) == 0
    content = json.loads((path / "evaluation.json").read_text())
    dataset = load_dataset("digits")
    validation = evaluate_dataset(run.state, dataset.validation)
    temperature = fit_temperature(validation.logits, validation.label)
    logits = np.float64(run.test.logits) / temperature
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses = -np.log(probabilities[np.arange(297), run.test.label])
    expected = {
        "temperature": temperature,
        "loss": losses.mean(),
        "expected_calibration_error": Calibration.compute(probabilities, run.test.label).expected_error,
    }
    assert content.pop("calibrated") == pytest.approx(expected, rel=1e-5)
    assert {**content, "seconds": 0, "run": 0} == {**report.content, "seconds": 0, "run": 0}  # all else as without it
    after = f"{expected['expected_calibration_error']:.2%}"
    shown = f"with temperature {temperature:.3f}, fitted on validation: expected calibration error {after}, loss "
    assert f"{shown}{losses.mean():.4f}" in capsys.readouterr().out
    page = (path / "report.html").read_text()
    assert f"<div><b>{after}</b>the same with temperature {temperature:.3f}</div>" in page


@pytest.mark.slow
def test_other_data_are_calibrated_by_the_validation_split_of_the_run(run, idx_dir, tmp_path):
    path = shutil.copytree(run.workdir, tmp_path / "run")
    found = [evaluate_run(path, calibrate=True, **options) for options in ({}, {"data": str(idx_dir)})]
    first, second = (report.content["calibrated"]["temperature"] for report in found)
    assert first == second


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["RUN", "--split", "validation", "--calibrate"],
            "calibrate fits the temperature on the validation split: evaluate test or train",
        ),
        (["nowhere"], "nowhere: expected a run with a config.json, found none"),
        ([], "the following arguments are required: RUN"),
        (["RUN", "--split", "all"], "split must be one of test, validation, train, got all"),
        (["RUN", "--data", "nowhere"], "data must be one of mnist, .* got 'nowhere'"),
        (["RUN", "--bogus"], "unknown flag --bogus"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, capsys, args, message):
    assert main([str(run.workdir) if arg == "RUN" else arg for arg in args]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(f"error: {message}\n", captured.err)
    assert captured.out == ""


def test_a_run_without_a_checkpoint_is_one_line(run, tmp_path, capsys):
    shutil.copy(run.workdir / "config.json", tmp_path / "config.json")
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: expected a checkpoint, found none\n"


def test_a_damaged_data_json_is_one_line(run, tmp_path, capsys):
    shutil.copytree(run.workdir, tmp_path / "run")
    (tmp_path / "run" / "data.json").write_text("{")
    assert main([str(tmp_path / "run")]) == 2
    assert "data.json: expected a JSON object" in capsys.readouterr().err


def test_figures_that_cannot_be_written_are_one_line(run, tmp_path, capsys):
    shutil.copytree(run.workdir, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    (tmp_path / "run" / "figures").write_text("in the way")
    assert main([str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'run'}: figures cannot be written (File exists)\n"


def test_other_data_have_a_validation_split_of_their_own_size(run, tmp_path, idx_dir):
    shutil.copytree(run.workdir, tmp_path / "run")
    config = dataclasses.replace(run.config, num_validation=1000)
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    assert evaluate_run(tmp_path / "run", data=str(idx_dir), split="validation").content["num_examples"] == 6


@pytest.mark.slow
@pytest.mark.uses_adam
def test_the_data_is_found_where_the_run_had_it(tmp_path, monkeypatch, idx_dir):
    """Even if it was named by the environment, or by a directory of the name of a data set."""
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(idx_dir))
    config = TrainConfig(data="mnist", hidden_sizes=(4,), epochs=1, batch_size=10, quiet=True)
    run = fit(dataclasses.replace(config, workdir=str(tmp_path / "one")))
    monkeypatch.delenv("MNIST_JAX_DATA_DIR")
    assert evaluate_run(run.workdir).content["accuracy"] == run.summary["test_accuracy"]
    idx_dir.rename(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    run = fit(dataclasses.replace(config, data_dir="mnist", workdir=str(tmp_path / "two")))
    assert run.config.data_dir == str(tmp_path / "mnist")
